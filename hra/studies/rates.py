"""Study: ViT tiny, from upright digits to digits turned by 90 degrees, in a short run.
A rate of B's own (LoRA+), one factor alone (AsyLoRA), attention against the MLP at
equal trained numbers, and a batch four times as large, each against LoRA and full
fine-tuning.

    python -m hra.studies.rates                # or: make experiments NAME=rates

`bits` is the cross entropy per digit on the 1,000 digits of a part, less is better.
Every setting has its own best learning rate (LoRA+: that of A), chosen on the
validation digits with seed 100, which no reported run uses; there are five seeds at it.
A run sees `STEPS` × `BATCH` images, with a larger batch in fewer steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import hra
from hra.data import digits
from hra.studies import digit_shifts, moby
from hra.studies.study import Study, choose

SEEDS, STEPS, BATCH, FEW = (0, 1, 2, 3, 4), 40, 32, 10
ALL, ATTENTION, MLP = digit_shifts.TARGETS, "attention", "mlp"
LOW, MIDDLE, HIGH = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
# setting: method, its numbers, which weights, steps, learning rates
SETTINGS: dict[str, tuple[str, dict[str, Any], str, int, tuple[float, ...]]] = {
    "FullFT": ("FullFT", {}, ALL, STEPS, (1e-4, *LOW)),
    "LoRA r=8": ("LoRA", {"r": 8}, ALL, STEPS, (1e-3, *HIGH)),
    "LoRA+ λ=4": ("LoRAPlus", {"r": 8, "ratio": 4}, ALL, STEPS, MIDDLE),
    "LoRA+ λ=16": ("LoRAPlus", {"r": 8, "ratio": 16}, ALL, STEPS, (*LOW, 1e-2)),
    "LoRA r=4": ("LoRA", {"r": 4}, ALL, STEPS, HIGH),
    "B alone": ("AsyLoRA", {"r": 8, "train": "B"}, ALL, STEPS, HIGH),
    "A alone": ("AsyLoRA", {"r": 8, "train": "A"}, ALL, STEPS, HIGH),
    "FullFT, batch 128": ("FullFT", {}, ALL, FEW, (*LOW, 1e-2)),
    "LoRA r=8, batch 128": ("LoRA", {"r": 8}, ALL, FEW, (1e-3, *HIGH)),
    "LoRA r=12, all": ("LoRA", {"r": 12}, ALL, STEPS, HIGH),
    "LoRA r=21, attention": ("LoRA", {"r": 21}, ATTENTION, STEPS, HIGH),
    "LoRA r=28, MLP": ("LoRA", {"r": 28}, MLP, STEPS, HIGH),
}


@torch.no_grad()
def scores(model: Any, part: str) -> dict[str, float]:
    """Cross entropy in bits per digit, and accuracy, on the turned digits of a part."""
    x, y = digits.digits(part)
    seen = digits.pixel_values(digit_shifts.shift("rotated", x))
    model.eval()
    logits = torch.cat([model(pixel_values=z).logits for z in seen.split(250)])
    nats = torch.nn.functional.cross_entropy(logits, y).item()
    right = (logits.argmax(-1) == y).float().mean().item()
    return {"bits": round(nats / math.log(2), 4), "accuracy": round(right, 4)}


def run(setting: str, seed: int, lr: float, part: str, steps: int) -> dict[str, Any]:
    method, hyper, where, _, _ = SETTINGS[setting]
    vit = hra.zoo.vit("tiny")
    tuned = hra.attach(vit, hra.METHODS[method], where, seed=seed, **hyper)
    x, y = digits.digits("train")
    x, batch = digit_shifts.shift("rotated", x), STEPS * BATCH // steps
    batches = digits.image_batches(x, y, batch, seed)
    log = hra.fit(tuned, batches, steps, lr, progress=False)
    found = {"trained": tuned.num_trainable, **scores(vit, part)}
    return found | {"losses": [round(x, 3) for x in log.losses]}


SETTING = {"images": STEPS * BATCH, "batch": BATCH}
STUDY = Study("rates", run, SETTING, SEEDS, model="vit-tiny")
record = STUDY.record


def main(study: Study) -> None:
    chosen: list[dict[str, Any]] = []
    for steps in (STEPS, FEW):
        cells = [(k, lr) for k, v in SETTINGS.items() if v[3] == steps for lr in v[4]]
        jobs = moby.jobs(cells, [moby.TUNING], "validation", steps=steps)
        found = choose(study.do(jobs).values(), by=["setting"])
        best = [(c["setting"], c["best"]) for c in found]
        study.do(moby.jobs(best, SEEDS, steps=steps))
        chosen += found
    study.protocol(chosen, "the validation digits, with seed 100, no reported run's")
    study.note(before=scores(hra.zoo.vit("tiny"), "test"))
    study.note(lr={c["setting"]: c["best"] for c in chosen})


if __name__ == "__main__":
    STUDY.start(main)
