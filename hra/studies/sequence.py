"""Study: one task after another. GPT-2 tiny learns five tasks in turn, ViT tiny turned
digits, two classes at a time. Full fine-tuning; LoRA, DoRA, MoRA, SHiRA and LoSiA at
about equal trained numbers, none above LoRA's.

    python -m hra.studies.sequence             # or: make experiments NAME=sequence

text: Moby Dick, sums, instructions, the century of a passage, the Jargon File; the
score of a task is the share of its tokens that are right, the true ones before given:
of a text all, else those of the answer and its end. digits: turned by 90 degrees, the
pairs 0 and 1 to 8 and 9; the score is the share that is right among all ten.

One adapter is trained on through all tasks; `P[i][j]` as in `hra.continual`, without
what lies above the diagonal. `alone[j]`: a fresh adapter trained on task j alone, at
the same rate: P0, and what separate adapters, switched by the task, would have.
`easier`: as P, minus the bits per token (text), or the share that is right among the
two digits of the task. `AP`, `FWT`, `BWT`, and `own`, the mean of the diagonal.
`intruders` (text): after each task, per weight, of its TOP leading left singular
vectors those whose cosine with all of the pretrained weight is below CUT.

Every setting has its own learning rate, at which AP on the validation parts is highest
with seed 100, which no reported run uses; a grid whose best is at an end is extended.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hra
from hra import continual
from hra.analysis import subspace
from hra.data import digits, tasks
from hra.studies import moby
from hra.studies.study import Study, choose

SEEDS, STEPS, TOP, CUT = (0, 1, 2), 24, 10, 0.6
TASKS = {
    "text": ("moby_dick", "sum", "instruction", "century", "jargon"),
    "digits": ("0, 1", "2, 3", "4, 5", "6, 7", "8, 9"),
}
CORPORA = ("moby_dick", "jargon")
# examples in a batch, in a test; tokens in an example at most
SIZES = {
    "moby_dick": (4, 24, 48),
    "sum": (12, 100, 16),
    "instruction": (4, 32, 64),
    "century": (6, 60, 40),
    "jargon": (4, 24, 48),
}
BATCH, ASKED = 16, 500  # digits
TARGETS = {"text": moby.ALL, "digits": r"layers\."}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FullFT": ("FullFT", {}),
    "LoRA": ("LoRA", {"r": 8}),
    "DoRA": ("DoRA", {"r": 7}),
    "MoRA": ("MoRA", {"r": 8, "operator": "sharing"}),
    "SHiRA": ("SHiRA", {"mask": "rand"}),
    "LoSiA": ("LoSiA", {"period": STEPS // 6}),  # a slot for each of six blocks
}
DENSITY = {"text": 1 / 18, "digits": 7 / 64}  # LoRA's share of the weights
Rates = dict[str, tuple[float, ...]]
ON_DIGITS: Rates = {k: (3e-4, 1e-3, 3e-3) for k in SETTINGS}
ON_DIGITS |= {"FullFT": (3e-5, 1e-4, 3e-4), "SHiRA": (1e-3, 3e-3, 1e-2)}
ON_TEXT: Rates = {k: (1e-3, 3e-3, 1e-2) for k in SETTINGS}
ON_TEXT |= {"FullFT": (3e-4, 1e-3, 3e-3), "SHiRA": (3e-3, 1e-2, 3e-2)}
RATES: dict[str, Rates] = {"digits": ON_DIGITS, "text": ON_TEXT}
WIDER = 2  # rates that a grid may grow by
SETTING = {"steps": STEPS, "sizes": SIZES, "batch": BATCH, "asked": ASKED, "top": TOP}


def model(stream: str) -> Any:
    return hra.zoo.gpt2("tiny") if stream == "text" else hra.zoo.vit("tiny")


def adapters(setting: str, stream: str, seed: int) -> hra.Adapted:
    """The model of a stream with the adapters of a setting."""
    method, hyper = SETTINGS[setting]
    if method == "SHiRA":
        hyper = hyper | {"density": DENSITY[stream]}
    if method == "LoSiA":
        hyper = hyper | {"p": DENSITY[stream] ** 0.5}
    made = model(stream)
    return hra.attach(made, hra.METHODS[method], TARGETS[stream], seed=seed, **hyper)


def batches(stream: str, task: str, seed: int, part: str = "train", n: int = 0) -> Any:
    """Endless batches of a task, of its own size or of `n`."""
    if stream == "digits":
        images, labels = turned(part)
        at = torch.isin(labels, torch.tensor(classes(task)))
        return digits.image_batches(images[at], labels[at], n or BATCH, seed)
    size, _, length = SIZES[task]
    tokenizer = hra.zoo.tokenizer("tiny")
    if task in CORPORA:
        return hra.data.lm_batches(text(task, part), n or size, length, seed)
    rows = tasks.examples(task, part)
    return tasks.batches(tokenizer, rows, n or size, length, seed)


@cache
def text(task: str, part: str) -> Tensor:
    return hra.data.tokens(hra.zoo.tokenizer("tiny"), task, part)


@cache
def turned(part: str) -> tuple[Tensor, Tensor]:
    images, labels = digits.digits(part)
    return images.rot90(1, (2, 3)), labels


def classes(task: str) -> list[int]:
    return [int(c) for c in task.split(", ")]


@cache
def asked(stream: str, task: str, part: str) -> dict[str, Tensor]:
    """What every run is asked of a task."""
    n = SIZES[task][1] if stream == "text" else ASKED // 5
    return next(batches(stream, task, 7, part, n))


@torch.no_grad()
def score(model: Any, stream: str, task: str, part: str) -> tuple[float, float]:
    """The share that is right, and the second reading; see above."""
    batch = dict(asked(stream, task, part))
    labels, modes = batch.pop("labels"), model.training
    model.eval()
    logits = model(**batch).logits.float()
    model.train(modes)
    if stream == "digits":
        two = torch.tensor(classes(task))
        right = (logits.argmax(1) == labels).float().mean()
        easier = (two[logits[:, two].argmax(1)] == labels).float().mean()
    else:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        counted = labels != -100
        right = (logits.argmax(1) == labels)[counted].float().mean()
        easier = -F.cross_entropy(logits[counted], labels[counted]) / math.log(2)
    return round(float(right), 4), round(float(easier), 4)


@cache
def pretrained() -> dict[str, Tensor]:
    """The left singular vectors of the weights before any task."""
    return {s: hra.linear.weight(m).detach().clone() for s, m in sites(model("text"))}


def sites(model: Any) -> Any:
    return hra.linear.sites(model, moby.ALL).items()


@torch.no_grad()
def intruders(tuned: hra.Adapted) -> float:
    """Per weight, of the present model."""
    count = 0
    for site, a in tuned.adapters.items():
        W0 = pretrained()[site]
        cosines = subspace.resemblance(W0, W0 + a.delta_weight(), TOP)
        count += int((cosines < CUT).sum())
    return round(count / len(tuned.adapters), 3)


def in_turn(
    setting: str, stream: str, seed: int, lr: float, part: str, count: bool = False
) -> tuple[hra.Adapted, Tensor, dict[str, Any]]:
    """One adapter trained on through all tasks: it, P, and what else was found."""
    tuned = adapters(setting, stream, seed)
    easier: list[list[float]] = []
    grown: list[float] = []
    row: list[float] = []

    def scored(task: str) -> float:
        right, other = score(tuned.model, stream, task, part)
        row.append(other)
        return right

    def after(_: int) -> None:
        easier.append(row.copy())
        row.clear()
        if count:
            grown.append(intruders(tuned))

    P = continual.sequence(
        [
            continual.Task(
                task,
                partial(
                    hra.fit,
                    tuned,
                    batches(stream, task, seed),
                    STEPS,
                    lr,
                    progress=False,
                ),
                partial(scored, task),
            )
            for task in TASKS[stream]
        ],
        after=after,
    )
    found: dict[str, Any] = {"trained": tuned.num_trainable, "steps": STEPS}
    found["easier"] = easier
    return tuned, P, found | ({"intruders": grown} if count else {})


def by_itself(
    setting: str, stream: str, task: str, seed: int, lr: float, part: str
) -> tuple[float, float]:
    """A fresh adapter trained on one task."""
    tuned = adapters(setting, stream, seed)
    hra.fit(tuned, batches(stream, task, seed), STEPS, lr, progress=False)
    return score(tuned.model, stream, task, part)


def run(stream: str, setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    reported = part == "test"
    _, P, found = in_turn(
        setting, stream, seed, lr, part, count=reported and stream == "text"
    )
    found["P"] = [[round(float(x), 4) for x in row[: i + 1]] for i, row in enumerate(P)]
    found["own"] = round(float(P.diagonal().mean()), 4)
    # the first task is alone in the sequence too
    P0 = [float(P[0, 0])]
    if reported:
        for task in TASKS[stream][1:]:
            P0.append(by_itself(setting, stream, task, seed, lr, part)[0])
        found["alone"] = P0
    else:
        P0 = [0.0] * len(P)
    metrics = continual.metrics(P, torch.tensor(P0))
    told = {k: round(v, 4) for k, v in metrics._asdict().items()}
    return found | (told if reported else {k: told[k] for k in ("AP", "BWT")})


STUDY = Study("sequence", run, SETTING, SEEDS)
record = STUDY.record


def matrix(rows: list[list[float]]) -> Tensor:
    """A recorded matrix, NaN above the diagonal."""
    P = torch.full((len(rows), len(rows)), float("nan"), dtype=torch.float64)
    for i, row in enumerate(rows):
        P[i, : i + 1] = torch.tensor(row, dtype=torch.float64)
    return P


def tune(study: Study, stream: str) -> list[dict[str, Any]]:
    """The rate of every setting, its grid extended where the best is at an end."""
    grids = {k: list(RATES[stream][k]) for k in SETTINGS}
    for more in range(WIDER + 1):
        grid = [(k, lr) for k, rates in grids.items() for lr in rates]
        runs = study.do(jobs(grid, [moby.TUNING], stream, "validation"))
        chosen = choose(runs.values(), by=["stream", "setting"], value="AP", best=max)
        for c in chosen:
            if not c["interior"] and more < WIDER:
                low = c["best"] == c["grid"][0]
                grids[c["setting"]].append(beside(c["best"], -1 if low else 1))
    return chosen


def beside(rate: float, way: int) -> float:
    """The next of … 1e-3, 3e-3, 1e-2 …"""
    places = [float(f"{m}e{k}") for k in range(-7, 2) for m in (1, 3)]
    return places[places.index(rate) + way]


def jobs(cells: Any, seeds: Any, stream: str, part: str = "test") -> dict[str, Any]:
    return moby.jobs(cells, seeds, part, stream=stream)


def main(study: Study) -> None:
    best: dict[str, dict[str, float]] = {}
    chosen = []
    for stream in ("digits", "text"):
        told = tune(study, stream)
        chosen += told
        best[stream] = {c["setting"]: c["best"] for c in told}
        for seed in SEEDS:
            study.do(jobs(best[stream].items(), [seed], stream))
    study.protocol(chosen, "AP on the validation parts, with seed 100")
    study.note(lr=best)
    study.note(
        before={k: [score(model(k), k, t, "test")[0] for t in TASKS[k]] for k in TASKS}
    )


if __name__ == "__main__":
    STUDY.start(main)
