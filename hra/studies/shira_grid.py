"""Study: GPT-2 tiny, from the addresses to Moby Dick. Mask × learning rate × seed for
SHiRA, and LoRA of rank 2 over the same rates: the curves that a page replays.

    python -m hra.studies.shira_grid           # or: make experiments NAME=shira_grid

The settings and their best rates are those of the study shira_masks, chosen there on
the validation chapters. At the best rate there are five seeds, at the others seed 0
alone.
"""

from __future__ import annotations

from typing import Any

from hra.studies import moby, shira_masks
from hra.studies.shira_masks import SEEDS
from hra.studies.study import Study, choose, record, select

RATES = (3e-3, 1e-2, 3e-2, 1e-1)
SETTINGS = {k: v for k, v in shira_masks.SETTINGS.items() if k != "FullFT"}


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    return moby.curves(method, seed, lr, part, hyper)


STUDY = Study("shira_grid", run, shira_masks.SETTING | moby.CURVES, SEEDS)


def main(study: Study) -> None:
    runs = record("shira_masks")["runs"].values()
    tuning = [r for r in select(runs, part="validation") if r["setting"] in SETTINGS]
    chosen = choose(tuning, by=["setting"])
    study.protocol(chosen, moby.ON, study="shira_masks")
    best = {c["setting"]: c["best"] for c in chosen}
    grid = [(k, lr) for k in SETTINGS for lr in RATES]
    study.do(moby.jobs(grid, SEEDS[:1]) | moby.jobs(best.items(), SEEDS))
    study.note(before=moby.before(), lr=best)


if __name__ == "__main__":
    STUDY.start(main)
