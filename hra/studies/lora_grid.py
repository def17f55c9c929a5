"""Study: GPT-2 tiny, from the addresses to Moby Dick. Learning rate × rank × seed for
LoRA, and full fine-tuning over its rates: the curves that a page replays.

    python -m hra.studies.lora_grid            # or: make experiments NAME=lora_grid

Every rank has its own best rate, chosen on the validation chapters with seed 100, which
no reported run uses. At the best rate there are five seeds, at the others seed 0 alone.
α is 16 throughout, so that the scale α/r falls as r grows.
"""

from __future__ import annotations

from typing import Any

from hra.studies import moby
from hra.studies.study import Study

RANKS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2, 3, 4)
RATES = {"FullFT": (3e-4, 1e-3, 3e-3), "LoRA": (1e-3, 3e-3, 1e-2, 3e-2)}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {"FullFT": ("FullFT", {})}
SETTINGS |= {f"LoRA r={r}": ("LoRA", {"r": r}) for r in RANKS}


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    return moby.curves(method, seed, lr, part, hyper)


STUDY = Study("lora_grid", run, moby.SETTING | moby.CURVES, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    cells = ((k, lr) for k, (m, _) in SETTINGS.items() for lr in RATES[m])
    moby.grid(study, cells, SEEDS)


if __name__ == "__main__":
    STUDY.start(main)
