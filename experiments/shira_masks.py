"""Study: GPT-2 tiny, from the addresses to Moby Dick. The five masks of SHiRA, LoRA of
rank 2 and full fine-tuning.

    python -m experiments.shira_masks          # or: make experiments NAME=shira_masks

SHiRA's density 1/72 over the four matrices of a block is exactly LoRA's 36,864 numbers
at rank 2; struct, made of whole rows, comes near. Bits a character are of the test
chapters; learning rates were chosen on the validation chapters with seed 100, which no
reported run uses. Masks grad and snip see 8 training batches. Resumable: a recorded run
is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import hra
from experiments.lora_moby import ALL, BATCH, LENGTH, LIMIT, STEPS, interval
from hra.analysis import rank

OUT = Path(__file__).with_suffix(".json")
MASKS, SEEDS, DENSITY, CALIBRATION = (
    ("struct", "rand", "weight", "grad", "snip"),
    (0, 1, 2, 3, 4),
    1 / 72,
    8,
)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FullFT": ("FullFT", {}),
    "LoRA r=2": ("LoRA", {"r": 2}),
}
SETTINGS |= {f"SHiRA {m}": ("SHiRA", {"mask": m, "density": DENSITY}) for m in MASKS}
LRS = {
    "FullFT": (3e-4, 1e-3, 3e-3),
    "LoRA": (3e-3, 1e-2, 3e-2),
    "SHiRA": (3e-3, 1e-2, 3e-2, 1e-1),
}
SITES = tuple(
    f"transformer.h.3.{s}"
    for s in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)


def attach(
    model: Any, ids: torch.Tensor, method: str, seed: int, hyper: dict[str, Any]
) -> hra.Adapted:
    """The adapters of one setting; what a mask needs to know of the data is collected
    first.
    """
    if hyper.get("mask") in ("grad", "snip"):
        batches = islice(
            hra.data.lm_batches(ids, BATCH, LENGTH, seed=seed), CALIBRATION
        )
        hyper = hyper | {
            "gradients": hra.probe(model, batches, targets=ALL, progress=False).mean
        }
    return hra.attach(model, hra.METHODS[method], targets=ALL, seed=seed, **hyper)


def summary(delta: torch.Tensor) -> dict[str, float | int]:
    """What was learnt at one site: support, the rank it allows, the rank there is, and
    how the energy spreads.
    """
    sigma = rank.spectrum(delta)
    energy = sigma.square()
    support = delta != 0
    return {
        "K": int(support.sum()),
        "rows": int(support.any(1).sum()),
        "columns": int(support.any(0).sum()),
        "structural": rank.structural_rank(support),
        "rank": int(torch.linalg.matrix_rank(delta.detach().double())),
        "stable": round(float(energy.sum() / energy[0]), 3),
        "top8": round(float(energy[:8].sum() / energy.sum()), 4),
        "norm": round(float(sigma.norm()), 4),
    }


def run(setting: str, seed: int, lr: float, part: str = "test") -> dict:
    """One fine-tuning; the order of the batches, the mask and the start depend on
    `seed` alone.
    """
    method, hyper = SETTINGS[setting]
    model, tok = hra.zoo.gpt2("tiny"), hra.zoo.tokenizer("tiny")
    ids = hra.data.tokens(tok, "moby_dick")
    tuned = attach(model, ids, method, seed, hyper)
    log = hra.fit(
        tuned,
        hra.data.lm_batches(ids, BATCH, LENGTH, seed=seed),
        STEPS,
        lr,
        progress=False,
    )
    bits = hra.data.bits_per_character(
        model, tok, hra.data.text("moby_dick", part), limit=LIMIT
    )
    out = {
        "setting": setting,
        "lr": lr,
        "seed": seed,
        "part": part,
        "trained": tuned.num_trainable,
        "bits": round(bits, 4),
        "losses": [round(x, 3) for x in log.losses[::5]],
    }
    if part == "test":
        out["sites"] = {
            s: summary(tuned.adapters[s].delta_weight().detach()) for s in SITES
        }
    return out


def record() -> dict:
    """The recorded study."""
    return json.loads(OUT.read_text())


def rows() -> dict[str, tuple[float, float]]:
    """Of every setting, mean and half-width of the 95 % interval over the seeds."""
    runs = record()["runs"]
    return {k: interval([runs[f"{k} seed={s}"] for s in SEEDS]) for k in SETTINGS}


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    weights = hashlib.sha256(
        (root / "hra/zoo/gpt2-tiny/model.safetensors").read_bytes()
    ).hexdigest()
    library = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted((root / "hra").rglob("*.py")))
    ).hexdigest()
    done = record() if OUT.exists() else {"runs": {}}
    if done.get("weights") not in (None, weights):
        done = {"runs": {}}
    done |= {
        "command": "python -m experiments.shira_masks",
        "weights": weights,
        "library": library[:16],
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "setting": {
            "steps": STEPS,
            "batch": BATCH,
            "length": LENGTH,
            "test_characters": LIMIT,
            "seeds": SEEDS,
            "density": DENSITY,
            "calibration_batches": CALIBRATION,
        },
    }

    def save() -> None:
        OUT.write_text(
            json.dumps(done, separators=(",", ":")).replace(
                '{"setting":"', '\n{"setting":"'
            )
            + "\n"
        )

    def every(jobs: dict[str, tuple]) -> None:
        """Run what is not recorded yet, two at a time, on one thread each: the same
        numbers every time.
        """
        keys = "setting", "seed", "lr", "part"
        todo = {
            k: a
            for k, a in jobs.items()
            if [done["runs"].get(k, {}).get(n) for n in keys] != [*a, "test"][:4]
        }
        with ProcessPoolExecutor(
            2,
            mp_context=get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as pool:
            futures = {pool.submit(run, *args): key for key, args in todo.items()}
            for f in tqdm(as_completed(futures), total=len(todo), desc="shira_masks"):
                done["runs"][futures[f]] = f.result()
                save()

    every(
        {
            f"{k} lr={lr}": (k, 100, lr, "validation")
            for k, (m, _) in SETTINGS.items()
            for lr in LRS[m]
        }
    )
    best = {
        k: min(LRS[m], key=lambda lr: done["runs"][f"{k} lr={lr}"]["bits"])
        for k, (m, _) in SETTINGS.items()
    }
    every({f"{k} seed={s}": (k, s, best[k]) for s in SEEDS for k in SETTINGS})
    model, tok = hra.zoo.gpt2("tiny"), hra.zoo.tokenizer("tiny")
    before = hra.data.bits_per_character(
        model, tok, hra.data.text("moby_dick", "test"), limit=LIMIT
    )
    done |= {"before": round(before, 4), "lr": best}
    save()


if __name__ == "__main__":
    main()
