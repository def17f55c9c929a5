"""Study: how few numbers will do? VeRA, NOLA and PRANC beside LoRA.

    python -m hra.studies.few_numbers          # or: make experiments NAME=few_numbers

Two short tasks: GPT-2 tiny to Moby Dick (`bits` per character) and ViT tiny to digits
turned by 90 degrees (`bits` per digit, and `accuracy`); less bits are better. Settings
stand in groups of equal trained numbers. Every setting has its own best learning rate,
chosen on the validation part with seed 100, which no reported run uses; where the best
is at an end of the grid, the grid grows there. Five seeds at the best rate.
"""

from __future__ import annotations

from typing import Any

import hra
from hra.data import digits
from hra.studies import digit_shifts, moby, rates
from hra.studies.study import Study

SEEDS = (0, 1, 2, 3, 4)
STEPS = {"text": 30, "digits": 100}
DIGITS = 32  # in a batch
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# task: setting: method, its numbers, which weights, the middle of its first three rates
SETTINGS: dict[str, dict[str, tuple[str, dict[str, Any], str, float]]] = {
    "text": {
        "LoRA": ("LoRA", {"r": 1}, moby.ALL, 1e-2),  # 18,432 numbers
        "VeRA": ("VeRA", {"r": 336}, moby.ALL, 1e-1),  # 18,432
        "LoRA c_attn": ("LoRA", {"r": 1}, "c_attn", 1e-2),  # 4,608
        "NOLA": ("NOLA", {"r": 4, "k": 96, "l": 96}, moby.ALL, 1e-2),  # 4,608
        "NOLA c_fc": ("NOLA", {"r": 4, "k": 1, "l": 1}, "c_fc", 3e-2),  # 12
        "PRANC c_fc": ("PRANC", {"m": 12}, "c_fc", 3e-3),  # 12
    },
    "digits": {
        "LoRA": ("LoRA", {"r": 1}, digit_shifts.TARGETS, 1e-2),  # 10,752
        "VeRA": ("VeRA", {"r": 149}, digit_shifts.TARGETS, 3e-2),  # 10,740
        "NOLA": ("NOLA", {"r": 4, "k": 149, "l": 149}, digit_shifts.TARGETS, 1e-2),
        "NOLA 16": ("NOLA", {"r": 4, "k": 16, "l": 16}, digit_shifts.TARGETS, 3e-2),
    },
}


def run(setting: str, seed: int, lr: float, part: str, task: str) -> dict[str, Any]:
    """One run; the order of the batches, what is drawn and the start depend on `seed`
    alone.
    """
    method, hyper, where, _ = SETTINGS[task][setting]
    if task == "text":
        model, batches = hra.zoo.gpt2("tiny"), moby.batches(seed)
    else:
        model = hra.zoo.vit("tiny")
        x, y = digits.digits("train")
        x = digit_shifts.shift("rotated", x)
        batches = digits.image_batches(x, y, DIGITS, seed)
    tuned = hra.attach(model, hra.METHODS[method], where, seed=seed, **hyper)
    log = hra.fit(tuned, batches, STEPS[task], lr, progress=False)
    found: dict[str, Any] = (
        {"bits": moby.bits(model, part)}
        if task == "text"
        else rates.scores(model, part)
    )
    losses = [round(x, 3) for x in log.losses[:: STEPS[task] // 10]]
    return {"trained": tuned.num_trainable, **found, "losses": losses}


SETTING = {"steps": STEPS, "text": moby.SETTING | {"steps": 30}, "digits": DIGITS}
STUDY = Study("few_numbers", run, SETTING, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    chosen: list[dict[str, Any]] = []
    for task in SETTINGS:
        at = {k: LADDER.index(v[3]) for k, v in SETTINGS[task].items()}
        grids = {k: LADDER[i - 1 : i + 2] for k, i in at.items()}
        found = moby.search(study, grids, LADDER, task=task)
        best = [(c["setting"], c["best"]) for c in found]
        study.do(moby.jobs(best, SEEDS, task=task))
        chosen += found
    study.protocol(chosen, "the validation part, with seed 100, no reported run's")
    vit = rates.scores(hra.zoo.vit("tiny"), "test")
    study.note(before={"text": {"bits": moby.before()}, "digits": vit})


if __name__ == "__main__":
    STUDY.start(main)
