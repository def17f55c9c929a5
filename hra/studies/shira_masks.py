"""Study: GPT-2 tiny, from the addresses to Moby Dick. The five masks of SHiRA, LoRA of
rank 2 and full fine-tuning.

    python -m hra.studies.shira_masks          # or: make experiments NAME=shira_masks

SHiRA's density 1/72 over the four matrices of a block is exactly LoRA's 36,864 numbers
at rank 2; struct, made of whole rows, comes near. Bits per character are of the test
chapters; learning rates were chosen on the validation chapters with seed 100, which no
reported run uses. Masks grad and snip see 8 training batches. Of the first seed's runs
the singular values of what was learnt at the first of SITES are kept.
"""

from __future__ import annotations

from typing import Any

import torch

from hra.analysis import rank
from hra.studies import moby
from hra.studies.moby import ALL, CALIBRATION, LIMIT, STEPS, TUNING, attach
from hra.studies.study import Study, choose, interval

__all__ = ["ALL", "CALIBRATION", "LIMIT", "SEEDS", "SETTINGS", "STEPS", "attach"]

MASKS, SEEDS = ("struct", "rand", "weight", "grad", "snip"), (0, 1, 2, 3, 4)
DENSITY = 1 / 72
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FullFT": ("FullFT", {}),
    "LoRA r=2": ("LoRA", {"r": 2}),
}
SETTINGS |= {f"SHiRA {m}": ("SHiRA", {"mask": m, "density": DENSITY}) for m in MASKS}
LRS = {
    "FullFT": (3e-4, 1e-3, 3e-3),
    "LoRA": (3e-3, 1e-2, 3e-2),
    "SHiRA": (3e-3, 1e-2, 3e-2, 1e-1),
}
SITES = tuple(
    f"transformer.h.3.{s}"
    for s in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)


def summary(delta: torch.Tensor) -> dict[str, float | int]:
    """What was learnt at one site: support, the rank it allows, the rank there is, and
    how the energy spreads.
    """
    sigma = rank.spectrum(delta)
    energy = sigma.square()
    support = delta != 0
    return {
        "K": int(support.sum()),
        "rows": int(support.any(1).sum()),
        "columns": int(support.any(0).sum()),
        "structural": rank.structural_rank(support),
        "rank": int(torch.linalg.matrix_rank(delta.detach().double())),
        "stable": round(float(energy.sum() / energy[0]), 3),
        "top8": round(float(energy[:8].sum() / energy.sum()), 4),
        "norm": round(float(sigma.norm()), 4),
    }


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    tuned, found = moby.fine_tune(method, seed, lr, part, hyper)
    found["losses"] = found["losses"][::5]
    if part == "test":
        found["sites"] = {
            s: summary(tuned.adapters[s].delta_weight().detach()) for s in SITES
        }
    if part == "test" and seed == SEEDS[0]:
        sigma = rank.spectrum(tuned.adapters[SITES[0]].delta_weight().detach())
        found["spectrum"] = [float(f"{s:.3g}") for s in sigma]
    return found


SETTING = moby.SETTING | {"density": DENSITY, "calibration_batches": CALIBRATION}
STUDY = Study("shira_masks", run, SETTING, SEEDS)
record = STUDY.record


def rows() -> dict[str, tuple[float, float]]:
    """Of every setting, mean and half-width of the 95 % interval over the seeds."""
    runs = record()["runs"]
    return {k: interval([runs[f"{k} seed={s}"] for s in SEEDS]) for k in SETTINGS}


def main(study: Study) -> None:
    tuning = study.do(
        {
            f"{k} lr={lr}": {"setting": k, "seed": TUNING, "lr": lr}
            | {"part": "validation"}
            for k, (m, _) in SETTINGS.items()
            for lr in LRS[m]
        }
    )
    chosen = choose(tuning.values(), by=["setting"])
    study.protocol(chosen, moby.ON)
    best = {c["setting"]: c["best"] for c in chosen}
    study.do(
        {
            f"{k} seed={s}": {"setting": k, "seed": s, "lr": best[k], "part": "test"}
            for s in SEEDS
            for k in SETTINGS
        }
    )
    study.note(before=moby.before(), lr=best)


if __name__ == "__main__":
    STUDY.start(main)
