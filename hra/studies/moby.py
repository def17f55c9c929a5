"""What the studies on text share: GPT-2 tiny, from the addresses to Moby Dick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

import hra
from hra.studies.study import Study, choose

STEPS, BATCH, LENGTH, LIMIT = 60, 8, 128, 40_000
CALIBRATION = 8  # training batches that the masks grad and snip see
ALL = "c_attn|c_proj|c_fc"
SETTING = {"steps": STEPS, "batch": BATCH, "length": LENGTH, "test_characters": LIMIT}
CURVES = {"every": 20}  # steps between two points of a curve of bits
ON = "the validation chapters, with seed 100, which no reported run uses"
TUNING = 100


@cache
def tokens() -> Any:
    """The training chapters."""
    return hra.data.tokens(hra.zoo.tokenizer("tiny"), "moby_dick")


def batches(seed: int) -> Any:
    return hra.data.lm_batches(tokens(), BATCH, LENGTH, seed=seed)


def bits(model: Any, part: str = "test") -> float:
    """Bits per character of the first LIMIT characters of a part: the one slice on
    which every study, curve and table measures.
    """
    text = hra.data.text("moby_dick", part)[:LIMIT]
    return round(hra.data.bits_per_character(model, hra.zoo.tokenizer("tiny"), text), 4)


@cache
def before(part: str = "test") -> float:
    """Bits per character of the pretrained model."""
    return bits(hra.zoo.gpt2("tiny"), part)


def attach(
    model: Any, ids: Any, method: str, seed: int, hyper: dict, targets: str = ALL
) -> hra.Adapted:
    """The adapters of one setting; what a mask must know of the data is collected
    first, from the first batches of the training text `ids`.
    """
    if hyper.get("mask") in ("grad", "snip"):
        some = islice(hra.data.lm_batches(ids, BATCH, LENGTH, seed=seed), CALIBRATION)
        probe = hra.probe(model, some, targets=targets, progress=False)
        hyper = hyper | {"gradients": probe.mean}
    return hra.attach(model, hra.METHODS[method], targets=targets, seed=seed, **hyper)


def fine_tune(
    method: str,
    seed: int,
    lr: float,
    part: str,
    hyper: dict,
    targets: str = ALL,
    every: int | None = None,
) -> tuple[hra.Adapted, dict[str, Any]]:
    """One run, and what it found; the order of the batches, the masks and the start
    depend on `seed` alone. every: also the curve of `bits`, from step 0.
    """
    model = hra.zoo.gpt2("tiny")
    tuned = attach(model, tokens(), method, seed, hyper, targets)
    log = hra.fit(
        tuned,
        batches(seed),
        STEPS,
        lr,
        progress=False,
        every=every or STEPS,
        evaluate=lambda: bits(model, part),
    )
    found = {"trained": tuned.num_trainable, "bits": log.evaluations[-1]["value"]}
    if every:
        points = [(0, before(part))] + [
            (e["step"], e["value"]) for e in log.evaluations
        ]
        found["curve"] = points
    return tuned, found | {"losses": [round(x, 3) for x in log.losses]}


def curves(
    method: str, seed: int, lr: float, part: str, hyper: dict, targets: str = ALL
) -> dict[str, Any]:
    """What a grid records of a run: `trained`, `bits`, 30 `losses` (the i-th is that of
    step 2i + 1, so the first is the pretrained model's), and of a reported run `curve`:
    (step, bits) from step 0.
    """
    every = CURVES["every"] if part == "test" else None
    found = fine_tune(method, seed, lr, part, hyper, targets, every)[1]
    return found | {"losses": found["losses"][::2]}


def jobs(
    grid: Iterable[tuple[str, float]],
    seeds: Iterable[int],
    part: str = "test",
    **common: Any,
) -> dict[str, dict[str, Any]]:
    """A job for every (setting, learning rate) of a grid and every seed; `common` are
    arguments that all of them have, and stand in their names.
    """
    cells, named = list(grid), "".join(f" {k}={v}" for k, v in common.items())
    return {
        f"{k} lr={lr}{named} seed={s}": {
            "setting": k,
            "seed": s,
            "lr": lr,
            "part": part,
            **common,
        }
        for s in seeds
        for k, lr in cells
    }


def search(
    study: Study,
    grids: Mapping[str, Iterable[float]],
    ladder: Sequence[float],
    value: str = "bits",
    **common: Any,
) -> list[dict[str, Any]]:
    """Every setting's best rate on the validation part, the smallest `value` being the
    best. Where that stands at an end of its grid, the next of `ladder` is tried too,
    until none does or the ladder ends. `common` as in `jobs`.
    """
    tried = {k: list(rates) for k, rates in grids.items()}
    while True:
        cells = [(k, lr) for k, rates in tried.items() for lr in rates]
        runs = study.do(jobs(cells, [TUNING], "validation", **common)).values()
        chosen, wider = choose(runs, ["setting", *common], value=value), False
        for c in chosen:
            if not c["interior"]:
                way = -1 if c["best"] == c["grid"][0] else 1
                at = ladder.index(c["best"]) + way
                if 0 <= at < len(ladder):
                    tried[c["setting"]].append(ladder[at])
                    wider = True
        if not wider:
            return chosen


def grid(
    study: Study, cells: Iterable[tuple[str, float]], seeds: Iterable[int]
) -> None:
    """Every (setting, learning rate) tuned on the validation chapters; reported at the
    best rate with all seeds, at the others with the first.
    """
    cells, seeds = list(cells), list(seeds)
    tuning = study.do(jobs(cells, [TUNING], "validation"))
    chosen = choose(tuning.values(), by=["setting"])
    study.protocol(chosen, ON)
    best = {c["setting"]: c["best"] for c in chosen}
    study.do(jobs(cells, seeds[:1]) | jobs(best.items(), seeds))
    study.note(before=before(), lr=best)
