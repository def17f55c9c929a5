"""Study: SHiRA and its relatives at equal trained numbers and equal steps, on a text
and on digits. Fixed masks, masks that move, sparse changes and sparse factors.

    python -m hra.studies.relatives            # or: make experiments NAME=relatives

Two tasks: "text", GPT-2 tiny from the addresses to Moby Dick, at the numbers of LoRA of
rank 4, 1 in 36; "digits", ViT tiny from upright digits to digits turned by 90 degrees,
at those of LoRA of rank 2, 7 in 256. Every step counts: what a method trains before its
mask is there (LT-SFT's first run, RoSA's warm-up) comes off its steps; "LTSFT, extra"
has the first run on top. Calibration, 8 batches without a step, is free. Rates are
chosen for each task with seed 100, which no reported run uses: three to begin with, and
the next one beyond the better end until the best lies inside.

A run holds: `score`, the smaller the better (bits per character of 40,000 of the test
part; the error rate on test digits); `old`, the same of what the model knew before;
`trained`, numbers that are left at the end; `bytes` of the file; every third of the
`losses` (of the last phase); `moves` of a moving mask:
(step, entries changed, share of the first mask left, share of the entries that `grad`
would have taken). On the text, `shared`: the share of the mask that is in those which
the pretrained model's gradient, SNIP and Fisher's information choose layer by layer;
`kinds`: entries by kind of layer.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hra
from hra import linear, masks
from hra.data import digits
from hra.studies import intruders, moby, vision
from hra.studies.study import Study

SEEDS, TUNING, STEPS = (0, 1, 2, 3, 4), 100, 60
BATCH = {"text": 4, "digits": 8}
TASKS = tuple(BATCH)
TARGETS = {"text": moby.ALL, "digits": vision.TARGETS}
# after which a bottleneck stands
OUTPUTS = {"text": r"attn\.c_proj|mlp\.c_proj", "digits": r"layers\..*(o_proj|fc2)"}
DENSITY = {"text": 1 / 36, "digits": 7 / 256}
RANK = {"text": 4, "digits": 2}
WARM = 1e-3  # of a first, full run: full fine-tuning's best rate in other studies
MOVES = {"every": 10, "gamma": 5}  # of SpIEL: after 5, 15, … 55 steps
KINDS = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
# setting: method, own numbers (a dict, or one for each task), the first rate to look at
SETTINGS: dict[str, tuple[str, dict[str, Any], float]] = {
    "FullFT": ("FullFT", {}, 1e-3),
    "LoRA": ("LoRA", {}, 1e-2),
    "PartialFT": ("PartialFT", {"unit": "row"}, 3e-3),
    "SHiRA rand": ("SHiRA", {"mask": "rand"}, 3e-2),
    "SHiRA grad": ("SHiRA", {"mask": "grad"}, 3e-2),
    "FISH": ("FISH", {}, 1e-2),
    "LTSFT": ("LTSFT", {}, 1e-2),
    "LTSFT, extra": ("LTSFT", {}, 1e-2),
    "DiffPruning": ("DiffPruning", {"fixed": 0.5}, 3e-3),
    "SpIEL, AG": ("SpIEL", {"grow": "AG", **MOVES}, 1e-2),
    "SpIEL, MA": ("SpIEL", {"grow": "MA", **MOVES}, 1e-2),
    "RoSA": ("RoSA", {}, 1e-2),
    "SoRA": ("SoRA", {"xi": 5e-3}, 1e-2),
    "SparseAdapter": ("SparseAdapter", {}, 1e-2),
    "SparseAdapterLoRA": ("SparseAdapterLoRA", {"rule": "er", "keep": 0.25}, 1e-2),
}
BOTTLENECK = {"text": 64, "digits": 32}  # "Large-Sparse": 4 times what fits, and more
FIRST = {"LTSFT": STEPS // 2, "LTSFT, extra": STEPS, "RoSA": STEPS // 4}
RUNGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SETTING = {"steps": STEPS, "batch": BATCH, "density": DENSITY, "rank": RANK}


def pretrained(task: str) -> Any:
    return hra.zoo.gpt2("tiny") if task == "text" else hra.zoo.vit("tiny")


def batches(task: str, seed: int) -> Iterator[dict[str, Any]]:
    if task == "text":
        return hra.data.lm_batches(moby.tokens(), BATCH[task], moby.LENGTH, seed=seed)
    images = vision.few("turned", vision.IMAGES[0], seed)
    return iter(digits.image_batches(*images, BATCH[task], seed))


def calibration(task: str, seed: int) -> list[dict[str, Any]]:
    return list(islice(batches(task, seed), moby.CALIBRATION))


@cache
def scores(task: str, seed: int) -> dict[str, dict[str, Tensor]]:
    """|gradient|, SNIP's scores and Fisher's information of the pretrained model."""
    model, some = pretrained(task), calibration(task, seed)
    mean = hra.probe(model, some, TARGETS[task], progress=False).mean
    W = {s: linear.weight(model.get_submodule(s)).detach() for s in mean}
    return {
        "grad": {s: g.abs() for s, g in mean.items()},
        "snip": {s: (W[s] * g).abs() for s, g in mean.items()},
        "fisher": hra.fisher(model, some, TARGETS[task], progress=False),
    }


def chosen(task: str, seed: int, rule: str) -> dict[str, Tensor]:
    """The mask of a rule, as a flat index of every layer."""
    return {
        s: masks.top(S, round(DENSITY[task] * S.numel()))
        for s, S in scores(task, seed)[rule].items()
    }


def adapted(
    setting: str, task: str, seed: int, lr: float
) -> tuple[hra.Adapted, Iterator[dict[str, Any]], int]:
    """What trains last, its batches, its steps; what comes first is done."""
    name, own, _ = SETTINGS[setting]
    model, source, where = pretrained(task), batches(task, seed), TARGETS[task]
    first, extra = FIRST.get(setting, 0), setting.endswith("extra")
    if name in ("LoRA", "SoRA"):
        own = own | {"r": RANK[task]}
    elif name == "SparseAdapterLoRA":
        own = own | {"r": 4 * RANK[task]}
    elif name == "SparseAdapter":
        where = OUTPUTS[task]
        own = own | bottleneck(model, task, seed)
    elif name == "RoSA":
        half = RANK[task] // 2
        warm = hra.attach(model, hra.LoRA, where, r=half, seed=seed)
        hra.fit(warm, source, first, lr, progress=False)
        G = hra.probe(model, calibration(task, seed), where, progress=False).squared
        warm.detach()
        own = own | {"r": half, "scores": G, "density": DENSITY[task] / 2}
    elif name == "LTSFT":
        full = hra.attach(model, hra.FullFT, where, seed=seed)
        begun = batches(task, seed) if extra else source
        hra.fit(full, begun, first, WARM, progress=False)
        moved = {s: a.delta_weight().detach() for s, a in full.adapters.items()}
        full.detach()
        where, ranked = together(moved, task)
        own = own | ranked
    elif name == "FISH":
        where, ranked = together(scores(task, seed)["fisher"], task)
        own = own | ranked
    elif name != "FullFT":
        own = own | {"density": DENSITY[task]}
        if own.get("mask") == "grad":
            own["gradients"] = scores(task, seed)["grad"]
    tuned = hra.attach(model, hra.METHODS[name], where, seed=seed, **own)
    return tuned, source, STEPS - (0 if extra else first)


def together(scores: dict[str, Tensor], task: str) -> tuple[str, dict[str, Any]]:
    """One ranking over all layers: targets, without the layers that it leaves bare, and
    what FISH and LT-SFT are given for as many entries in all.
    """
    sizes = {s: S.numel() for s, S in scores.items()}
    K = round(DENSITY[task] * sum(sizes.values()))
    best = masks.top(torch.cat([S.abs().flatten() for S in scores.values()]), K)
    ends = torch.tensor(list(sizes.values())).cumsum(0)
    some = torch.bucketize(best, ends, right=True).unique()
    sites = [list(scores)[i] for i in some.tolist()]
    density = K / sum(sizes[s] for s in sites)
    names = "|".join(re.escape(s) + "$" for s in sites)
    return names, {"scores": scores, "density": density}


def bottleneck(model: Any, task: str, seed: int) -> dict[str, Any]:
    """SNIP's scores of fresh bottlenecks, and the share of their weights that makes
    them, with the biases, as many numbers as LoRA's.
    """
    r = BOTTLENECK[task]
    low = hra.attach(model, hra.LoRA, TARGETS[task], r=RANK[task])
    K = low.num_trainable
    low.detach()
    fresh = hra.attach(model, hra.Houlsby, OUTPUTS[task], r=r, seed=seed)
    for batch in calibration(task, seed):
        model(**batch).loss.backward()
    snip = {s: hra.SparseAdapter.snip(a) for s, a in fresh.adapters.items()}
    biases = sum(a.b_d.numel() + a.b_u.numel() for a in fresh.adapters.values())
    keep = (K - biases) / (fresh.num_trainable - biases)
    fresh.detach()
    return {"r": r, "keep": keep, "scores": snip}


class Watch:
    """After each step: has a mask moved, and where is it now?"""

    def __init__(self, tuned: hra.Adapted, task: str, seed: int) -> None:
        self.adapters = tuned.adapters
        self.grad = chosen(task, seed, "grad")
        self.first: dict[str, Tensor] = {}
        self.moves: list[list[float]] = []
        self.told = 0

    def __call__(self, log: hra.Log) -> None:
        new = [e for e in log.events[self.told :] if "changed" in e]
        self.told = len(log.events)
        if not new:
            return
        now = {s: a.index.clone() for s, a in self.adapters.items()}
        self.first = self.first or now
        changed = sum(e["changed"] for e in new)
        left, grad = share(now, self.first), share(now, self.grad)
        self.moves.append([len(log.steps), changed, left, grad])


def share(index: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Which part of `index` is in `other`."""
    both = sum(int(torch.isin(i, other[s]).sum()) for s, i in index.items())
    return round(both / sum(map(len, index.values())), 4)


