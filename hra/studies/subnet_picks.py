"""Study: GPT-2 tiny, from the addresses to Moby Dick. A subnet of p = 1/8 in each
weight, chosen once and kept: at random, by the gradient, or by the sensitivity; trained
by plain SGD and by AdamW.

    python -m hra.studies.subnet_picks         # or: make experiments NAME=subnet_picks

The scores are those of the mean gradient over the first eight batches. Every choice has
its own best rate under each optimizer, taken on the validation chapters with seed 100,
which no reported run uses; three seeds at that rate. The course is short: 30 steps of
256 tokens, measured on 10,000 characters.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

import hra
from hra import localise, schedules
from hra.methods.losia import importance
from hra.studies import moby
from hra.studies.study import Study, choose

SEEDS, P, STEPS, BATCH, LENGTH, LIMIT = (0, 1, 2), 1 / 8, 30, 4, 64, 10_000
PICKS = {"random": None, "|G|": "gradient", "sensitivity": "mix"}
RATES = {"SGD": (0.03, 0.1, 0.3, 1.0, 3.0), "AdamW": (1e-3, 3e-3, 1e-2, 3e-2, 0.1)}
SETTINGS = {f"{pick}, {o}": (pick, o) for o in RATES for pick in PICKS}


def attach(pick: str, seed: int) -> hra.Adapted:
    """The model with its subnets; the place of a random one depends on the seed."""
    model = hra.zoo.gpt2("tiny")
    tuned = hra.attach(
        model, hra.LoSiA, targets=moby.ALL, seed=seed, p=P, schedule="fixed"
    )
    kind = PICKS[pick]
    if kind is not None:
        some = islice(batches(seed), moby.CALIBRATION)
        probe = hra.probe(hra.zoo.gpt2("tiny"), some, targets=moby.ALL, progress=False)
        for site, a in tuned.adapters.items():
            score = importance(kind, probe.mean[site], a.W0)
            a.place(*localise.best(score, *a.W_S.shape))
    return tuned


def batches(seed: int) -> Any:
    return hra.data.lm_batches(moby.tokens(), BATCH, LENGTH, seed=seed)


def bits(model: Any, part: str) -> float:
    """As `moby.bits`, of the first LIMIT characters."""
    text, tokenizer = hra.data.text("moby_dick", part), hra.zoo.tokenizer("tiny")
    return round(hra.data.bits_per_character(model, tokenizer, text, limit=LIMIT), 4)


def sgd(tuned: hra.Adapted, batches: Any, steps: int, lr: float) -> list[float]:
    """Plain SGD, with the shape of rates that `hra.fit` has; the losses."""
    groups = tuned.param_groups(lr)
    optimizer, shape = torch.optim.SGD(groups), schedules.cosine()
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * shape(step, steps)
        loss = tuned.model(**next(batches)).loss
        losses.append(loss.item())
        if not losses[-1] < 20:
            break  # it diverged; NaN too
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    pick, optimizer = SETTINGS[setting]
    tuned, course = attach(pick, seed), batches(seed)
    if optimizer == "SGD":
        losses = sgd(tuned, course, STEPS, lr)
    else:
        losses = hra.fit(tuned, course, STEPS, lr, progress=False).losses
    ended = len(losses) == STEPS
    return {
        "trained": tuned.num_trainable,
        "bits": bits(tuned.model, part) if ended else 20.0,
        "losses": [round(x, 3) for x in losses[::2]] if ended else [],
    }


STUDY = Study(
    "subnet_picks",
    run,
    {
        "steps": STEPS,
        "batch": BATCH,
        "length": LENGTH,
        "test_characters": LIMIT,
        "p": P,
    },
    SEEDS,
)
record = STUDY.record


def main(study: Study) -> None:
    cells = [(k, lr) for k, (_, o) in SETTINGS.items() for lr in RATES[o]]
    tuning = study.do(moby.jobs(cells, [moby.TUNING], "validation"))
    chosen = choose(tuning.values(), by=["setting"])
    study.protocol(chosen, moby.ON)
    best = {c["setting"]: c["best"] for c in chosen}
    study.do(moby.jobs(best.items(), SEEDS))
    before = bits(hra.zoo.gpt2("tiny"), "test")
    study.note(before=before, lr=best)


if __name__ == "__main__":
    STUDY.start(main)
