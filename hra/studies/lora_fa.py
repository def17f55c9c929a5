"""Study: GPT-2 tiny, from the addresses to Moby Dick. What freezing A costs: LoRA-FA
over learning rates, ranks and seeds, to be set beside the LoRA of `lora_grid`.

    python -m hra.studies.lora_fa              # or: make experiments NAME=lora_fa

The ranks are those at which LoRA-FA has the rank of LoRA (r = 8), its trained numbers
(r = 14), and more of both while it still holds less memory (r = 64). Every rank has its
own best rate, chosen on the validation chapters with seed 100, which no reported run
uses. At the best rate there are five seeds, at the others seed 0 alone. α is 16
throughout.
"""

from __future__ import annotations

from typing import Any

from hra.studies import moby
from hra.studies.study import Study

RANKS, SEEDS = (8, 14, 64), (0, 1, 2, 3, 4)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
SETTINGS = {f"LoRAFA r={r}": {"r": r} for r in RANKS}


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    return moby.curves("LoRAFA", seed, lr, part, SETTINGS[setting])


STUDY = Study("lora_fa", run, moby.SETTING | moby.CURVES, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    cells = ((k, lr) for k in SETTINGS for lr in RATES)
    moby.grid(study, cells, SEEDS)


if __name__ == "__main__":
    STUDY.start(main)
