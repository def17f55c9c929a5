"""Study: the two other needs that MoRA's paper tells apart from memory, at our scale:
GPT-2 tiny learns sums and answers to instructions. Full fine-tuning, LoRA, MoRA.

    python -m hra.studies.needs                # or: make experiments NAME=needs

As in Jiang et al., 2024, arXiv:2405.12130, the question is whether the gap of the UUIDs
(`uuid_pairs`) is there where a format or a calculation is to be learnt. Examples of the
training part; `bits` an example and `exact` answers on COUNT of the test part, of which
none was trained on. Every setting has, for each task, its own best learning rate, at
which those of the validation part have the shortest code with seed 100, which no
reported run uses; there are five seeds at it.
"""

from __future__ import annotations

from typing import Any

import hra
from hra.data import tasks
from hra.studies import moby
from hra.studies.study import Study, choose

SEEDS, BATCH, COUNT = (0, 1, 2, 3, 4), 16, 100
STEPS = {"sum": 200, "instruction": 100}
TASKS = {"sum": "reasoning", "instruction": "format"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FullFT": ("FullFT", {}),
    "LoRA r=8": ("LoRA", {"r": 8}),
    "MoRA sharing": ("MoRA", {"r": 8, "operator": "sharing"}),
}
RATES = {"sum": (3e-4, 1e-3, 3e-3, 1e-2), "instruction": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
LOWER = {3e-4: 1e-4, 1e-3: 3e-4, 3e-3: 1e-3, 1e-2: 3e-3, 3e-2: 1e-2}  # FullFT's
SETTING = {"steps": STEPS, "batch": BATCH, "count": COUNT, "targets": moby.ALL}


def run(task: str, setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    model, tokenizer = hra.zoo.gpt2("tiny"), hra.zoo.tokenizer("tiny")
    tuned = hra.attach(model, hra.METHODS[method], moby.ALL, seed=seed, **hyper)
    rows = tasks.examples(task, seed=seed)
    batches = tasks.batches(tokenizer, rows, BATCH, seed=seed)
    log = hra.fit(tuned, batches, STEPS[task], lr, progress=False)
    asked = tasks.examples(task, part, COUNT, seed=seed)
    found = tasks.recall(model, tokenizer, asked, batch=50)
    return {
        "trained": tuned.num_trainable,
        "bits": round(found["bits"] / len(asked), 3),
        "exact": round(found["exact"], 4),
        "losses": [round(x, 3) for x in log.losses[::10]],
    }


STUDY = Study("needs", run, SETTING, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    tuning: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for t in TASKS:
        grid = [
            (k, LOWER[lr] if k == "FullFT" else lr) for k in SETTINGS for lr in RATES[t]
        ]
        tuning |= moby.jobs(grid, [moby.TUNING], "validation", task=t)
    chosen = choose(study.do(tuning).values(), by=["task", "setting"])
    study.protocol(
        chosen, "the validation part, with seed 100, which no reported run uses"
    )
    for c in chosen:
        told |= moby.jobs([(c["setting"], c["best"])], SEEDS, task=c["task"])
    study.do(told)


if __name__ == "__main__":
    STUDY.start(main)
