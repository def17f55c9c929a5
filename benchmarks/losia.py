"""A training step of LoSiA-Pro beside LoRA's: outside a slot, in one, and over all the
slots of the model; the two GPT-2s of `benchmarks.methods`.

    python -m benchmarks.losia [--rounds 15] [--model a b] [--json FILE]

p = 1/8 and T = 50. Ratios to full fine-tuning within a round, medians; one process, one
thread, the contenders take turns. BitFit is the floor: what no choice of trained
numbers saves. In a slot one block of L watches; "amortised" is the step of a run, in
which always one of the L blocks is in its slot, with the move at the slot's end spread
over T steps. "count": multiplications of the adapted layers, full fine-tuning's 6 d_out
d_in a token as 1. With p² of one product of three,

    LoSiA-Pro   4 + 2 p²      LoRA   4 + 6 r (d_out + d_in) / (d_out d_in)

so at p = 1/8 no count is more than a third below that of full fine-tuning, nor LoSiA-
Pro's more than 2 % below that of a LoRA of low rank. "saved": MiB that autograd keeps,
"predicted" (`memory.predict`) and measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

import hra
from benchmarks.methods import LENGTH, MODELS, TARGETS, Contender, base
from hra import memory

P, T = 1 / 8, 50
FULL, PRO, SLOT = "full", "LoSiA-Pro", "LoSiA-Pro, slot"
CONTENDERS: dict[str, tuple[type[hra.Method] | None, dict[str, Any]]] = {
    FULL: (None, {}),
    "BitFit": (hra.BitFit, {}),
    PRO: (hra.LoSiAPro, {"p": P, "period": T}),
    SLOT: (hra.LoSiAPro, {"p": P, "period": T}),
    "LoRA r=8": (hra.LoRA, {"r": 8}),
    "LoRA r=64": (hra.LoRA, {"r": 64}),
    "LoRA-FA r=64": (hra.LoRAFA, {"r": 64}),
}


class Tuned(Contender):
    """A contender whose adapters are driven too."""

    tuned: Any

    def __init__(self, label: str, name: str) -> None:
        method, hyper = CONTENDERS[label]

        def make(name: str) -> nn.Module:
            model = base(name)
            self.tuned = method and hra.attach(model, method, targets=TARGETS, **hyper)
            return model

        super().__init__(label, make, name)
        if label == SLOT:
            for a in self.losia():
                a.watch(a.slot == 0)

    def losia(self) -> list[Any]:
        return list(self.tuned.adapters.values())

    def step(self) -> float:
        begin = time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.opt.step()
        if self.label == SLOT:
            for a in self.losia():
                if a.phase:
                    a.record()
        self.opt.zero_grad()
        return time.perf_counter() - begin

    def move(self) -> float:
        """Seconds of the slot's end: where the subnets go, and the next slot."""
        begin = time.perf_counter()
        watching = [a for a in self.losia() if a.phase]
        for a in watching:
            a.move(T, self.opt)
            a.watch(False)
        took = time.perf_counter() - begin
        for a in watching:
            a.watch(True)
        return took


def multiplications(method: Any, hyper: dict[str, Any], shapes: list[Any]) -> float:
    """Of the adapted layers, full fine-tuning's as 1."""
    total = sum(d_out * d_in for d_out, d_in in shapes)
    if method is None:
        return 1.0
    if method is hra.LoSiAPro:
        return (4 + 2 * hyper["p"] ** 2) / 6
    if method is hra.BitFit:
        return 4 / 6
    # LoRA-FA leaves out the product that gives ∂A
    extra = (3 * sum(map(sum, shapes))) - (
        sum(d_in for _, d_in in shapes) if method is hra.LoRAFA else 0
    )
    return (4 * total + 2 * hyper["r"] * extra) / (6 * total)


def table(name: str, rounds: int) -> dict[str, dict[str, float]]:
    made = {k: Tuned(k, name) for k in tqdm(CONTENDERS, desc=f"({name})")}
    rows: dict[str, dict[str, float]] = {}
    shapes = [(a.d_out, a.d_in) for a in made[PRO].losia()]
    for k, c in made.items():
        target = c.tuned or c.model
        rows[k] = {
            "saved": memory.measure(target, c.batch).activations.bytes / 2**20,
            "predicted": memory.predict(target, c.batch).activations.bytes / 2**20,
            "count": multiplications(*CONTENDERS[k], shapes),
        }
        c.step()
    moves, ended, names = [], [], list(made)
    for k in tqdm(range(rounds), desc=f"({name}) rounds", leave=False):
        order = names[k % len(names) :] + names[: k % len(names)]
        took = {n: made[n].step() for n in order}
        for n, t in took.items():
            made[n].ratios.append(t / took[FULL])
        moves.append(made[SLOT].move() / took[FULL])
        # all blocks alike: in every step of a run one of them is in its slot
        ended.append(made[SLOT].ratios[-1] + moves[-1] / T)
    for n, c in made.items():
        rows[n]["step"] = statistics.median(c.ratios)
    rows["LoSiA-Pro, amortised"] = rows[SLOT] | {"step": statistics.median(ended)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losia")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tables = {name: table(name, args.rounds) for name in args.model}
    for name, rows in tables.items():
        config, batch = MODELS[name]
        print(f"\n({name}) d {config['n_embd']}, batch {batch} x {LENGTH}")
        print(f"{'':<21}{'step':>6}{'count':>7}{'saved':>8}{'predicted':>10} MiB")
        for label, r in rows.items():
            print(
                f"{label:<21}{r['step']:6.2f}{r['count']:7.2f}{r['saved']:8.1f}"
                f"{r['predicted']:10.1f}"
            )
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
