"""Changing from one adapter to another: restore A, write B. Beside two bare sorted
overwrites, beside a dense copy, and beside PEFT.

    python -m benchmarks.switch [--sizes 512 1024 2048 4096 8192] [--rounds 18]
    [--threads 1 2] [--json FILE]

One d × d fp32 layer, SHiRA at 1 %. One process; the contenders take turns, in an order
that rotates, each with cold caches, as a change finds them after a forward pass of the
model. Medians over the rounds, in milliseconds and as multiples of the bare pair.
"dense copy_" writes a whole weight that was computed beforehand: what an adapter of any
rank can do, at the price of a copy of the weight per adapter. PEFT's SHiRA,
Super-Tuning (its quickest sparse tuner, 1 %) and LoRA (r = 32) switch by unmerge and
merge. The book reads hra/studies/records/switch.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

import hra
from hra.studies import machine

DENSITY = 0.01
COLD = 128 * 2**20  # bytes read before each change: more than caches hold


def ours(d: int, folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(a switch from one file to the other and back next time, two bare overwrites that
    do the same).
    """
    model = nn.Sequential(nn.Linear(d, d, bias=False)).requires_grad_(False)
    files = []
    for seed in range(2):
        tuned = hra.attach(model, hra.SHiRA, density=DENSITY, seed=seed)
        nn.init.normal_(tuned.adapters["0"].values, std=1e-3)
        files.append(folder / f"{d}-{seed}.safetensors")
        tuned.save(files[-1])
        tuned.detach()
    switch, turn = hra.Switch(model), [0]

    def change() -> None:
        turn[0] ^= 1
        switch.to(files[turn[0]])

    for _ in range(2):
        change()
    # the bare pair goes to and fro like the switch, in the same memory: how the pages
    # of two weights lie can make one twice as slow as the other
    (a, b), again = [writes[0] for writes in switch._files.values()], [0]
    flat = a[0].data.view(-1)

    def bare() -> None:
        again[0] ^= 1
        (_, away, old, _), (_, to, _, new) = (a, b) if again[0] else (b, a)
        flat.index_copy_(0, away, old)
        flat.index_copy_(0, to, new)

    return change, bare


def dense(d: int) -> Callable[[], None]:
    """A change from one adapted weight to another, both kept whole."""
    weight, kept, turn = torch.randn(d, d), [torch.randn(d, d) for _ in range(2)], [0]

    def change() -> None:
        turn[0] ^= 1
        weight.copy_(kept[turn[0]])

    return change


def theirs(d: int, kind: str) -> Callable[[], None] | None:
    """Unmerge and merge of one PEFT adapter."""
    try:
        import peft
    except ImportError:
        return None
    config: Any = {
        "SHiRA": lambda: peft.ShiraConfig(
            r=round(DENSITY * d / 2), target_modules=["0"]
        ),
        "Super-Tuning": lambda: peft.SupertuningConfig(
            sparsity=1 - DENSITY, target_modules=["0"]
        ),
        "LoRA": lambda: peft.LoraConfig(r=32, target_modules=["0"]),
    }[kind]()
    layer = peft.get_peft_model(
        nn.Sequential(nn.Linear(d, d, bias=False)), config
    ).base_model.model[0]
    layer.merge()

    def change() -> None:
        layer.unmerge()
        layer.merge()

    return change


def measure(d: int, rounds: int, folder: Path) -> dict[str, float]:
    change, bare = ours(d, folder)
    every = {"two bare overwrites": bare, "hra.Switch": change}
    every["dense copy_"] = dense(d)
    for kind in ("SHiRA", "Super-Tuning", "LoRA"):
        other = theirs(d, kind)
        if other is not None:
            every[f"PEFT {kind}"] = other
    times: dict[str, list[float]] = {k: [] for k in every}
    scratch, names = torch.ones(COLD // 4), list(every)
    for k in range(rounds + 2):
        names.append(names.pop(0))  # nobody always comes after the same
        for name in names:
            run = every[name]
            scratch.sum()
            begin = time.perf_counter()
            run()
            if k > 1:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {k: statistics.median(t) for k, t in times.items()}


def latency(rounds: int) -> dict[str, float]:
    """Forward time of gpt2-tiny on one window of 128 tokens, as a ratio to the plain
    model.
    """
    targets = "c_attn|c_proj|c_fc"
    models = {
        "plain": hra.zoo.gpt2("tiny"),
        "plain again": hra.zoo.gpt2("tiny"),
        "LoRA r=8, unfused": hra.zoo.gpt2("tiny"),
        "SHiRA 1 %, attached": hra.zoo.gpt2("tiny"),
        "SHiRA 1 %, switched": hra.zoo.gpt2("tiny"),
    }
    hra.attach(models["LoRA r=8, unfused"], hra.LoRA, targets=targets, r=8)
    hra.attach(
        models["SHiRA 1 %, attached"], hra.SHiRA, targets=targets, density=DENSITY
    )
    with tempfile.TemporaryDirectory() as folder:
        tuned = hra.attach(
            models["SHiRA 1 %, switched"], hra.SHiRA, targets=targets, density=DENSITY
        )
        tuned.save(Path(folder) / "a.safetensors")
        hra.Switch(tuned.detach()).to(Path(folder) / "a.safetensors")
    ids = torch.randint(2048, (1, 128), generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {k: [] for k in models}
    for k in range(4 * rounds):
        for name, model in models.items():
            begin = time.perf_counter()
            model(input_ids=ids)
            if k > 3:
                times[name].append(time.perf_counter() - begin)
    plain = statistics.median(times["plain"])
    return {name: statistics.median(t) / plain for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192]
    )
    parser.add_argument("--rounds", type=int, default=18)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()  # at the start, over 1, 5 and 15 minutes: what else ran
    threads_given = " ".join(map(str, args.threads))
    given = "" if args.threads == [1, 2] else f" --threads {threads_given}"
    command = f"python -m benchmarks.switch{given}"
    result: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for threads in args.threads:
            torch.set_num_threads(threads)
            for d in tqdm(args.sizes, desc=f"{threads} threads"):
                result.setdefault(str(threads), {})[str(d)] = measure(
                    d, args.rounds, Path(folder)
                )
    for threads_, sizes in result.items():
        print(f"\n{threads_} threads; milliseconds (multiples of the bare pair)")
        for d_, row in sizes.items():
            pair = row["two bare overwrites"]
            print(
                f"{d_:>5}  "
                + "  ".join(f"{k} {t:.3f} ({t / pair:.2f})" for k, t in row.items())
            )
    torch.set_num_threads(1)
    with torch.no_grad():
        ratios = latency(args.rounds)
    print(
        "\nforward pass of gpt2-tiny, one window, one thread, ratio to the plain model"
    )
    for name, ratio in ratios.items():
        print(f"{name:<22}{ratio:.2f}")
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "command": command,
                    "load": [round(x, 1) for x in load],
                    "machine": f"{machine()}, torch {torch.__version__}",
                    "date": time.strftime("%Y-%m-%d"),
                    "density": DENSITY,
                    "milliseconds": result,
                    "latency": ratios,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
