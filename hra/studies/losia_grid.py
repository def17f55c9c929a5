"""Study: GPT-2 tiny, from the addresses to Moby Dick. LoSiA, what it is made of taken
away one by one, and other methods at about as many trained numbers.

    python -m hra.studies.losia_grid           # or: make experiments NAME=losia_grid

`bits` a character of the new text, and of the `old` one, addresses that no model was
trained on. Every method has its own best learning rate, chosen on the validation
chapters with seed 100, which no reported run uses: three rungs of `LADDER`, and more
below or above until the best is at neither end. "fixed" is such a method: the first
subnet, drawn, stays. The other variants of LoSiA run at LoSiA's rate; in "random
moves" the subnet goes, at the same steps, to a place that is drawn.

LoSiA is computed by LoSiA-Pro, which is the same map. Of its runs also `moves`, the
mean share of the subnet that stays in a move (`kept`), and of a weight's entries that
were ever in a subnet (`touched`). `losses`: nats per token of every fourth step.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import hra
from hra.studies import moby
from hra.studies.study import Study, choose

SEEDS, STEPS, BATCH = (0, 1, 2, 3, 4), 120, 2
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
P, T = 1 / 8, 10


class RandomMoves(hra.LoSiAPro):
    """What it sees does not matter: the score is noise."""

    @torch.no_grad()
    def record(self) -> None:
        super().record()
        g = self.generator(f"score {int(self.counts[1])} {int(self.counts[2])}")
        self.mean.copy_(torch.rand(self.mean.shape, generator=g))
        self.spread.fill_(1.0)


Setting = tuple[type[hra.Adapter], dict[str, Any]]
LOSIA = {"p": P, "period": T}
TUNED: dict[str, tuple[Setting, float]] = {  # with the middle of the first rungs
    "LoSiA": ((hra.LoSiAPro, LOSIA), 1e-2),
    "fixed": ((hra.LoSiAPro, LOSIA | {"schedule": "fixed"}), 1e-2),
    "LoRA r=2": ((hra.LoRA, {"r": 2}), 1e-2),
    "DoRA r=2": ((hra.DoRA, {"r": 2}), 1e-2),
    "MoRA": ((hra.MoRA, {"r": 2, "operator": "sharing"}), 3e-3),
    "SHiRA": ((hra.SHiRA, {"mask": "rand", "density": P**2}), 3e-2),
    "FullFT": ((hra.FullFT, {}), 1e-3),
}
VARIANTS: dict[str, Setting] = {
    "random moves": (RandomMoves, LOSIA),
    "sync": (hra.LoSiAPro, LOSIA | {"schedule": "sync"}),
    "gradient": (hra.LoSiAPro, LOSIA | {"importance": "gradient"}),
    "no re-warming": (hra.LoSiAPro, LOSIA | {"rewarm": False}),
    "T=5": (hra.LoSiAPro, LOSIA | {"period": 5}),
    "T=20": (hra.LoSiAPro, LOSIA | {"period": 20}),
}
SETTINGS = {k: s for k, (s, _) in TUNED.items()} | VARIANTS
SETTING = {"batch": BATCH, "length": moby.LENGTH, "targets": moby.ALL}
SETTING |= {"test_characters": moby.LIMIT, "p": P, "T": T}


def old_bits(model: Any) -> float:
    """Bits per character of the addresses that the model was not trained on."""
    text = hra.data.text("sotu", "test")[: moby.LIMIT]
    return round(hra.data.bits_per_character(model, hra.zoo.tokenizer("tiny"), text), 4)


@cache
def before() -> dict[str, float]:
    """Of the pretrained model."""
    return {"bits": moby.before(), "old": old_bits(hra.zoo.gpt2("tiny"))}


def tune(setting: str, seed: int, lr: float, steps: int) -> tuple[hra.Adapted, hra.Log]:
    """One run: the tuned model and its log."""
    (method, hyper), model = SETTINGS[setting], hra.zoo.gpt2("tiny")
    tuned = hra.attach(model, method, targets=moby.ALL, seed=seed, **hyper)
    batches = hra.data.lm_batches(moby.tokens(), BATCH, moby.LENGTH, seed=seed)
    return tuned, hra.fit(tuned, batches, steps, lr, progress=False)


def run(setting: str, seed: int, lr: float, part: str, steps: int) -> dict[str, Any]:
    tuned, log = tune(setting, seed, lr, steps)
    found: dict[str, Any] = {"trained": tuned.num_trainable}
    found["bits"] = moby.bits(tuned.model, part)
    found["losses"] = [round(x, 3) for x in log.losses[::4]]
    if part == "test":
        found["old"] = old_bits(tuned.model)
        if issubclass(tuned.method, hra.LoSiA):
            found |= moved(tuned, log)
    return found


def moved(tuned: hra.Adapted, log: hra.Log) -> dict[str, Any]:
    kept = [e["kept"] for e in log.events]
    share = [len(a.support()) / (a.d_out * a.d_in) for a in tuned.adapters.values()]
    return {
        "moves": len(kept),
        "kept": round(sum(kept) / len(kept), 4) if kept else None,
        "touched": round(sum(share) / len(share), 5),
    }


STUDY = Study("losia_grid", run, SETTING, SEEDS)
record = STUDY.record


def rungs(setting: str, middle: float, study: Study) -> dict[str, Any]:
    """The row of `choose` of a setting, once the best rate is at neither end."""
    at = LADDER.index(middle)
    low, high = at - 1, at + 1
    while True:
        cells = [(setting, lr) for lr in LADDER[low : high + 1]]
        runs = study.do(moby.jobs(cells, [moby.TUNING], "validation", steps=STEPS))
        (row,) = choose(runs.values(), by=["setting"])
        best = LADDER.index(row["best"])
        if best not in (low, high) or (low, high) == (0, len(LADDER) - 1):
            return row
        low, high = (
            max(0, min(low, best - 1)),
            min(len(LADDER) - 1, max(high, best + 1)),
        )


def main(study: Study) -> None:
    chosen = [rungs(k, middle, study) for k, (_, middle) in TUNED.items()]
    study.protocol(chosen, moby.ON)
    best = {c["setting"]: c["best"] for c in chosen}
    best |= dict.fromkeys(VARIANTS, best["LoSiA"])
    study.note(lr=best, before=before())
    study.do(moby.jobs(best.items(), study.seeds, steps=STEPS))


if __name__ == "__main__":
    STUDY.start(main)
