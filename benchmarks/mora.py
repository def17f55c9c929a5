"""A training step of MoRA's operators beside our LoRA's, at no more trained numbers:
on single layers and on the two GPT-2s of `benchmarks.methods`.

    python -m benchmarks.mora [--rounds 15] [--json FILE]

Ratios to LoRA r = 8 within a round, medians; one process, one thread, the contenders
take turns. "count" is the ratio of multiplications of one layer alone: W0 forward and
for ∂x; the branch forward, for ∂x and for what trains. With c applications of M a
token,

    LoRA   2 d_out d_in + 3 r (d_in + d_out)      MoRA   2 d_out d_in + 3 c r̂²

so an operator with c > 1 cannot be as fast as LoRA. "saved": what autograd keeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

import hra
from benchmarks.methods import MODELS, TARGETS, Contender, base
from hra import memory
from hra.methods.mora import OPERATORS

LAYERS, TOKENS, R = ((256, 256), (768, 768), (768, 3072), (2048, 2048)), 512, 8
# name: hyperparameters; the folded ones lose no input
CONTENDERS: dict[str, tuple[type[hra.Adapter], dict[str, Any]]] = {
    "LoRA": (hra.LoRA, {"r": R})
}
CONTENDERS |= {o: (hra.MoRA, {"r": R, "operator": o, "fold": True}) for o in OPERATORS}


def ratios(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median over the rounds of each contender's time over LoRA's."""
    for step in steps.values():
        step()
    seen: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for k in tqdm(range(rounds), leave=False):
        order = names[k % len(names) :] + names[: k % len(names)]
        took = {name: steps[name]() for name in order}
        for name in names:
            seen[name].append(took[name] / took["LoRA"])
    return {name: statistics.median(v) for name, v in seen.items()}


def count(a: Any) -> float:
    base = 2 * a.d_out * a.d_in
    lora = base + 3 * R * (a.d_out + a.d_in)
    own = lora if isinstance(a, hra.LoRA) else base + 3 * a.width * a.r_hat
    return own / lora


def layers(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for d_out, d_in in LAYERS:
        x = torch.randn(TOKENS, d_in, requires_grad=True)
        made = {k: c(nn.Linear(d_in, d_out), **h) for k, (c, h) in CONTENDERS.items()}

        def step(a: Any, x: torch.Tensor = x) -> float:
            begin = time.perf_counter()
            a(x).sum().backward()
            return time.perf_counter() - begin

        took = ratios({k: lambda a=a: step(a) for k, a in made.items()}, rounds)
        for k, a in made.items():
            kind, hyper = CONTENDERS[k]
            sizes = {"d_out": d_out, "d_in": d_in, "tokens": TOKENS}
            saved = memory.cost(kind, **sizes, **hyper).activations.bytes
            on = f"{d_out} x {d_in}"
            row = {"on": on, "method": k, "step": took[k], "count": count(a)}
            rows.append(row | {"saved": saved / 2**20})
    return rows


def models(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name in MODELS:
        made = {}
        for k, (kind, hyper) in CONTENDERS.items():

            def make(name: str, kind: Any = kind, hyper: Any = hyper) -> nn.Module:
                model = base(name)
                hra.attach(model, kind, targets=TARGETS, **hyper)
                return model

            made[k] = Contender(k, make, name)
        saved = {k: c.bytes()["saved"] for k, c in made.items()}
        took = ratios({k: c.step for k, c in made.items()}, rounds)
        rows += [
            {"on": f"({name})", "method": k, "step": took[k], "saved": saved[k] / 2**20}
            for k in made
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mora")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = layers(args.rounds) + models(args.rounds)
    print(f"{'on':>12} {'method':>11} {'step':>6} {'count':>6} {'saved MiB':>10}")
    for r in rows:
        counted = f"{r['count']:6.2f}" if "count" in r else " " * 6
        print(
            f"{r['on']:>12} {r['method']:>11} {r['step']:6.2f} {counted} "
            f"{r['saved']:10.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
