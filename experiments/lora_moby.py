"""Study: GPT-2 tiny, from the addresses to Moby Dick. Full fine-tuning, LoRA of ranks 1
to 16, and which matrices.

    python -m experiments.lora_moby            # or: make experiments NAME=lora_moby

Resumable: a run already in `experiments/lora_moby.json` is not repeated. Bits a
character are of the test chapters; learning rates were chosen on the validation
chapters with seed 100, which no reported run uses.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm.auto import tqdm

import hra

OUT = Path(__file__).with_suffix(".json")
STEPS, BATCH, LENGTH, LIMIT = 60, 8, 128, 40_000
RANKS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2)
ALL = "c_attn|c_proj|c_fc"
LRS = {"FullFT": (3e-4, 1e-3, 3e-3), "LoRA": (1e-3, 3e-3, 1e-2, 3e-2)}
# about the same trained numbers (34,560 to 36,864), spent on different matrices
MATRICES = {
    "attn.c_attn": (r"attn\.c_attn", 8),
    "attn.c_proj": (r"attn\.c_proj", 16),
    "mlp.c_fc": (r"mlp\.c_fc", 6),
    "mlp.c_proj": (r"mlp\.c_proj", 6),
    "all four": (ALL, 2),
}


def run(
    method: str, seed: int, lr: float, part: str = "test", targets: str = ALL, **hyper
) -> dict:
    """One fine-tuning; the model, the order of the batches and the adapter's start
    depend on `seed` alone.
    """
    model, tok = hra.zoo.gpt2("tiny"), hra.zoo.tokenizer("tiny")
    ids = hra.data.tokens(tok, "moby_dick")
    tuned = hra.attach(model, hra.METHODS[method], targets=targets, seed=seed, **hyper)
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
    return {
        "method": method,
        "hyper": hyper,
        "targets": targets,
        "lr": lr,
        "seed": seed,
        "part": part,
        "trained": tuned.num_trainable,
        "bits": round(bits, 4),
        "losses": [round(x, 3) for x in log.losses],
    }


def _same(
    recorded: dict | None,
    method: str,
    seed: int,
    lr: float,
    part: str = "test",
    targets: str = ALL,
    **hyper,
) -> bool:
    asked = {
        "method": method,
        "hyper": hyper,
        "targets": targets,
        "lr": lr,
        "seed": seed,
        "part": part,
    }
    return recorded is not None and asked.items() <= recorded.items()


def record() -> dict:
    """The recorded study."""
    return json.loads(OUT.read_text())


def interval(runs: list[dict]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval of `bits` over the seeds."""
    from scipy.stats import t

    bits = [r["bits"] for r in runs]
    return statistics.mean(bits), float(t.ppf(0.975, len(bits) - 1)) * statistics.stdev(
        bits
    ) / len(bits) ** 0.5


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
        "command": "python -m experiments.lora_moby",
        "weights": weights,
        "library": library[:16],
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "setting": {
            "steps": STEPS,
            "batch": BATCH,
            "length": LENGTH,
            "test_characters": LIMIT,
            "seeds": SEEDS,
        },
    }

    def save() -> None:
        OUT.write_text(
            json.dumps(done, separators=(",", ":")).replace('"method"', '\n"method"')
            + "\n"
        )

    def every(jobs: dict[str, tuple[tuple, dict]]) -> None:
        """Run what is not recorded yet, two at a time, on one thread each: the same
        numbers every time.
        """
        # a recorded run whose learning rate, hyperparameters or targets have changed is
        # done again
        todo = {
            k: (a, kw)
            for k, (a, kw) in jobs.items()
            if not _same(done["runs"].get(k), *a, **kw)
        }
        with ProcessPoolExecutor(
            2,
            mp_context=get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as pool:
            futures = {
                pool.submit(run, *args, **kwargs): key
                for key, (args, kwargs) in todo.items()
            }
            for f in tqdm(as_completed(futures), total=len(todo), desc="lora_moby"):
                done["runs"][futures[f]] = f.result()
                save()

    hyper: dict[str, dict] = {"FullFT": {}, "LoRA": {"r": 8}}
    every(
        {
            f"{m} lr={lr}": ((m, 100, lr, "validation"), hyper[m])
            for m, rates in LRS.items()
            for lr in rates
        }
    )
    best = {
        m: min(rates, key=lambda lr: done["runs"][f"{m} lr={lr}"]["bits"])
        for m, rates in LRS.items()
    }
    jobs = {}
    for seed in SEEDS:
        jobs[f"FullFT seed={seed}"] = (("FullFT", seed, best["FullFT"]), {})
        jobs |= {
            f"LoRA r={r} seed={seed}": (("LoRA", seed, best["LoRA"]), {"r": r})
            for r in RANKS
        }
        jobs |= {
            f"{name} seed={seed}": (
                ("LoRA", seed, best["LoRA"]),
                {"targets": targets, "r": r},
            )
            for name, (targets, r) in MATRICES.items()
        }
    every(jobs)
    model, tok = hra.zoo.gpt2("tiny"), hra.zoo.tokenizer("tiny")
    before = hra.data.bits_per_character(
        model, tok, hra.data.text("moby_dick", "test"), limit=LIMIT
    )
    done |= {"before": round(before, 4), "lr": best}
    save()


if __name__ == "__main__":
    main()
