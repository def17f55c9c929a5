"""Study: GPT-2 tiny, from the addresses to Moby Dick. Does the best learning rate move
with the rank, under α/r and under α/√r? And with the density of a sparse adapter?

    python -m hra.studies.scales               # or: make experiments NAME=scales

LoRA of ranks 1 to 16 under α/r stands in `lora_grid`, SHiRA of density 1/72 in
`shira_grid`; both have this course. Every setting has its own best rate, chosen on the
validation chapters with seed 100, which no reported run uses; at the best rate there
are five seeds, at the others seed 0 alone. α is 16, for SHiRA 1.
"""

from __future__ import annotations

from typing import Any

from hra.studies import moby
from hra.studies.study import Study

SEEDS = (0, 1, 2, 3, 4)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    f"RsLoRA r={r}": ("RsLoRA", {"r": r}) for r in (16, 64)
}
SETTINGS |= {"LoRA r=64": ("LoRA", {"r": 64})}
SETTINGS |= {
    f"SHiRA 1/{n}": ("SHiRA", {"mask": "rand", "density": 1 / n}) for n in (288, 4)
}
RATES = {
    "RsLoRA": (3e-4, 1e-3, 3e-3, 1e-2),
    "LoRA": (3e-3, 1e-2, 3e-2),
    "SHiRA": (3e-3, 1e-2, 3e-2, 1e-1),
}


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    return moby.curves(method, seed, lr, part, hyper)


STUDY = Study("scales", run, moby.SETTING | moby.CURVES, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    cells = ((k, lr) for k, (m, _) in SETTINGS.items() for lr in RATES[m])
    moby.grid(study, cells, SEEDS)


if __name__ == "__main__":
    STUDY.start(main)
