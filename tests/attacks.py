"""Attacks on the library: changed files, an interrupt at every line, two threads,
damaged and killed checkpoints. `test_attack.py` runs a few hundred, `make attack` all.

Each attack gives ([what went wrong, a line for each], how many cases there were).
"""

import contextlib
import copy
import gc
import json
import math
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import hra
from hra import io
from hra.adapter import Method

WHOLE = ("PrefixTuning", "PromptTuning")
METHODS = {
    "LoRA": {"r": 2},
    "RsLoRA": {"r": 2, "dropout": 0.1},
    "LoRAPlus": {"r": 2, "ratio": 4.0},
    "DoRA": {"r": 2},
    "LoRAFA": {"r": 2, "project": True},
    "AsyLoRA": {"r": 2, "train": "A"},
    "VeRA": {"r": 8},
    "NOLA": {"r": 2, "k": 3, "l": 3},
    "PRANC": {"m": 4},
    "SHiRA": {"density": 0.2},
    "SHiRA-weight": {"mask": "weight", "density": 0.1},
    "SHiRA-global": {"mask": "weight", "scope": "global", "density": 0.1},
    "SHiRA-struct": {"mask": "struct", "every": 3, "form": "delta"},
    "SHiRA-hook": {"count": 7, "form": "hook"},
    "FullFT": {},
    "BitFit": {},
    "Houlsby": {"r": 2},
    "LinAdapter": {"r": 2},
    "MoRA": {"r": 2},
    "ReLoRA": {"r": 2, "every": 5},
    "ReMoRA": {"r": 2, "every": 5, "regroup": "permute"},
    "LoSiA": {"p": 0.5, "period": 3},
    "LoSiAPro": {"p": 0.34, "period": 3},
    "PrefixTuning": {"n": 3},
    "PrefixTuning-MLP": {"n": 3, "hidden": 4},
    "PromptTuning": {"n": 3},
}


def method_of(kind):
    return hra.METHODS[kind.partition("-")[0]]


def base(kind, layout="Linear", dtype=torch.float32):
    if kind.startswith(WHOLE):
        return hra.zoo.gpt2("random")
    torch.manual_seed(0)
    one, two = (
        (Conv1D(8, 6), Conv1D(6, 8))
        if layout == "Conv1D"
        else (nn.Linear(6, 8), nn.Linear(8, 6))
    )
    return nn.Sequential(one, nn.Tanh(), two, nn.LayerNorm(6)).to(dtype)


def shaken(model, kind, seed=1, also=""):
    tuned = hra.attach(model, method_of(kind), also=also, **METHODS[kind])
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for group in tuned.param_groups(1.0) for p in group["params"]):
            p.add_(torch.randn(p.shape, generator=g))
    return tuned


# ---- files -------------------------------------------------------------------------

HUGE = [0, -1, 10**9, 6 * 10**7, 2**63, 10**40, 1.5, 1e300, True, None, "8", [], {}]
TEXTS = ["", "rand", "struct", "hook", "delta", "global", "column", "no", "A", "random"]
NAMES = ["0.A", "2.values", "x", "", "0.", ".A", "3.weight", "2.gaps", "\ud800", "0"]
ALSO = [
    [("0", "weight", 8, 6), ("0", "bias", 8)],
    [("", "0.weight", 8, 6), ("", "0.bias", 8)],
    [("1", "weight", 1)],
    [("2", "weight", 6, 8), ("2", "bias", 6)],
    [("transformer.ln_f", "weight", 32), ("transformer.ln_f", "bias", 32)],
    [("transformer.wte", "weight", 256, 32)],
    [("lm_head", "weight", 256, 32)],
]


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
    with contextlib.suppress(Exception):  # not to be read at all: as it is
        meta["checksum"] = io.checksum(load(join(header, body)), meta)
    return join(header, body)


def any_value(rng):
    deep = json.loads("[" * 60 + "]" * 60)
    return rng.choice([*HUGE, *TEXTS, deep, {"a": deep}, rng.randrange(-9, 99)])


