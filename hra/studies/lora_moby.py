"""Study: GPT-2 tiny, from the addresses to Moby Dick. Full fine-tuning, LoRA of ranks 1
to 16, and which matrices.

    python -m hra.studies.lora_moby            # or: make experiments NAME=lora_moby

Bits per character are of the test chapters; learning rates were chosen on the
validation chapters with seed 100, which no reported run uses.
"""

from __future__ import annotations

from typing import Any

from hra.studies import moby
from hra.studies.moby import ALL, LIMIT, STEPS, TUNING
from hra.studies.study import Study, choose, interval

__all__ = ["ALL", "LIMIT", "MATRICES", "RANKS", "SEEDS", "STEPS", "interval", "record"]

RANKS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2)
LRS = {"FullFT": (3e-4, 1e-3, 3e-3), "LoRA": (1e-3, 3e-3, 1e-2, 3e-2)}
# about the same trained numbers (34,560 to 36,864), spent on different matrices
MATRICES = {
    "attn.c_attn": (r"attn\.c_attn", 8),
    "attn.c_proj": (r"attn\.c_proj", 16),
    "mlp.c_fc": (r"mlp\.c_fc", 6),
    "mlp.c_proj": (r"mlp\.c_proj", 6),
    "all four": (ALL, 2),
}


def run(**job: Any) -> dict[str, Any]:
    return moby.fine_tune(**job)[1]


STUDY = Study("lora_moby", run, moby.SETTING, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    def job(method: str, seed: int, lr: float, part: str = "test", **more: Any) -> dict:
        base = {"method": method, "seed": seed, "lr": lr, "part": part}
        return base | {"targets": ALL, "hyper": {}} | more

    hyper: dict[str, dict] = {"FullFT": {}, "LoRA": {"r": 8}}
    tuning = study.do(
        {
            f"{m} lr={lr}": job(m, TUNING, lr, "validation", hyper=hyper[m])
            for m, rates in LRS.items()
            for lr in rates
        }
    )
    chosen = choose(tuning.values(), by=["method"])
    study.protocol(chosen, f"{moby.ON}; LoRA at r = 8, α = 16")
    best = {c["method"]: c["best"] for c in chosen}
    jobs = {}
    for s in SEEDS:
        jobs[f"FullFT seed={s}"] = job("FullFT", s, best["FullFT"])
        for r in RANKS:
            jobs[f"LoRA r={r} seed={s}"] = job("LoRA", s, best["LoRA"], hyper={"r": r})
        for name, (targets, r) in MATRICES.items():
            jobs[f"{name} seed={s}"] = job(
                "LoRA", s, best["LoRA"], targets=targets, hyper={"r": r}
            )
    study.do(jobs)
    study.note(before=moby.before(), lr=best)


if __name__ == "__main__":
    STUDY.start(main)
