"""What an adapter that stays beside the weights costs at inference: a forward pass as a
ratio to the plain model's.

    python -m benchmarks.latency [--model tiny a b] [--seconds 20] [--json FILE]

Random GPT-2s of three shapes (gpt2-tiny's and the two of `benchmarks.methods`), batches
of 1 and 32 rows, rows of 16 to 128 tokens; one process, one thread. In a round every
contender has one pass, in an order that rotates; a ratio is taken within a round, the
median of the rounds is reported with its 95 % interval (of order statistics). "plain
again" is the plain model a second time: how far it is from 1 is the noise.

"few": about as many trained numbers as the model has biases, as in the study
`before_lora`. "many": the share of the width that the LoRA paper's table 1 has (r = 224
for d = 1024, one adapter a block; half of it where there are two). The book reads
hra/studies/records/latency.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from math import comb
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

import hra
from benchmarks.methods import MODELS as LARGER
from hra.studies import machine

TINY = {"n_embd": 192, "n_layer": 6, "n_head": 6, "vocab_size": 2048}
SHAPES: dict[str, dict[str, int]] = {"tiny": TINY} | {
    k: config for k, (config, _) in LARGER.items()
}
BATCHES, LENGTHS, CONTEXT = (1, 32), (16, 32, 64, 128), 256
PLAIN, FEWEST = "plain", 6
BOTH, MLP = r"attn\.c_proj|mlp\.c_proj", r"mlp\.c_proj"


def model(name: str) -> nn.Module:
    return hra.zoo.gpt2("random", n_positions=CONTEXT, **SHAPES[name]).eval()


def contenders(name: str) -> dict[str, nn.Module]:
    """Name → model; every one is a model of its own."""
    d, layers = SHAPES[name]["n_embd"], SHAPES[name]["n_layer"]
    many = 7 * d // 32
    hung: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "LoRA, beside": (hra.LoRA, "c_attn|c_fc", {"r": 1}),
        "LinAdapter, few": (hra.LinAdapter, MLP, {"r": 3}),
        "LinAdapter, many": (hra.LinAdapter, MLP, {"r": many}),
        "Houlsby, few": (hra.Houlsby, BOTH, {"r": 2}),
        "Houlsby, many": (hra.Houlsby, BOTH, {"r": many // 2}),
        "prefix": (hra.PrefixTuning, "", {"n": 5}),
        "prompt": (hra.PromptTuning, "", {"n": 9 * layers}),
    }
    made = {PLAIN: model(name), "plain again": model(name)}
    merged = hra.attach(model(name), hra.LoRA, "c_attn|c_fc", r=1).merge()
    made["LoRA, merged"] = merged
    for label, (method, where, hyper) in hung.items():
        made[label] = model(name)
        hra.attach(made[label], method, where, **hyper)
    return made


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median and the order statistics between which it lies in 95 of 100 cases."""
    x, n = sorted(ratios), len(ratios)
    k, tail = 0, 0.5**n
    while tail + comb(n, k + 1) * 0.5**n <= 0.025:
        k += 1
        tail += comb(n, k) * 0.5**n
    return statistics.median(x), x[k], x[n - 1 - k]


@torch.inference_mode()
def measure(
    every: dict[str, nn.Module], batch: int, length: int, seconds: float
) -> dict[str, Any]:
    ids = torch.randint(
        256, (batch, length), generator=torch.Generator().manual_seed(0)
    )
    names = list(every)
    ratios: dict[str, list[float]] = {k: [] for k in names}

    def once(name: str) -> float:
        begin = time.perf_counter()
        every[name](input_ids=ids)
        return time.perf_counter() - begin

    for name in names:
        once(name)
    plain = min(once(PLAIN) for _ in range(2))
    rounds = round(seconds / (len(names) * plain))
    rounds = max(FEWEST, min(200, rounds))
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            names.append(names.pop(0))  # nobody always comes after the same
            times = {name: once(name) for name in names}
            for name, t in times.items():
                ratios[name].append(t / times[PLAIN])
    finally:
        gc.enable()
    found = {k: [round(v, 4) for v in interval(r)] for k, r in ratios.items()}
    return {"rounds": rounds, "ratios": {k: found[k] for k in every}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency")
    parser.add_argument("--model", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--seconds", type=float, default=20.0, help="of a cell")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()  # at the start, over 1, 5 and 15 minutes: what else ran
    cells: dict[str, dict[str, Any]] = {}
    for name in args.model:
        every = contenders(name)
        for batch in BATCHES:
            for length in tqdm(LENGTHS, desc=f"{name}, batch {batch}"):
                found = measure(every, batch, length, args.seconds)
                cells[f"{name} {batch} {length}"] = found
    for key, found in cells.items():
        print(f"\n{key}: {found['rounds']} rounds, ratio to the plain model")
        for label, (mid, low, high) in found["ratios"].items():
            print(f"{label:<18}{mid:6.3f}  ({low:.3f} to {high:.3f})")
    if args.json:
        head = {
            "command": "python -m benchmarks.latency",
            "load": [round(x, 1) for x in load],
            "machine": f"{machine()}, torch {torch.__version__}, one thread",
            "date": time.strftime("%Y-%m-%d"),
            "shapes": {k: SHAPES[k] for k in args.model},
            "lengths": LENGTHS,
            "batches": BATCHES,
        }
        lines = [f'"{k}":{json.dumps(v)}' for k, v in (head | {"cells": {}}).items()]
        runs = ",\n".join(f'"{k}":{json.dumps(v)}' for k, v in cells.items())
        lines[-1] = '"cells":{\n' + runs + "\n}"
        args.json.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
