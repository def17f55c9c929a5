"""Study: GPT-2 tiny, from the addresses to Moby Dick, by the methods that are older
than LoRA, each at about as many trained numbers as the biases are; and LoRA.

    python -m hra.studies.before_lora          # or: make experiments NAME=before_lora

Every setting has its own best rate, inside its grid (which grows until it is), chosen
on the validation chapters with seed 100, which no reported run uses; there are five
seeds at it. A prompt of n takes n of the 128 positions, so a prompt trains on, and is
measured in, the first 128 − n tokens of what the others read. `short`: bits per
character in such windows, also of those that need none. `losses` are over the same
targets in all: the first token of a window is none. "pretrained" has the losses of the
model that nothing has trained on the same batches, of whole and of `cut` windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

import hra
from hra.studies import moby
from hra.studies.study import Study

SEEDS, STEPS, BATCH, CONTEXT, N = (0, 1, 2, 3, 4), 60, 4, 128, 54
ROOM = CONTEXT - N  # what the prompt leaves of the context
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# setting: method, its numbers, where it stands, the first learning rates
SETTINGS: dict[str, tuple[str, dict[str, Any], str, tuple[float, ...]]] = {
    "LoRA": ("LoRA", {"r": 1}, "c_attn|c_fc", LADDER[3:6]),
    "BitFit": ("BitFit", {}, moby.ALL, LADDER[3:6]),
    "Houlsby": ("Houlsby", {"r": 2}, r"attn\.c_proj|mlp\.c_proj", LADDER[4:7]),
    "LinAdapter": ("LinAdapter", {"r": 3}, r"mlp\.c_proj", LADDER[3:6]),
    "prefix": ("PrefixTuning", {"n": 5}, "", LADDER[5:9]),
    "prefix by an MLP": ("PrefixTuning", {"n": 5, "hidden": 512}, "", LADDER[2:5]),
    "prompt": ("PromptTuning", {"n": N}, "", LADDER[2:7]),
}
BASE = "pretrained"
BOTH = (BASE, "LoRA", "prompt")  # measured in short windows too


def batches(seed: int, length: int = CONTEXT) -> Iterator[dict[str, Any]]:
    """Windows of the training chapters, the same for every length up to the cut."""
    for b in hra.data.lm_batches(moby.tokens(), BATCH, CONTEXT, seed=seed):
        ids = b["input_ids"][:, :length]
        labels = ids.clone()
        labels[:, 0] = -100  # a prompt would predict it, other methods cannot
        yield {"input_ids": ids, "labels": labels}


def bits(model: Any, part: str, length: int) -> float:
    """Bits per character in windows of `length`."""
    text, tokenizer = hra.data.text("moby_dick", part), hra.zoo.tokenizer("tiny")
    return round(
        hra.data.bits_per_character(
            model, tokenizer, text, limit=moby.LIMIT, length=length
        ),
        4,
    )


@torch.no_grad()
def untrained(model: Any, seed: int, length: int) -> list[float]:
    """The losses of every step's batch, nothing trained."""
    some = islice(batches(seed, length), STEPS)
    return [round(model(**b).loss.item(), 3) for b in some]


def fine_tune(
    setting: str, seed: int, lr: float, steps: int = STEPS
) -> tuple[hra.Adapted, list[float]]:
    """One run: the adapted model, its losses."""
    method, hyper, where, _ = SETTINGS[setting]
    model = hra.zoo.gpt2("tiny")
    tuned = hra.attach(model, hra.METHODS[method], where, seed=seed, **hyper)
    some = batches(seed, ROOM if setting == "prompt" else CONTEXT)
    log = hra.fit(tuned, some, steps, lr, progress=False)
    return tuned, [round(x, 3) for x in log.losses]


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    if setting == BASE:
        model = hra.zoo.gpt2("tiny")
        found = {"losses": untrained(model, seed, CONTEXT), "trained": 0}
        found["cut"] = untrained(model, seed, ROOM)
    else:
        tuned, losses = fine_tune(setting, seed, lr)
        model = tuned.model
        found = {"losses": losses, "trained": tuned.num_trainable}
    own = ROOM if setting == "prompt" else CONTEXT
    found["bits"] = bits(model, part, own)
    if part == "test" and setting in BOTH:
        short = found["bits"] if own == ROOM else bits(model, part, ROOM)
        found["short"] = short
    return found


SETTING = {"steps": STEPS, "batch": BATCH, "length": CONTEXT, "prompt": N}
STUDY = Study("before_lora", run, SETTING | {"test_characters": moby.LIMIT}, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    study.do(moby.jobs([(BASE, 0.0)], [moby.TUNING], "validation"))
    study.do(moby.jobs([(BASE, 0.0)], SEEDS))
    chosen = moby.search(study, {k: v[3] for k, v in SETTINGS.items()}, LADDER)
    study.protocol(chosen, moby.ON)
    best = {c["setting"]: c["best"] for c in chosen}
    study.do(moby.jobs(best.items(), SEEDS))
    study.note(lr=best)


if __name__ == "__main__":
    STUDY.start(main)