def change(header, body, rng):
    """Change one thing of an adapter file; the new body."""
    meta, names = header["__metadata__"], [k for k in header if k != "__metadata__"]
    if not names or not isinstance(meta, dict):
        return body
    name, kind = rng.choice(names), rng.randrange(16)
    entry = header[name]
    if not isinstance(entry, dict):
        return body

    def parsed(key, what):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(meta[key])
            if isinstance(found, what) and found:
                return found
        return what() if what is list else {"0": {}}

    if kind <= 3:  # a hyperparameter, given, gone or new
        hyper = parsed("hyper", dict)
        key = rng.choice([*hyper, "new"])
        if rng.random() < 0.15:
            hyper.pop(key, None)
        else:
            hyper[key] = any_value(rng)
        meta["hyper"] = json.dumps(hyper)
    elif kind == 4:  # what a site is
        sites = parsed("sites", dict)
        site = rng.choice(list(sites))
        value = rng.choice([[], [1], [8, 6], [6, 8], [10**9, 10**9], "x", [0, 0], None])
        if rng.random() < 0.3:
            sites[rng.choice(["", "9", "1", site + ".x"])] = sites.pop(site)
        else:
            sites[site] = value
        meta["sites"] = json.dumps(sites if rng.random() < 0.9 else {})
    elif kind == 5:  # what one site has of its own
        site = rng.choice([*parsed("sites", dict), "9"])
        hyper = [*parsed("hyper", dict), "new", "gradients", "shared", "base", "site"]
        meta["own"] = json.dumps({site: {rng.choice(hyper): any_value(rng)}})
    elif kind == 6:
        value = rng.choice([["3"], ["0"], ["9"], [""], [1], {}, "3", ["3", "3"], []])
        meta["also"] = json.dumps(value)
        if rng.random() < 0.7:  # with its tensors
            for site, key, *shape in ALSO[rng.randrange(len(ALSO))]:
                meta["also"] = json.dumps([site])
                at = len(body)
                body += bytes(4 * math.prod(shape))
                header[f"{site}.{key}"] = {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": [at, len(body)],
                }
    elif kind == 7:
        key = rng.choice(["drawn", "base", "method", "format_version", "format"])
        values = ["", "{}", "1", "3", "x" * 99, "[" * 999, "2.0", " 2", "٢", *METHODS]
        meta[key] = rng.choice(values)
    elif kind == 8:  # a tensor's type, over the same bytes
        types = ["I32", "I64", "BOOL", "U8", "F8_E4M3", "C64", "F16", "BF16", 1, None]
        entry["dtype"] = rng.choice(types)
    elif kind == 9:  # its shape
        shape = entry.get("shape") or [1]
        new = rng.choice([shape[::-1], [*shape, 1], [10**9], [2**62, 4], [-1], [], [0]])
        entry["shape"] = new
    elif kind == 10:  # one tensor less, one more, another name
        header.pop(name)
        if rng.random() < 0.6:
            header[rng.choice([*NAMES, name + "x"])] = entry
    elif kind == 11:  # its numbers
        with contextlib.suppress(KeyError, TypeError, ValueError):
            start, end = entry["data_offsets"]
            at = rng.randrange(start, end)
            new = rng.choice([b"\x00\x00\xc0\x7f", b"\xff" * 4, bytes(4), b"\x01"])
            return (body[:at] + new + body[at + len(new) :])[: len(body)]
    elif kind == 12:  # where its bytes are
        entry["data_offsets"] = [rng.randrange(-5, 10**6), rng.randrange(10**12)]
    elif kind == 13:  # an entry that is none
        header[name] = rng.choice([None, [], {}, 7, "x", [[]], {"dtype": "F32"}])
    elif kind == 14:  # more, or fewer, of the same
        n = rng.choice([0, 1, 5, 3000, 10**6])
        dtype = rng.choice(["F32", "U8"])
        size = n * (4 if dtype == "F32" else 1)
        at = [len(body), len(body) + size]
        extra = {"dtype": dtype, "shape": [n], "data_offsets": at}
        header[rng.choice([*NAMES, name])] = extra
        return body + bytes(size)
    else:  # rubbish in the header
        where = rng.choice([header, meta])
        where[rng.choice(["z", *NAMES])] = rng.choice(
            ["[" * 5000, "y" * 10**5, 7, None, [[]], "\ud800"]
        )
    return body


