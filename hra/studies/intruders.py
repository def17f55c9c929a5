"""Study: GPT-2 tiny, from the addresses to Moby Dick. Intruder dimensions: leading
singular vectors of W0 + ΔW that no singular vector of W0 resembles.

    python -m hra.studies.intruders            # or: make experiments NAME=intruders

Shuttleworth et al., 2024, arXiv:2410.21228, count them for LoRA and full fine-tuning.
Here for LoRA over r, rsLoRA, DoRA, the masks of SHiRA: among the TOP leading left
singular vectors of each of the 24 weights, those whose cosine with every left singular
vector of W0 is below a threshold. Then their causal test: the singular values of the
intruders (at 0.6) are multiplied by 0 and by ½, and what becomes of the new text (Moby
Dick, `new`) and of the old one (the addresses, `old`) is measured; and the same for as
many leading vectors at random, per weight (`instead`). Bits per character of the first
40,000 characters of the test parts. The adapters of seed 0 of FILES are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hra
from hra.analysis import rank, subspace
from hra.studies import moby
from hra.studies.shira_masks import SETTINGS as MASKS
from hra.studies.study import RECORDS, Study, choose, record

SEEDS, TOP, THRESHOLDS, CUT = (0, 1, 2, 3, 4), 10, (0.4, 0.6, 0.8), 0.6
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {"FullFT": ("FullFT", {})}
SETTINGS |= {f"LoRA r={r}": ("LoRA", {"r": r}) for r in (1, 2, 4, 8, 16)}
SETTINGS |= {"rsLoRA r=16": ("RsLoRA", {"r": 16}), "DoRA r=2": ("DoRA", {"r": 2})}
SETTINGS |= {k: v for k, v in MASKS.items() if v[0] == "SHiRA"}
FILES = ("LoRA r=2", "SHiRA rand", "SHiRA grad")
OWN = ("rsLoRA r=16", "DoRA r=2")  # tuned here, the others in their own studies
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def old(model: Any) -> float:
    text = hra.data.text("sotu", "test")[: moby.LIMIT]
    return round(hra.data.bits_per_character(model, hra.zoo.tokenizer("tiny"), text), 4)


def turned_down(W: Tensor, which: list[int], factor: float) -> Tensor:
    """W with the singular values number `which` multiplied by `factor`."""
    U, s, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    s[which] *= factor
    return ((U * s) @ Vh).to(W.dtype)


def run(setting: str, seed: int, lr: float, part: str) -> dict[str, Any]:
    method, hyper = SETTINGS[setting]
    tuned, found = moby.fine_tune(method, seed, lr, part, hyper)
    if part == "validation":
        return found
    start = {s: hra.linear.weight(m) for s, m in weights(hra.zoo.gpt2("tiny"))}
    model = tuned.merge()
    own = {s: hra.linear.weight(m) for s, m in weights(model)}
    found["old"] = old(model)
    count: dict[float, list[int]] = {t: [] for t in THRESHOLDS}
    stable, where = [], {}
    for site, W in own.items():
        cosines = subspace.resemblance(start[site], W, TOP)
        for t in THRESHOLDS:
            count[t].append(int((cosines < t).sum()))
        where[site] = (cosines < CUT).nonzero().flatten().tolist()
        sigma = rank.spectrum(W - start[site])
        stable.append(float(sigma.square().sum() / sigma[0] ** 2))
    found["intruders"] = {str(t): round(sum(c) / len(c), 3) for t, c in count.items()}
    found["stable"] = round(sum(stable) / len(stable), 2)
    found["turned down"] = {}
    g = torch.Generator().manual_seed(seed)
    chance = {s: torch.randperm(TOP, generator=g)[: len(w)] for s, w in where.items()}
    kept = {s: W.detach().clone() for s, W in own.items()}
    for name, lines, factor in (
        ("0.5", where, 0.5),
        ("0", where, 0.0),
        ("0, instead", {s: w.tolist() for s, w in chance.items()}, 0.0),
    ):
        with torch.no_grad():
            for s, W in own.items():
                W.copy_(turned_down(kept[s], lines[s], factor))
        found["turned down"][name] = [moby.bits(model, part), old(model)]
    return found


def adapter(setting: str, folder: Any = RECORDS) -> Any:
    """Path of the file of seed 0 of one of FILES, for `hra.zoo.gpt2("tiny")`."""
    name = "".join(c for c in setting if c.isalnum() or c == " ").replace(" ", "_")
    return folder / f"intruders_{name}.safetensors"


def save(recorded: dict[str, Any], folder: Any) -> None:
    """The adapter of a recorded run, trained again, into its file."""
    setting, seed, lr = (recorded[k] for k in ("setting", "seed", "lr"))
    method, hyper = SETTINGS[setting]
    tuned, found = moby.fine_tune(method, seed, lr, "test", hyper)
    if abs(found["bits"] - recorded["bits"]) > 0.005:
        raise RuntimeError(
            f"{setting} has {found['bits']} bits on this machine, {recorded['bits']} "
            "in the record: its file is left as it was. Record the study anew with "
            "--fresh."
        )
    tuned.save(adapter(setting, Path(str(folder))))


def weights(model: Any) -> Any:
    return hra.linear.sites(model, moby.ALL).items()


STUDY = Study("intruders", run, moby.SETTING | {"top": TOP, "cut": CUT}, SEEDS)


def main(study: Study) -> None:
    tuning = study.do(
        moby.jobs(((k, lr) for k in OWN for lr in RATES), [moby.TUNING], "validation")
    )
    chosen = choose(tuning.values(), by=["setting"])
    study.protocol(chosen, moby.ON)
    best = record("lora_grid")["lr"] | record("shira_masks")["lr"]
    best |= {c["setting"]: c["best"] for c in chosen}
    runs = study.do(moby.jobs([(k, best[k]) for k in SETTINGS], SEEDS))
    for run_ in runs.values():
        if run_["setting"] in FILES and run_["seed"] == SEEDS[0]:
            save(run_, study.folder)
    study.note(
        before=[moby.before(), old(hra.zoo.gpt2("tiny"))],
        lr={k: best[k] for k in SETTINGS},
    )


if __name__ == "__main__":
    STUDY.start(main)
