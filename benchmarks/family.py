"""SHiRA's relatives on the clock: a training step in each phase, and a change from one
adapter to another.

    python -m benchmarks.family [--rounds 60] [--json FILE]

GPT-2 tiny, 4 × 128 tokens, the densities and ranks of the study `relatives`, scores by
lot: not where the entries are matters here, but how many. One process, one thread; in
a round every contender has one step (or one change), in an order that rotates;
ratios to full fine-tuning are taken within a round, their medians reported with
95 % intervals (of order statistics). "FullFT again" is full fine-tuning a second time:
how far it is from 1 is the noise. The book reads hra/studies/records/family.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import hra
from benchmarks.latency import interval
from hra.studies import machine, moby, relatives

TASK, BATCH, LENGTH = "text", 4, 128
DENSITY, R = relatives.DENSITY[TASK], relatives.RANK[TASK]
FULL, QUIET, MOVE = "FullFT", 8, 15  # steps of SpIEL without a watch, and with a move


def by_lot(site: str, W: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, site)))
    return torch.rand(W.shape, generator=generator)


SPARSE: dict[str, Any] = {"density": DENSITY}
SCORED = SPARSE | {"scores": by_lot}
MOVES = SPARSE | relatives.MOVES
# contender: method, its numbers, where
KINDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    FULL: (hra.FullFT, {}, moby.ALL),
    "FullFT again": (hra.FullFT, {}, moby.ALL),
    "LoRA": (hra.LoRA, {"r": R}, moby.ALL),
    "PartialFT": (hra.PartialFT, SPARSE, moby.ALL),
    "SHiRA": (hra.SHiRA, SPARSE, moby.ALL),
    "FISH": (hra.FISH, SCORED, moby.ALL),
    "LTSFT": (hra.LTSFT, SCORED, moby.ALL),
    "DiffPruning, gates": (hra.DiffPruning, SPARSE, moby.ALL),
    "DiffPruning": (hra.DiffPruning, SPARSE, moby.ALL),
    "SpIEL, AG": (hra.SpIEL, MOVES, moby.ALL),
    "SpIEL, AG, watching": (hra.SpIEL, MOVES, moby.ALL),
    "SpIEL, AG, moving": (hra.SpIEL, MOVES, moby.ALL),
    "SpIEL, MA": (hra.SpIEL, MOVES | {"grow": "MA"}, moby.ALL),
    "SpIEL, MA, moving": (hra.SpIEL, MOVES | {"grow": "MA"}, moby.ALL),
    "RoSA": (hra.RoSA, SCORED | {"r": R // 2, "density": DENSITY / 2}, moby.ALL),
    "SoRA": (hra.SoRA, {"r": R, "xi": 0.0}, moby.ALL),
    "SparseAdapter": (
        hra.SparseAdapter,
        {"r": relatives.BOTTLENECK[TASK], "keep": 0.24},
        relatives.OUTPUTS[TASK],
    ),
    "SparseAdapterLoRA": (
        hra.SparseAdapterLoRA,
        {"r": 4 * R, "keep": 0.25, "rule": "er"},
        moby.ALL,
    ),
}
ONCE = ("again", "gates", "watching", "moving")  # phases that no file has


class Contender:
    """A model, its optimizer, one step in one phase."""

    def __init__(self, label: str) -> None:
        method, hyper, where = KINDS[label]
        self.tuned = hra.attach(hra.zoo.gpt2("tiny"), method, where, seed=0, **hyper)
        self.tuned.model.train()
        groups = self.tuned.param_groups(1e-4)
        self.opt = torch.optim.AdamW(groups, weight_decay=0.0)
        self.watches, self.moves = "watching" in label, "moving" in label
        every = list(self.tuned.adapters.values())
        if label == "DiffPruning":
            harden(every)
            groups = self.tuned.param_groups(1e-4)
            self.opt = torch.optim.AdamW(groups, weight_decay=0.0)
        self.grown = every if "AG" in label and self.moves else []
        ids = torch.randint(
            2048, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0)
        )
        self.batch = {"input_ids": ids, "labels": ids}
        for a in every:
            if self.watches:
                a.watch(True)
            if self.moves:
                a.counts[0] = 1  # the first move is of all entries

    def step(self) -> float:
        for a in self.grown:
            a.watch(True)
        begin = time.perf_counter()
        loss = self.tuned.model(**self.batch).loss + self.tuned.penalty()
        loss.backward()
        self.opt.step()
        at = 2 if self.watches else MOVE if self.moves else QUIET
        self.tuned.after_step(at, self.opt)
        self.opt.zero_grad()
        return time.perf_counter() - begin


def harden(adapters: list[Any]) -> None:
    """Which entries are left is drawn by lot; of zeros the first would be."""
    for a in adapters:
        a.w.data.copy_(by_lot(a.site, a.w))
    hra.DiffPruning.harden(adapters)


def changes(folder: Path) -> dict[str, Callable[[], float]]:
    """Of what has a file and a ΔW: a change from one of two files to the other."""
    made = {}
    for label, (method, hyper, where) in KINDS.items():
        if label.endswith(ONCE) or label == "SparseAdapter":
            continue
        files = []
        for seed in range(2):
            tuned = hra.attach(hra.zoo.gpt2("tiny"), method, where, seed=seed, **hyper)
            if method is hra.DiffPruning:
                harden(list(tuned.adapters.values()))
            g = torch.Generator().manual_seed(seed)
            for p in (p for a in tuned.adapters.values() for p in a.parameters()):
                if p.requires_grad:
                    p.data.add_(torch.randn(p.shape, generator=g), alpha=1e-3)
            files.append(folder / f"{label}-{seed}.safetensors")
            tuned.save(files[-1])
        made[label] = changer(files)
    return made


def changer(files: list[Path]) -> Callable[[], float]:
    switch, turn = hra.Switch(hra.zoo.gpt2("tiny")), [0]

    def change() -> float:
        turn[0] ^= 1
        begin = time.perf_counter()
        switch.to(files[turn[0]])
        return time.perf_counter() - begin

    change(), change()  # both are loaded
    return change


def rounds_of(
    every: dict[str, Callable[[], float]], rounds: int, what: str
) -> tuple[dict[str, list[float]], float]:
    """Ratios to full fine-tuning (median, lower, upper), and its milliseconds."""
    names = list(every)
    ratios: dict[str, list[float]] = {k: [] for k in names}
    full = []
    for name in names:
        every[name]()
    gc.collect()
    gc.disable()
    try:
        for _ in tqdm(range(rounds), desc=what):
            names.append(names.pop(0))
            times = {k: every[k]() for k in names}
            full.append(times[FULL])
            for k, t in times.items():
                ratios[k].append(t / times[FULL])
    finally:
        gc.enable()
    found = {k: [round(v, 4) for v in interval(ratios[k])] for k in every}
    return found, round(1000 * interval(full)[0], 3)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()  # at the start, over 1, 5 and 15 minutes: what else ran
    steps = {k: Contender(k).step for k in KINDS}
    found: dict[str, Any] = {}
    found["step"], ms = rounds_of(steps, args.rounds, "steps")
    found["milliseconds"] = {"step": ms}
    with tempfile.TemporaryDirectory() as folder:
        own = changes(Path(folder))
        found["switch"], ms = rounds_of(own, 5 * args.rounds, "changes")
    found["milliseconds"]["switch"] = ms
    for what in ("step", "switch"):
        print(f"\n{what}: ratio to FullFT, {found['milliseconds'][what]} ms")
        for label, (mid, low, high) in found[what].items():
            print(f"{label:<20}{mid:6.3f}  ({low:.3f} to {high:.3f})")
    if args.json:
        head = {
            "command": "python -m benchmarks.family",
            "load": [round(x, 1) for x in load],
            "machine": f"{machine()}, torch {torch.__version__}, one thread",
            "date": time.strftime("%Y-%m-%d"),
            "rounds": args.rounds,
        }
        lines = ",\n".join(f'"{k}":{json.dumps(v)}' for k, v in (head | found).items())
        args.json.write_text("{" + lines + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
