"""Study: GPT-2 tiny, from the addresses to Moby Dick. How far magnitudes and directions
of the weights move under full fine-tuning, LoRA, and DoRA with and without the constant
norm.

    python -m hra.studies.directions           # or: make experiments NAME=directions

Liu et al., 2024, arXiv:2402.09353, section 3: of a weight with rows w₁ … w_k, before
and after, ΔM is the mean of |‖wᵢ′‖ − ‖wᵢ‖|, ΔD the mean of 1 − cos(wᵢ′, wᵢ). A run is
looked at every 15 steps, on each part of each of the six blocks. The rates were chosen
on the validation chapters with seed 100, which no reported run uses: those of full
fine-tuning and LoRA in `lora_grid`, that of DoRA in `intruders`; the whole gradient has
the rate of DoRA, from which it differs in this alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

import hra
from hra.studies import moby
from hra.studies.study import Study, record

SEEDS, EVERY = (0, 1, 2, 3, 4), 15
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FullFT": ("FullFT", {}),
    "LoRA r=2": ("LoRA", {"r": 2}),
    "DoRA r=2": ("DoRA", {"r": 2}),
    "DoRA r=2, whole gradient": ("DoRA", {"r": 2, "detach_norm": False}),
}
# GPT-2 has its queries, keys and values in one weight: its thirds are the parts q, k, v
PARTS = ("q", "k", "v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
# what is recorded of a part; M and D also by columns, one norm per input
FIELDS = ("M", "D", "relative M", "size", "share", "M by columns", "D by columns")


def moved(W0: Tensor, W: Tensor, dim: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """‖w‖ before, the change of ‖w‖, and 1 − cos, of each row (dim 1) or column (0)."""
    c, m = W0.norm(dim=dim), W.norm(dim=dim)
    return c, m - c, 1 - (W0 * W).sum(dim) / (c * m)


def look(W0: Tensor, W: Tensor) -> list[float]:
    """FIELDS. size: mean of ‖wᵢ′ − wᵢ‖²; share: that of the magnitudes in it."""
    W0, W = W0.double(), W.double()
    c, dm, D = moved(W0, W)
    _, columns, turned = moved(W0, W, 0)
    size = (W - W0).square().sum(1).mean()
    M = dm.abs()
    rows = (M.mean(), D.mean(), (M / c).mean(), size, dm.square().mean() / size)
    found = (*rows, columns.abs().mean(), turned.mean())
    return [float(f"{float(x):.3g}") for x in found]


@torch.no_grad()
def plane(tuned: hra.Adapted) -> dict[str, list[list[float]]]:
    """{part: FIELDS block by block}, as the weights stand now."""
    out: dict[str, list[list[float]]] = {p: [] for p in PARTS}
    for site, adapter in tuned.adapters.items():
        a = cast(hra.Adapter, adapter)
        W0, delta = a.W0, a.delta_weight()
        names = [p for p in PARTS[3:] if site.endswith(p)] or PARTS[:3]
        for p, old, change in zip(
            names, W0.chunk(len(names)), delta.chunk(len(names)), strict=True
        ):
            out[p].append(look(old, old + change))
    return out


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    model = hra.zoo.gpt2("tiny")
    tuned = moby.attach(model, moby.tokens(), method, seed, hyper)
    seen: list[dict[str, list[list[float]]]] = []

    def every(log: hra.train.Log) -> None:
        if len(log.steps) % EVERY == 0:
            seen.append(plane(tuned))

    log = hra.fit(
        tuned, moby.batches(seed), moby.STEPS, lr, progress=False, callback=every
    )
    found: dict[str, Any] = {"trained": tuned.num_trainable}
    found["bits"] = moby.bits(model, part)
    found["losses"] = [round(x, 3) for x in log.losses[::2]]
    return found | {"plane": {p: [s[p] for s in seen] for p in PARTS}}


STUDY = Study("directions", run, moby.SETTING | {"every": EVERY}, SEEDS)


def main(study: Study) -> None:
    rates = record("intruders")["lr"]
    best = {k: rates[k.split(",")[0]] for k in SETTINGS}
    study.do(moby.jobs(best.items(), SEEDS))
    tuned = record("intruders")["protocol"]["chosen"]
    chosen = [c for c in tuned if c["setting"] in SETTINGS]
    study.protocol(chosen, moby.ON, study="intruders")
    study.note(before=moby.before(), lr=best)


if __name__ == "__main__":
    STUDY.start(main)