def monsters(raw):
    """Files whose sizes are the attack."""
    header, body = split(raw)
    pad = b" " * (90 << 20)
    text = raw[8 : 8 + int.from_bytes(raw[:8], "little")]

    def file(text, body=body):
        return len(text).to_bytes(8, "little") + text + body

    yield "a header of 90 MB of spaces", file(text + pad)
    yield "a header of 90 MB of brackets", file(text[:-1] + b',"z":' + b"[" * len(pad))
    many = b'"y":0,' * (1 << 17)
    yield "a header of many parts", file(b"{" + many + text[1:])
    deep = b"[" * 100000 + b"]" * 100000
    yield "a deep header", file(b'{"z":' + deep + b"," + text[1:])
    twice = text.replace(b'"__metadata__":', b'"__metadata__":{},"__metadata__":', 1)
    yield "metadata twice", file(twice)
    yield "a length of 2^64 - 1", b"\xff" * 8 + text + body
    for n in (0, 7, 8, 9):
        yield f"{n} bytes", raw[:n]
    for literal in (b"NaN", b"Infinity", b"9" * 5000, b"1e999", b"-0.0"):
        hyper = json.loads(header["__metadata__"]["hyper"])
        key = next(iter(hyper))
        new = copy.deepcopy(header)
        hyper[key] = "HERE"
        inside = json.dumps(hyper).replace('"HERE"', literal.decode())
        new["__metadata__"]["hyper"] = inside
        yield f"{key}={literal[:9].decode()}", signed(new, body)
    for size in (50 << 20,):  # tensors that lie there, and that no header justifies
        new = copy.deepcopy(header)
        for name in ("0.gaps", "2.gaps"):
            at = [len(body), len(body) + size]
            new[name] = {"dtype": "U8", "shape": [size], "data_offsets": at}
            yield f"50 MB of {name}", signed(new, body + bytes(size))
            new.pop(name)


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


class Target:
    """A model, a good file for it, and what must hold whatever is loaded there."""

    def __init__(self, kind, folder, layout="Linear", dtype=torch.float32):
        self.kind = f"{kind} {layout} {dtype}"
        self.path = folder / "attacked.safetensors"
        also = "" if kind.startswith((*WHOLE, "BitFit")) else "3"
        shaken(base(kind, layout, dtype), kind, also=also).save(self.path)
        self.raw = self.path.read_bytes()
        self.model = base(kind, layout, dtype)
        self.check = unchanged(self.model)

    def load(self, raw, bad, say):
        """Load `raw`; whether it was refused."""
        self.path.write_bytes(raw)
        before, began = resident()[0], time.perf_counter()
        refused = False
        try:
            tuned = hra.load(self.model, self.path)
        except io.AdapterFileError:
            refused = True
        except Exception as e:
            bad.append(f"{say}: {type(e).__name__}: {str(e)[:90]}")
        took, most = time.perf_counter() - began, resident()[1] - before
        if took > 1:
            bad.append(f"{say}: {took:.1f} s")
        if before and most > 4 * len(raw) + (8 << 20):
            bad.append(f"{say}: {most >> 20} MiB for {len(raw)} bytes")
        if not refused and "tuned" in locals():
            self.accepted(tuned, raw, bad, say)
            tuned.detach()
        wrong = self.check()
        if wrong:
            bad.append(f"{say}: {wrong}")
        return refused

    def accepted(self, tuned, raw, bad, say):
        """What is accepted is what the library itself would have written."""
        self.path.unlink()
        try:
            tuned.save(self.path)
        except Exception as e:
            bad.append(f"{say}: accepted, and cannot be saved: {e}")
            return
        (old, old_body), (new, new_body) = split(raw), split(self.path.read_bytes())
        for key in ("method", "hyper", "own", "sites", "also", "base", "drawn"):
            pair = [h["__metadata__"][key] for h in (old, new)]
            if key not in ("method", "drawn"):
                pair = [json.dumps(json.loads(v), sort_keys=True) for v in pair]
            if pair[0] != pair[1]:
                bad.append(f"{say}: accepted {key}={pair[0][:60]}: {pair[1][:60]}")
                return
        for header in (old, new):
            header.pop("__metadata__")
        if old.keys() != new.keys():
            bad.append(f"{say}: accepted other tensors")
        for k, entry in old.items():
            (a, b), (c, d) = entry["data_offsets"], new[k]["data_offsets"]
            if entry["dtype"] == new[k]["dtype"] and old_body[a:b] != new_body[c:d]:
                bad.append(f"{say}: accepted other numbers of {k}")


