"""Study: GPT-2 tiny, from the addresses to Moby Dick. Where LoSiA's subnets are, how
long they stay there, and whether it matters.

    python -m hra.studies.subnets              # or: make experiments NAME=subnets

Subnets of p = 1/8 in each of the 24 weights: moved to where the published score is
largest, and left where they were drawn. Each has its own best rate, chosen on the
validation chapters with seed 100. The course is short: 60 steps of 256 tokens, a slot
of 5 steps, so that each of six blocks moves twice; measured on 10,000 characters.

Of the reported runs of the first also what `look` finds at the steps AT: scores from
BATCHES batches that no run trains on in that order, at AT's ends a second time from
others (`again`: what the batches alone change).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

import hra
from hra import localise
from hra.methods.losia import importance, sides
from hra.studies import moby
from hra.studies.study import Study, choose

SEEDS, P, PERIOD, BETA = (0, 1, 2), 0.125, 5, 0.85
STEPS, BATCH, LENGTH, LIMIT = 60, 4, 64, 10_000
AT, BATCHES, OTHER = (0, 20, 40, 60), 10, 1000
SLOTS = {"p": P, "period": PERIOD}
MOVED, LEFT = "moved by score", "left where drawn"
SETTINGS: dict[str, dict[str, Any]] = {
    MOVED: SLOTS,
    LEFT: SLOTS | {"schedule": "fixed"},
}
RATES = (3e-3, 1e-2, 3e-2, 1e-1)


def batches(seed: int) -> Any:
    return hra.data.lm_batches(moby.tokens(), BATCH, LENGTH, seed=seed)


def bits(model: Any, part: str) -> float:
    """As `moby.bits`, of the first LIMIT characters."""
    text, tokenizer = hra.data.text("moby_dick", part), hra.zoo.tokenizer("tiny")
    return round(hra.data.bits_per_character(model, tokenizer, text, limit=LIMIT), 4)


def smoothed(values: Iterable[Tensor], beta: float = BETA) -> tuple[Tensor, Tensor]:
    """(Ī, Ū) after a slot with the importances `values`."""
    mean = spread = torch.zeros(())
    for now in values:
        mean = beta * mean + (1 - beta) * now
        spread = beta * spread + (1 - beta) * (now - mean).abs()
    return mean, spread


def gradients(model: Any, batches: Iterable[Any]) -> list[dict[str, Tensor]]:
    """Of each batch the dense gradient of the mean loss at every site."""
    probes = (hra.probe(model, [b], targets=moby.ALL, progress=False) for b in batches)
    return [p.mean for p in probes]


def look(model: Any, seed: int) -> dict[str, dict[str, Tensor]]:
    """Per site `score`, Ī ⊙ Ū, and `grad`, the mean gradient, over BATCHES batches that
    `seed` draws, of a model without adapters.
    """
    seen = gradients(model, islice(batches(seed), BATCHES))
    found = {}
    for site, layer in hra.linear.sites(model, moby.ALL).items():
        W = hra.linear.weight(layer).detach()
        mean, spread = smoothed(importance("mix", g[site], W) for g in seen)
        grad = torch.stack([g[site] for g in seen]).mean(0)
        found[site] = {"score": mean * spread, "grad": grad}
    return found


def subnet(score: Tensor) -> localise.Subnet:
    return localise.best(score, *sides(P, *score.shape))


def overlap(one: localise.Subnet, two: localise.Subnet) -> float:
    """The share of the entries of one subnet that lie in the other; p² by chance."""
    rows, cols = (
        float(torch.isin(a, b).double().mean()) for a, b in zip(one, two, strict=True)
    )
    return rows * cols


def ranks(score: Tensor) -> Tensor:
    """The place of every entry in their order; ties in the order of the entries."""
    at = torch.arange(score.numel(), dtype=torch.float64)
    return torch.empty_like(at).scatter_(0, score.flatten().argsort(stable=True), at)


def correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


def holders(score: Tensor, share: float = 0.9) -> float:
    """The least share of the entries that hold `share` of the sum."""
    total = score.flatten().double().sort(descending=True).values.cumsum(0)
    return (int((total < share * total[-1]).sum()) + 1) / len(total)


def gini(score: Tensor) -> float:
    """0: all entries are equal; near 1: one holds everything."""
    s = score.flatten().double().sort().values
    n = len(s)
    return float((2 * torch.arange(1, n + 1) - n - 1).double() @ s / (n * s.sum()))


def shares(score: Tensor) -> dict[str, float]:
    """Of the sum: what the best subnet holds, and as many entries wherever they are."""
    block = localise.captured(score, *subnet(score))
    m, n = sides(P, *score.shape)
    free = float(score.flatten().topk(m * n).values.sum(dtype=torch.float64))
    total = float(score.sum(dtype=torch.float64))
    return {"block": block / total, "anywhere": free / total}


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4)


def facts(looks: dict[str, dict[str, dict[str, Tensor]]]) -> dict[str, Any]:
    """Means over the sites: for every two looks `overlap` of subnets and `agreement` of
    scores (Spearman's); of every look what the subnet holds of the score and of the
    squared gradient, and how few entries hold 90 % of that.
    """
    first = next(iter(looks.values()))
    nets = {k: {s: subnet(f["score"]) for s, f in v.items()} for k, v in looks.items()}
    out: dict[str, Any] = {"overlap": {}, "agreement": {}, "held": {}}
    place = {k: {s: ranks(f["score"]) for s, f in v.items()} for k, v in looks.items()}
    names = list(looks)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            out["overlap"][f"{a}, {b}"] = mean(
                overlap(nets[a][s], nets[b][s]) for s in first
            )
            out["agreement"][f"{a}, {b}"] = mean(
                correlation(place[a][s], place[b][s]) for s in first
            )
        squares = [f["grad"].square() for f in looks[a].values()]
        score = [shares(f["score"]) for f in looks[a].values()]
        square = [shares(f) for f in squares]
        out["held"][a] = {
            "score": [mean(s[k] for s in score) for k in ("block", "anywhere")],
            "squares": [mean(s[k] for s in square) for k in ("block", "anywhere")],
            "holders": mean(map(holders, squares)),
            "gini": mean(map(gini, squares)),
        }
    return out


def plain(tuned: hra.Adapted) -> Any:
    """A copy of the model with W0 + ΔW for its weights, without adapters."""
    model = hra.zoo.gpt2("tiny")
    with torch.no_grad():
        for s, layer in hra.linear.sites(model, moby.ALL).items():
            W = hra.linear.weight(layer)
            W += tuned.adapters[s].delta_weight()
    return model


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    model = hra.zoo.gpt2("tiny")
    tuned = moby.attach(model, moby.tokens(), "LoSiA", seed, SETTINGS[setting])
    looks: dict[str, Any] = {}
    watching = setting == MOVED and part == "test"

    def evaluate() -> float:
        step = len(tuned.log.steps) if looks else 0
        if watching:
            now = plain(tuned)
            looks[str(step)] = look(now, OTHER + step)
            if step in (AT[0], AT[-1]):
                looks[f"{step} again"] = look(now, OTHER + step + 1)
        return bits(model, part)

    curve = [(0, evaluate())]
    log = hra.fit(
        tuned,
        batches(seed),
        STEPS,
        lr,
        progress=False,
        every=AT[1] - AT[0],
        evaluate=evaluate,
    )
    curve += [(e["step"], e["value"]) for e in log.evaluations]
    moves = [e for e in log.events if "relocate" in e]
    found: dict[str, Any] = {
        "trained": tuned.num_trainable,
        "bits": curve[-1][1],
        "curve": curve,
        "losses": [round(x, 3) for x in log.losses][::2],
        "kept": {
            str(k): mean(e["kept"] for e in moves if e["relocate"] == k)
            for k in sorted({e["relocate"] for e in moves})
        },
    }
    return found | (facts(looks) if watching else {})


SETTING: dict[str, Any] = {"steps": STEPS, "batch": BATCH, "length": LENGTH}
SETTING |= SLOTS | {"test_characters": LIMIT, "at": AT, "batches": BATCHES}
STUDY = Study("subnets", run, SETTING, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    cells = [(k, lr) for k in SETTINGS for lr in RATES]
    tuning = study.do(moby.jobs(cells, [moby.TUNING], "validation"))
    chosen = choose(tuning.values(), by=["setting"])
    study.protocol(chosen, moby.ON)
    best = {c["setting"]: c["best"] for c in chosen}
    study.do(moby.jobs(best.items(), SEEDS))
    study.note(before=bits(hra.zoo.gpt2("tiny"), "test"), lr=best)


if __name__ == "__main__":
    STUDY.start(main)