def train(
    setting: str, task: str, seed: int, lr: float
) -> tuple[hra.Adapted, hra.Log, Watch]:
    """One run; batches, scores and starts depend on `seed` alone."""
    tuned, source, steps = adapted(setting, task, seed, lr)
    watch = Watch(tuned, task, seed)
    log = hra.fit(tuned, source, steps, lr, progress=False, callback=watch)
    return tuned, log, watch


def score(model: Any, task: str, part: str, old: bool = False) -> float:
    """The smaller the better."""
    if task == "text":
        return intruders.old(model) if old else moby.bits(model, part)
    return round(1 - vision.score(model, "turned", part, old), 4)


def run(setting: str, task: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    tuned, log, watch = train(setting, task, seed, lr)
    found: dict[str, Any] = {"score": score(tuned.model, task, part)}
    if part == "validation":
        return found
    found["old"] = score(tuned.model, task, part, old=True)
    found["trained"] = live(tuned)
    found["losses"] = [round(x, 3) for x in log.losses[::3]]
    if watch.moves:
        found["moves"] = watch.moves
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        tuned.save(path)
        found["bytes"] = path.stat().st_size
    if task == "text" and hasattr(next(iter(tuned.adapters.values())), "stash"):
        index = {s: a.index for s, a in tuned.adapters.items()}
        found["shared"] = {
            r: share(index, chosen(task, seed, r)) for r in scores(task, seed)
        }
        found["kinds"] = {
            k: sum(len(i) for s, i in index.items() if s.endswith(k)) for k in KINDS
        }
    return found


def live(tuned: hra.Adapted) -> int:
    """Numbers that are left at the end: SoRA's without the ranks that have gone."""
    if tuned.method is not hra.SoRA:
        return tuned.num_trainable
    return sum(int(a.left) * (1 + sum(a.shape)) for a in tuned.adapters.values())


STUDY = Study("relatives", run, SETTING, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    tuned = []
    for task in TASKS:
        at = {k: RUNGS.index(v[2]) for k, v in SETTINGS.items()}
        grids = {k: RUNGS[i - 1 : i + 2] for k, i in at.items()}
        found = moby.search(study, grids, RUNGS, "score", task=task)
        best = [(c["setting"], c["best"]) for c in found]
        study.do(moby.jobs(best, SEEDS, task=task))
        tuned += found
    study.protocol(tuned, "the validation parts, with seed 100")
    before = {
        task: [score(pretrained(task), task, "test", old) for old in (False, True)]
        for task in TASKS
    }
    study.note(before=before)


if __name__ == "__main__":
    STUDY.start(main)