def attack_files(cases, seed, folder, say=lambda *_: None):
    """Loads of changed files whose checksum is right again: what was accepted and is no
    file of the library's, errors other than AdapterFileError, changed models, loads of
    over a second or of more than four times the file's bytes and 8 MiB.
    """
    rng, bad, refused, done = random.Random(seed), [], 0, 0
    targets = [Target(kind, folder) for kind in METHODS]
    for kind in ("LoRA", "SHiRA", "VeRA", "DoRA"):
        targets.append(Target(kind, folder, "Conv1D", torch.bfloat16))
    for target in (targets[0], targets[list(METHODS).index("SHiRA-global")]):
        for what, raw in monsters(target.raw):
            refused += target.load(raw, bad, f"{target.kind}, {what}")
            done += 1
    while done < cases:
        target = rng.choice(targets)
        header, body = split(target.raw)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            body = change(header, body, rng)
        raw = signed(header, body)
        if raw == target.raw:
            continue
        done += 1
        refused += target.load(raw, bad, f"{done} {target.kind}")
        if done % 1000 == 0:
            say(f"{done} files, {refused} refused, {len(bad)} wrong")
    return bad, done, refused


# ---- interrupts --------------------------------------------------------------------


def unchanged(model):
    """A function that says what differs from now: "" or a few words."""
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    flags = {n: (p, p.requires_grad) for n, p in model.named_parameters()}
    modes = {n: m.training for n, m in modules.items()}
    hooks = {n: _hooks(m) for n, m in modules.items()}

    def check():
        if dict(model.named_modules()) != modules:
            return "other modules"
        state = model.state_dict()
        if state.keys() != before.keys():
            return "other tensors"
        wrong = [k for k, v in state.items() if not torch.equal(v, before[k])]
        if wrong:
            return f"other numbers in {wrong[0]}"
        if any(p.grad is not None for p in model.parameters()):
            return "gradients are left"
        if {n: (p, p.requires_grad) for n, p in model.named_parameters()} != flags:
            return "frozen or thawed"
        if {n: m.training for n, m in modules.items()} != modes:
            return "another mode"
        if {n: _hooks(m) for n, m in modules.items()} != hooks:
            return "hooks are left"
        return ""

    return check


def _hooks(module):
    return {k: len(v) for k, v in vars(module).items() if "_hooks" in k}


class Interrupted(KeyboardInterrupt):
    pass


HOME = os.path.dirname(hra.__file__)


@contextlib.contextmanager
def interrupt(n):
    """Raise Interrupted at the n-th line inside hra/; counts the lines in what it
    gives. A task that does not reach the n-th line is not interrupted.
    """
    lines, files = [0], {}

    def trace(frame, event, arg):
        name = frame.f_code.co_filename
        if name not in files:
            files[name] = name.startswith(HOME)
        if not files[name]:
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == n:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def attack_lines(prepare, check, cases=None, seed=0):
    """([what is wrong after an interrupt, with its line], interrupts): task() of
    `prepare()` → task is interrupted at every line that it runs inside hra/, or at so
    many `cases`, evenly spread; then `check(task's result or None)` says what is wrong.
    """
    task = prepare()
    with interrupt(0) as lines:
        result = task()
    wrong = check(result)
    bad, done, n = [f"without an interrupt: {wrong}"] if wrong else [], 0, lines[0]
    places = range(1, n + 1)
    if cases is not None and cases < n:
        step, rng = n / cases, random.Random(seed)
        places = [int(i * step + rng.random() * step) + 1 for i in range(cases)]
    for place in places:
        task, result = prepare(), None
        try:
            with interrupt(place):
                result = task()
        except Interrupted:
            done += 1
        wrong = check(result)
        if wrong:
            bad.append(f"line {place} of {n}: {wrong}")
    gc.collect()  # a file that an interrupt left open is closed here
    return bad, done


class Small(nn.Module):
    """Two layers and a norm; its loss is what `probe` asks for."""

    def __init__(self):
        super().__init__()
        self.net = base("LoRA")

    def forward(self, x):
        class Out:
            loss = self.net(x).square().mean()

        return Out


LINES = ("LoRA", "SHiRA", "VeRA", "PRANC", "ReLoRA", "Houlsby", "PrefixTuning")


