"""Study: GPT-2 tiny, from the addresses to Moby Dick. The four operators of MoRA over
their learning rates, at no more trained numbers than LoRA of rank 8.

    python -m hra.studies.mora_grid            # or: make experiments NAME=mora_grid

LoRA and full fine-tuning stand in `lora_grid`, which has this course. Every operator
has its own best rate, chosen on the validation chapters with seed 100, which no
reported run uses; at the best rate there are five seeds, at the others seed 0 alone.
Decoupling and rotation are folded: no input is lost.
"""

from __future__ import annotations

from typing import Any

from hra.methods.mora import OPERATORS
from hra.studies import moby
from hra.studies.study import Study

SEEDS, R = (0, 1, 2, 3, 4), 8
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SETTINGS = {
    f"MoRA {o}": {"r": R, "operator": o, "fold": o in ("decoupling", "rotation")}
    for o in OPERATORS
}


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    return moby.curves("MoRA", seed, lr, part, SETTINGS[setting])


STUDY = Study("mora_grid", run, moby.SETTING | moby.CURVES, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    moby.grid(study, ((k, lr) for k in SETTINGS for lr in RATES), SEEDS)


if __name__ == "__main__":
    STUDY.start(main)
