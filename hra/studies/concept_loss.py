"""Study: two adapters, each trained alone, added up. What does each task lose?

    python -m hra.studies.concept_loss         # or: make experiments NAME=concept_loss

Three pairs of tasks: ViT tiny to digits turned by 90 degrees and to inverted ones; the
ViT that knows 0 to 5, to 6 and 7 and to 8 and 9; GPT-2 tiny to Moby Dick and to the
Jargon File. A run holds the scores of the two tasks (accuracy; minus the bits per
character): of each adapter `alone`, of the two `summed`, at half strength each
(`halved`), and at the common strength that is best on the validation part (`best`);
`loss` is what the sum loses against each alone, the mean of the two. Every setting but
BitFit and FullFT trains what LoRA of rank 2 trains, nearly. Learning rates were chosen
for each task on the beginning of its validation part with seed 100, which no reported
run uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

import hra
from hra.analysis import orthogonality
from hra.data import digits
from hra.studies.digit_shifts import shift
from hra.studies.study import Study, choose

SEEDS, TUNING, CALIBRATION = (0, 1, 2, 3, 4), 100, 8
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
PAIRS = {
    "shifts": ("rotated", "inverted"),
    "digits": ("6 and 7", "8 and 9"),
    "texts": ("moby_dick", "jargon"),
}
# method, what both adapters are made with, what the second is made with besides
SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "FullFT": ("FullFT", {}, {}),
    "BitFit": ("BitFit", {}, {}),
    "LoRA": ("LoRA", {"r": 2}, {}),
    "rsLoRA": ("RsLoRA", {"r": 2}, {}),
    "rand": ("SHiRA", {"mask": "rand"}, {}),
    "struct": ("SHiRA", {"mask": "struct"}, {}),
    "struct apart": ("SHiRA", {"mask": "struct", "diagonal": False}, {"offset": 1}),
    "weight": ("SHiRA", {"mask": "weight"}, {}),
    "weight apart": ("SHiRA", {"mask": "weight"}, {"offset": 1}),
    "grad": ("SHiRA", {"mask": "grad"}, {}),
    "snip": ("SHiRA", {"mask": "snip"}, {}),
}
DENSITY = {"ViT": 7 / 256, "GPT-2": 1 / 72}  # LoRA's numbers at rank 2
LRS = {
    "FullFT": (3e-4, 1e-3, 3e-3),
    "BitFit": (1e-2, 3e-2, 1e-1),
    "LoRA": (1e-3, 3e-3, 1e-2),
    "RsLoRA": (1e-3, 3e-3, 1e-2),
    "SHiRA": (1e-2, 3e-2, 1e-1),
}
SETTING = {"steps": {"ViT": 150, "GPT-2": 60}, "batch": {"ViT": 64, "GPT-2": 8}}
TARGETS = {"ViT": r"layers\.", "GPT-2": "c_attn|c_proj|c_fc"}
GELU: Callable[[Tensor], Tensor] = torch.nn.functional.gelu
WIDE = {"ViT": "fc1", "GPT-2": "c_fc"}  # the layers that an activation follows
LENGTH = 128
# characters, and digits, of a part that count
LIMIT = {"validation": (10_000, 400), "test": (40_000, 1000)}


def kind(task: str) -> str:
    return "GPT-2" if task in PAIRS["texts"] else "ViT"


def base(task: str) -> Any:
    if kind(task) == "GPT-2":
        return hra.zoo.gpt2("tiny")
    return hra.zoo.vit("tiny-0-5" if task in PAIRS["digits"] else "tiny")


@cache
def images(task: str, part: str) -> tuple[Tensor, Tensor]:
    if task in PAIRS["digits"]:
        return digits.digits(part, classes=[int(c) for c in task.split(" and ")])
    x, y = digits.digits(part)
    return shift(task, x), y


@cache
def tokens(task: str) -> Tensor:
    return hra.data.tokens(hra.zoo.tokenizer("tiny"), task)


def batches(task: str, seed: int) -> Iterator[dict[str, Tensor]]:
    if kind(task) == "GPT-2":
        return hra.data.lm_batches(tokens(task), 8, LENGTH, seed=seed)
    return digits.image_batches(*images(task, "train"), 64, seed)


def score(model: Any, task: str, part: str) -> float:
    """Accuracy, or minus the bits per character: more is better."""
    if kind(task) == "GPT-2":
        text = hra.data.text(task, part)[: LIMIT[part][0]]
        tok = hra.zoo.tokenizer("tiny")
        return round(-hra.data.bits_per_character(model, tok, text), 4)
    x, y = (t[: LIMIT[part][1]] for t in images(task, part))
    return round(digits.accuracy(model, x, y), 4)


def train(setting: str, task: str, second: bool, seed: int, lr: float) -> hra.Adapted:
    """One adapter; the second of a pair draws its masks, its start and its batches from
    a seed of its own.
    """
    method, hyper, more = SETTINGS[setting]
    hyper, seed = hyper | (more if second else {}), 2 * seed + second
    model, where = base(task), kind(task)
    if method == "SHiRA":
        hyper = hyper | {"density": DENSITY[where]}
    if hyper.get("mask") in ("grad", "snip"):
        some = islice(batches(task, seed), CALIBRATION)
        probe = hra.probe(model, some, targets=TARGETS[where], progress=False)
        hyper = hyper | {"gradients": probe.mean}
    tuned = hra.attach(model, hra.METHODS[method], TARGETS[where], seed=seed, **hyper)
    steps = SETTING["steps"][where]
    hra.fit(tuned, batches(task, seed), steps, lr, progress=False)
    return tuned


def change(tuned: hra.Adapted, task: str) -> dict[str, Tensor]:
    """What the adapter adds to each parameter of the model, biases included."""
    start = dict(base(task).named_parameters())
    merged = dict(tuned.merge().named_parameters())
    return {n: (p - start[n]).detach() for n, p in merged.items()}


def added(task: str, changes: list[dict[str, Tensor]], strength: float) -> Any:
    """The pretrained model and `strength` times all of the changes."""
    model = base(task)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += strength * sum(c[name] for c in changes)
    return model.eval()


def overlap(
    one: dict[str, Tensor], two: dict[str, Tensor], task: str
) -> dict[str, Any]:
    """Means over the adapted weights: what the masks share, and what the paper's two
    measures say; `interference` (see hra.analysis) over the wide layers on data.
    """
    model, x = base(task), next(iter(batches(task, TUNING)))
    where, inputs = kind(task), {}
    wide = {n: m for n, m in model.named_modules() if n.endswith(WIDE[where])}
    handles = [
        m.register_forward_pre_hook(
            lambda m, args, n=n: inputs.update({n: args[0].flatten(0, -2)[:512]})
        )
        for n, m in wide.items()
    ]
    with torch.no_grad():
        model(**x)
    for h in handles:
        h.remove()
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for name, layer in hra.linear.sites(model, TARGETS[where]).items():
        A, B = (c[f"{name}.weight"] for c in (one, two))
        if hra.linear.is_conv1d(layer):
            A, B = A.T, B.T
        if not (A.any() and B.any()):
            continue  # the biases alone have changed
        both = (A != 0) & (B != 0)
        note("shared entries", float(both.sum() / (A != 0).sum()))
        lines = [(M != 0).any(1) for M in (A, B)]
        note("shared rows", float((lines[0] & lines[1]).sum() / lines[0].sum()))
        note("AWOM", orthogonality.awom(A, B, "normalised"))
        note("AWOR", orthogonality.awor(A, B))
        if name in wide:
            W = hra.linear.weight(layer)
            note(
                "interference", orthogonality.interference(W, A, B, inputs[name], GELU)
            )
    return {k: round(sum(v) / len(v), 4) for k, v in rows.items()}


def tune(setting: str, task: str, seed: int, lr: float) -> dict[str, Any]:
    """One adapter alone, on the validation part."""
    second = task in [pair[1] for pair in PAIRS.values()]
    tuned = train(setting, task, second, seed, lr)
    return {
        "trained": tuned.num_trainable,
        "score": score(tuned.model, task, "validation"),
    }


def add_up(setting: str, pair: str, seed: int, lrs: list[float]) -> dict[str, Any]:
    """Both adapters, alone and added up, on the test part."""
    tasks, changes, trained = PAIRS[pair], [], 0
    for i, task in enumerate(tasks):
        tuned = train(setting, task, bool(i), seed, lrs[i])
        trained = tuned.num_trainable
        changes.append(change(tuned, task))

    def scores(which: list[dict[str, Tensor]], strength: float, part: str) -> list:
        model = added(tasks[0], which, strength)
        return [score(model, task, part) for task in tasks]

    def found(strength: float) -> list[float]:
        return scores(changes, strength, "test")

    alone = [scores([c], 1.0, "test")[i] for i, c in enumerate(changes)]
    summed = found(1.0)
    valid = {a: sum(scores(changes, a, "validation")) for a in STRENGTHS}
    best = max(valid, key=lambda a: valid[a])
    return {
        "trained": trained,
        "alone": alone,
        "summed": summed,
        "halved": found(0.5),
        "strength": best,
        "best": summed if best == 1.0 else found(best),
        "loss": round((sum(alone) - sum(summed)) / 2, 4),
        "overlap": overlap(changes[0], changes[1], tasks[0]),
    }


def run(part: str, **job: Any) -> dict[str, Any]:
    return tune(**job) if part == "validation" else add_up(**job)


STUDY = Study("concept_loss", run, SETTING, SEEDS, model="vit-tiny")
record = STUDY.record


def main(study: Study, pairs: tuple[str, ...] = tuple(PAIRS)) -> None:
    tasks = [task for pair in pairs for task in PAIRS[pair]]
    tuning = study.do(
        {
            f"{s} {task} lr={lr}": {"setting": s, "task": task, "seed": TUNING}
            | {"lr": lr, "part": "validation"}
            for task in tasks
            for s in SETTINGS
            for lr in LRS[SETTINGS[s][0]]
        }
    )
    chosen = choose(tuning.values(), ["task", "setting"], value="score", best=max)
    study.protocol(
        chosen, "each task's validation part, with seed 100, which no run uses"
    )
    best = {(c["setting"], c["task"]): c["best"] for c in chosen}
    study.do(
        {
            f"{s} {pair} seed={seed}": {"setting": s, "pair": pair, "seed": seed}
            | {"lrs": [best[s, t] for t in PAIRS[pair]], "part": "test"}
            for seed in SEEDS
            for pair in pairs
            for s in SETTINGS
        }
    )
    before = {p: [score(base(t), t, "test") for t in PAIRS[p]] for p in pairs}
    study.note(before=before)


if __name__ == "__main__":
    STUDY.start(main)