def attack_interrupts(folder, cases=None, seed=0, say=lambda *_: None):
    """attach, load, fuse, probe, detach, merge and Switch, with an interrupt at every
    line (or at `cases` of each): the model is as it was, or for detach and merge all
    plain or all adapted.
    """
    bad, count = [], 0

    def run(what, prepare, check):
        nonlocal count
        found, done = attack_lines(prepare, check, cases, seed)
        bad.extend(f"{what}: {line}" for line in found)
        count += done
        say(f"{what}: {done} interrupts, {len(found)} wrong")

    for kind in LINES:
        whole = kind in WHOLE
        model = hra.zoo.gpt2("random").eval() if whole else Small().eval()
        if not whole:
            model.net[3].weight.requires_grad_(False)
        same = unchanged(model)
        also = "" if whole else r"net\.3"
        path = folder / kind
        tuned = shaken(model, kind, also=also)
        tuned.save(path)
        tuned.detach()

        def back(tuned, same=same):
            if tuned is not None:
                tuned.detach()
            return same()

        def attach(model=model, kind=kind, also=also):
            return lambda: hra.attach(
                model, method_of(kind), also=also, **METHODS[kind]
            )

        run(f"attach {kind}", attach, back)
        run(
            f"load {kind}",
            lambda model=model, path=path: lambda: hra.load(model, path),
            back,
        )

        held = [None]

        def detach(model=model, path=path, held=held):
            held[0] = hra.load(model, path)
            return held[0].detach

        def plain_or_adapted(_, model=model, same=same, held=held):
            own = [m for m in model.modules() if isinstance(m, Method)]
            if own:
                if not held[0].parts or len(own) != len(held[0].parts):
                    return f"{len(own)} adapters in it, {len(held[0].parts)} held"
                held[0].detach()
            elif held[0].parts:
                return "plain, and the adapters are held"
            return same()

        run(f"detach {kind}", detach, plain_or_adapted)
        if method_of(kind).no_delta:
            continue
        x = torch.ones(2, 6)

        def merge(path=path, held=held, x=x):
            model = Small().eval()
            held[:] = [hra.load(model, path), None]
            held[1] = model.net(x).detach(), dict(held[0].parts), unchanged(Small())
            return held[0].merge

        def merged_or_adapted(_, held=held, x=x):
            tuned, (want, parts, _) = held
            own = [m for m in tuned.model.modules() if isinstance(m, Method)]
            if len(own) not in (0, len(parts)) or bool(own) != bool(tuned.parts):
                return f"{len(own)} of {len(parts)} adapters are left"
            off = (tuned.model.net(x) - want).abs().max().item()
            if not off < 1e-5:
                return f"another map, by {off:.1e}"
            if own:
                fresh = Small().eval()
                state = tuned.detach().state_dict()
                if any(
                    not torch.equal(state[k], v) for k, v in fresh.state_dict().items()
                ):
                    return "another model after detach"
            return ""

        run(f"merge {kind}", merge, merged_or_adapted)
        plain = folder / f"{kind}-plain"
        tuned = shaken(model, kind)
        tuned.save(plain)
        tuned.detach()

        def fuse(model=model, plain=plain):
            return lambda: hra.fuse(model, {plain: 0.5})

        run(f"fuse {kind}", fuse, back)

        def switch(model=model, held=held, path=path, plain=plain):
            held[:] = [hra.Switch(model)]

            def task(s=held[0]):
                for p in (path, plain, path):
                    s.to(p)
                s.off()

            return task

        def off(_, held=held, same=same):
            held[0].off()
            return same()

        run(f"Switch {kind}", switch, off)
    model = Small()
    same = unchanged(model)

    def probe(model=model):
        batches = [{"x": torch.ones(2, 6)}, {"x": torch.eye(6)}]
        return lambda: hra.probe(model, batches, progress=False)

    run("probe", probe, lambda _: same())
    return bad, count


# ---- threads -----------------------------------------------------------------------


