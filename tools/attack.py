"""Attack adapter files: change them, make their checksum right again, load them.

    python tools/attack.py [cases] [seed]      # default: 20000 0

Counts what was accepted although it is wrong, exceptions other than AdapterFileError,
loads of over a second and loads that take more than four times the file's bytes and
8 MiB; ends with status 1 if there is one. `tests/test_attack.py` runs a few hundred.
"""

import copy
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import hra
from hra import io

METHODS = {
    "LoRA": {"r": 2},
    "DoRA": {"r": 2},
    "LoRAFA": {"r": 2},
    "VeRA": {"r": 8},
    "NOLA": {"r": 2, "k": 3, "l": 3},
    "PRANC": {"m": 4},
    "SHiRA": {"density": 0.2},
    "SHiRA-weight": {"mask": "weight", "density": 0.1},
    "SHiRA-global": {"mask": "weight", "scope": "global", "density": 0.1},
    "FullFT": {},
    "BitFit": {},
    "Houlsby": {"r": 2},
    "ReLoRA": {"r": 2, "every": 5},
    "PrefixTuning": {"n": 3},
    "PromptTuning": {"n": 3},
}
HUGE = [0, -1, 10**9, 6 * 10**7, 2**63, 10**40, 1.5, 1e300, True, None, "8", [], {}]
TEXTS = ["", "rand", "struct", "hook", "delta", "global", "column", "no", "A", "random"]


def base(kind):
    if kind in ("PrefixTuning", "PromptTuning"):
        return hra.zoo.gpt2("random")
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.LayerNorm(6))


def made(kind, path):
    """A saved adapter that has been shaken, and its tensors."""
    model, hyper = base(kind), METHODS[kind]
    method = hra.METHODS[kind.split("-")[0]]
    whole = kind in ("PrefixTuning", "PromptTuning")
    also = "" if whole or kind == "BitFit" else "3"
    tuned = hra.attach(model, method, also=also, **hyper)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (p for group in tuned.param_groups(1.0) for p in group["params"]):
            p.add_(torch.randn(p.shape, generator=g))
    tuned.save(path)
    return {k: v.clone() for k, v in tuned.state_dict().items()}


def split(raw):
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def join(header, body):
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


def signed(header, body):
    """The file with the checksum that its content asks for, where it can be read."""
    from safetensors.torch import load

    meta = header.get("__metadata__")
    try:
        tensors = load(join(header, body))
        meta["checksum"] = io.checksum(tensors, meta)
    except Exception:  # not to be read at all: as it is
        return join(header, body)
    return join(header, body)


def any_value(rng):
    deep = json.loads("[" * 60 + "]" * 60)
    return rng.choice([*HUGE, *TEXTS, deep, {"a": deep}, rng.randrange(-9, 99)])


