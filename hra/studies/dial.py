"""Study: an adapter turned up and down. GPT-2 tiny, from the addresses to Moby Dick;
what becomes of both texts with W0 + α ΔW, α from −1 to 2.

    python -m hra.studies.dial                 # or: make experiments NAME=dial

The adapters are those of the study shira_masks, at the rates that were best there: LoRA
of rank 2, and SHiRA of as many numbers on a random mask. A run holds, for every α, the
bits per character of the new and of the old text.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hra
from hra.studies import intruders, moby
from hra.studies.study import Study, record

SEEDS = (0, 1, 2, 3, 4)
STRENGTHS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA r=2": ("LoRA", {"r": 2}),
    "SHiRA rand": ("SHiRA", {"mask": "rand", "density": 1 / 72}),
}


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    tuned, found = moby.fine_tune(method, seed, lr, part, hyper)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        tuned.save(path)
        switch = hra.Switch(hra.zoo.gpt2("tiny"))
        dial = []
        for strength in STRENGTHS:
            model = switch.to(path, strength=strength)
            dial.append([strength, moby.bits(model, part), intruders.old(model)])
    return {"trained": found["trained"], "bits": found["bits"], "dial": dial}


STUDY = Study("dial", run, moby.SETTING, SEEDS)


def main(study: Study) -> None:
    chosen = record("shira_masks")["protocol"]["chosen"]
    chosen = [c for c in chosen if c["setting"] in SETTINGS]
    study.protocol(chosen, moby.ON, study="shira_masks")
    best = {c["setting"]: c["best"] for c in chosen}
    study.do(moby.jobs(best.items(), SEEDS))
    study.note(lr=best)


if __name__ == "__main__":
    STUDY.start(main)