def attack_threads(rounds, folder):
    """Two threads drive one Switch between three files; then `off`."""
    bad, model = [], Small().eval()
    paths = []
    for kind in ("SHiRA", "LoRA", "SHiRA-weight"):
        paths.append(folder / f"{kind}-thread")
        tuned = shaken(model, kind)
        tuned.save(paths[-1])
        tuned.detach()
    same, before = unchanged(model), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for n in range(rounds):
            switch = hra.Switch(model)

            def drive(seed, n=n, switch=switch):
                rng = random.Random(2 * n + seed)
                for _ in range(12):
                    switch.to(rng.choice(paths))

            threads = [threading.Thread(target=drive, args=(k,)) for k in (0, 1)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            switch.off()
            if same():
                bad.append(f"round {n}: {same()}")
    finally:
        sys.setswitchinterval(before)
    return bad, rounds


# ---- checkpoints -------------------------------------------------------------------

STEPS = 12


def run(path, seed=0, kind="SHiRA", **kw):
    """A run of fit with a checkpoint at every step: (adapters, log)."""
    torch.manual_seed(seed)
    model = hra.zoo.gpt2("random")
    tuned = hra.attach(model, method_of(kind), targets="c_fc", **METHODS[kind])
    g = torch.Generator().manual_seed(3)
    ids = [torch.randint(256, (2, 12), generator=g) for _ in range(STEPS)]
    batches = [{"input_ids": i, "labels": i} for i in ids]
    kw = {"checkpoint": path, "every": 1, "progress": False} | kw
    return tuned, hra.fit(tuned, batches, STEPS, 1e-2, **kw)


def attack_checkpoints(flips, kills, folder, seed=0):
    """One bit of a checkpoint flips, its end is gone: refused, whatever the bit. The
    process is killed in the middle: what is there resumes to where an unbroken run
    ends, to the bit.
    """
    bad, rng, path = [], random.Random(seed), folder / "c"
    whole, log = run(path)
    want = {k: v.clone() for k, v in whole.state_dict().items()}
    path.unlink()
    run(path, callback=lambda log: len(log.steps) < 5)
    good = path.read_bytes()
    # every byte of what stands before the torch file, and others anywhere
    places = [(i, rng.randrange(8)) for i in range(90)]
    while len(places) < flips:
        places.append((rng.randrange(len(good)), rng.randrange(8)))
    damaged = []
    for at, bit in places:
        new = bytearray(good)
        new[at] ^= 1 << bit
        damaged.append((f"bit {bit} of byte {at}", bytes(new)))
    for n in (0, 1, 17, 40, 90, len(good) // 2, len(good) - 1):
        damaged.append((f"its first {n} bytes", good[:n]))
    damaged.append(("a byte more", good + b"\0"))
    tuned = hra.attach(
        hra.zoo.gpt2("random"), hra.SHiRA, targets="c_fc", **METHODS["SHiRA"]
    )
    opt = torch.optim.AdamW(tuned.param_groups(1e-2))
    setting = torch.load(_body(good), weights_only=True)["setting"]
    mine = {k: setting[k] for k in setting if k not in ("base", "sites", "hyper")}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for what, raw in damaged:
        path.write_bytes(raw)
        keeper = hra.train.Checkpoint(path, dict(mine), tuned, opt, scaler, hra.Log())
        try:
            keeper.resume()
        except ValueError:
            continue
        except Exception as e:
            bad.append(f"{what}: {type(e).__name__}: {e}")
        else:
            bad.append(f"{what}: accepted")
    path.write_bytes(good)
    keeper = hra.train.Checkpoint(path, dict(mine), tuned, opt, scaler, hra.Log())
    if keeper.resume() != 5:
        bad.append("the good one is not resumed")
    lasts = []
    for n in range(kills):
        path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                run(path)
            os._exit(0)
        began = time.perf_counter()
        aim = rng.randrange(STEPS)  # so many steps are written, then a moment more
        while _steps(path) < aim and time.perf_counter() - began < 60:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lasts.append(_steps(path))
        tuned, again = run(path)
        if again.losses != log.losses:
            bad.append(f"kill {n} after {lasts[-1]} steps: other losses")
        if any(not torch.equal(v, want[k]) for k, v in tuned.state_dict().items()):
            bad.append(f"kill {n} after {lasts[-1]} steps: other numbers")
    return bad, len(damaged) + kills


def _body(raw):
    from io import BytesIO

    return BytesIO(raw[len(hra.train.MAGIC) + 65 :])


def _steps(path):
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return 0
    return len(torch.load(_body(raw), weights_only=True)["log"]["steps"])