def mutated(raw, rng):
    """(another file, whether it holds other numbers, which is an adapter too)."""
    header, body = split(raw)
    meta, names = header["__metadata__"], [k for k in header if k != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    kind = rng.randrange(14)
    if kind <= 3:  # a hyperparameter, given, gone or new
        hyper = json.loads(meta["hyper"])
        key = rng.choice([*hyper, "new"])
        if rng.random() < 0.15:
            hyper.pop(key, None)
        else:
            hyper[key] = any_value(rng)
        meta["hyper"] = json.dumps(hyper)
    elif kind == 4:  # what a site is
        sites = json.loads(meta["sites"])
        site = rng.choice(list(sites))
        value = rng.choice([[], [1], [8, 6], [6, 8], [10**9, 10**9], "x", [0, 0], None])
        if rng.random() < 0.3:
            sites[rng.choice(["", "9", "1", site + ".x"])] = sites.pop(site)
        else:
            sites[site] = value
        meta["sites"] = json.dumps(sites if rng.random() < 0.9 else {})
    elif kind == 5:  # what one site has of its own
        site = rng.choice(list(json.loads(meta["sites"])))
        own = {site: {rng.choice(["r", "alpha", "mask", "new"]): any_value(rng)}}
        meta["own"] = json.dumps(own)
    elif kind == 6:
        value = rng.choice([["3"], ["0"], ["9"], [""], [1], {}, "3", ["3", "3"], []])
        meta["also"] = json.dumps(value)
    elif kind == 7:
        key = rng.choice(["drawn", "base", "method", "format_version", "format"])
        meta[key] = rng.choice(
            ["", "{}", "LoRA", "SHiRA", "1", "3", "x" * 99, "[" * 999]
        )
    elif kind == 8:  # a tensor's type, over the same bytes
        entry["dtype"] = rng.choice(
            ["I32", "I64", "BOOL", "U8", "F8_E4M3", "C64", "F16"]
        )
    elif kind == 9:  # its shape
        shape = entry["shape"]
        new = rng.choice([shape[::-1], [*shape, 1], [10**9], [2**62, 4], [-1], []])
        entry["shape"] = new
    elif kind == 10:  # one tensor less, one more, another name
        header.pop(name)
        if rng.random() < 0.6:
            header[rng.choice(["0.A", "2.values", "x", name + "x"])] = entry
    elif kind == 11:  # numbers
        start, end = entry["data_offsets"]
        if end > start:
            body = bytearray(body)
            at = rng.randrange(start, end)
            body[at : at + 4] = rng.choice([b"\x00\x00\xc0\x7f", b"\xff" * 4])
            body = bytes(body[: len(split(raw)[1])])
    elif kind == 12:  # where its bytes are
        entry["data_offsets"] = [rng.randrange(-5, 10**6), rng.randrange(10**12)]
    else:  # rubbish in the header
        where = rng.choice([header, meta])
        where["z"] = rng.choice(["[" * 5000, "y" * 10**5, 7, None, [[]]])
    return signed(header, body), kind == 11


def resident():
    """(bytes held now, the most since the last call), where the system says."""
    try:
        text = Path("/proc/self/status").read_text()
        found = [
            int(line.split()[1]) * 1024
            for key in ("VmRSS:", "VmHWM:")
            for line in text.splitlines()
            if line.startswith(key)
        ]
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0, 0
    return found[0], found[1]


def attack(cases, seed, folder, say=lambda *_: None):
    """{what went wrong: one line for each}; an empty one is a good one."""
    rng, bad, refused = random.Random(seed), [], 0
    kept = {}
    for kind in METHODS:
        path = folder / f"{kind}.safetensors"
        want = made(kind, path)
        model = base(kind)
        state = copy.deepcopy(model.state_dict())
        kept[kind] = path.read_bytes(), model, state, want
    path = folder / "attacked.safetensors"
    for n in range(cases):
        kind = rng.choice(list(METHODS))
        raw, model, state, want = kept[kind]
        new, numbers = mutated(raw, rng)
        if new == raw:
            continue
        path.write_bytes(new)
        before, began = resident()[0], time.perf_counter()
        try:
            tuned = hra.load(model, path)
        except io.AdapterFileError:
            refused += 1
        except Exception as e:
            bad.append(f"{n} {kind}: {type(e).__name__}: {str(e)[:90]}")
        else:
            got = tuned.state_dict()
            if got.keys() != want.keys() or not all(
                torch.isfinite(got[k]).all()
                if numbers
                else torch.equal(got[k], want[k])
                for k in want
            ):
                bad.append(f"{n} {kind}: accepted, and another adapter")
            tuned.detach()
        took, most = time.perf_counter() - began, resident()[1] - before
        if took > 1:
            bad.append(f"{n} {kind}: {took:.1f} s")
        if before and most > 4 * len(new) + (8 << 20):
            bad.append(f"{n} {kind}: {most >> 20} MiB for {len(new)} bytes")
        if any(not torch.equal(v, state[k]) for k, v in model.state_dict().items()):
            bad.append(f"{n} {kind}: the model has changed")
        if n % 1000 == 999:
            say(f"{n + 1} files, {refused} refused, {len(bad)} wrong")
    return bad, refused


def main(argv):
    cases, seed = (int(a) for a in (*argv, *("20000", "0")[len(argv) :]))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bad, refused = attack(cases, seed, Path(folder), print)
    print("\n".join(bad[:40]))
    print(f"{cases} files attacked: {refused} refused, {len(bad)} wrong")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
