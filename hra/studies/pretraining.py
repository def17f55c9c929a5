"""Study: a small GPT-2 from scratch on the addresses. Can few trained numbers pretrain,
if they are restarted? LoRA and MoRA, restarted and not, beside full training.

    python -m hra.studies.pretraining          # or: make experiments NAME=pretraining

As in Lialin et al., 2023, arXiv:2307.05695, the embeddings, the norms and the head
train in full in every setting, here at the rate OTHER; what differs is how the weights
of the blocks train. Their rate is each setting's own, the best on the validation part
with seed 100, which no reported run uses; there are three seeds at it. The tokens and
their order are the same for all. "frozen": the blocks do not train. "warm": in the
first quarter they train in full, at FULL. With seed 100 also, of LOOK steps, "one
rate": all trains at the rate that is tuned.

`bits` per character of the first `moby.LIMIT` characters; `curve`: (step, bits).
`restarts`: that really happened, per weight. Of the change of the blocks' weights since
the adapters began: `above`, how many singular values lie above ABOVE, the mean over the
weights; for seed 0 `spectra`, the singular values of SITE at each point of the curve.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import hra
from hra.analysis import rank
from hra.studies import moby
from hra.studies.study import Study, choose

SEEDS, STEPS, LOOK, EVERY, REWARM = (0, 1, 2), 1200, 400, 300, 15
BATCH, LENGTH, ABOVE, SITE = 8, 64, 0.1, "transformer.h.0.mlp.c_fc"
MODEL = {"vocab_size": 2048, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
ALSO = "wte|wpe|ln_1|ln_2|ln_f|lm_head"
OTHER, FULL = 1e-2, 1e-3
LORA, RESTART = {"r": 2}, {"every": EVERY, "rewarm": REWARM}
MORA = LORA | {"operator": "sharing"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FullFT": ("FullFT", {}),
    "LoRA": ("LoRA", LORA),
    "ReLoRA": ("ReLoRA", LORA | RESTART),
    "MoRA": ("MoRA", MORA),
    "ReMoRA cycle": ("ReMoRA", MORA | RESTART | {"regroup": "cycle"}),
    "ReMoRA permute": ("ReMoRA", MORA | RESTART | {"regroup": "permute"}),
}
SETTINGS["ReLoRA, warm"] = SETTINGS["ReLoRA"]
FROZEN, ONE = "frozen", ", one rate"  # of LOOK steps, one rate for all
COMMON = (3e-4, 1e-3, 3e-3)
RATES: dict[str, tuple[float, ...]] = {k: COMMON for k in SETTINGS}
RATES |= {"LoRA": (1e-4, *COMMON), "MoRA": (*COMMON, 1e-2)}
RATES |= {"ReMoRA cycle": (*COMMON, 1e-2)}
FIRST: dict[str, tuple[float, ...]] = {
    "FullFT": COMMON,
    "LoRA": (1e-3, 3e-3, 1e-2),
    f"FullFT{ONE}": (*COMMON, 1e-2),
    f"LoRA{ONE}": (*COMMON, 1e-2),
}


@cache
def tokens() -> Any:
    return hra.data.tokens(hra.zoo.tokenizer("tiny"), "sotu")


def bits(model: Any, part: str) -> float:
    text = hra.data.text("sotu", part)[: moby.LIMIT]
    return round(hra.data.bits_per_character(model, hra.zoo.tokenizer("tiny"), text), 4)


def attach(
    model: Any, method: str, seed: int, hyper: dict[str, Any], lr: float | None = None
) -> hra.Adapted:
    """The adapters of the blocks, all else in full. lr: the rate of the adapters,
    whatever that of all else is.
    """
    base = kind = hra.METHODS[method]
    if lr is not None:
        own = {"param_groups": lambda self, _: base.param_groups(self, lr)}
        kind = type(method, (base,), own)
    return hra.attach(model, kind, moby.ALL, also=ALSO, seed=seed, **hyper)


def run(setting: str, seed: int, lr: float, part: str, steps: int) -> dict[str, Any]:
    one = setting.endswith(ONE)
    method, hyper = SETTINGS["LoRA" if setting == FROZEN else setting.removesuffix(ONE)]
    model = hra.zoo.gpt2("random", seed=seed, tie_word_embeddings=False, **MODEL)
    batches = hra.data.lm_batches(tokens(), BATCH, LENGTH, seed=seed)
    first = EVERY if setting.endswith("warm") else 0
    losses: list[float] = []
    if first:
        tuned = attach(model, "FullFT", seed, {}, FULL)
        losses = hra.fit(tuned, batches, first, OTHER, progress=False).losses
        model = tuned.merge()
    tuned = attach(model, method, seed, hyper, None if one else lr)
    curve: list[list[float]] = []
    spectra: list[list[float]] = []

    def measure() -> float:
        found = bits(tuned.model, part)
        curve.append([first + EVERY * (len(curve) + 1), found])
        spectra.append(rank.spectrum(tuned.adapters[SITE].delta_weight()).tolist())
        return found

    every = EVERY if part == "test" else steps
    log = hra.fit(
        tuned,
        batches,
        steps - first,
        lr if one else OTHER,
        evaluate=measure,
        every=every,
        progress=False,
    )
    losses = losses + log.losses
    sites = tuned.adapters
    found: dict[str, Any] = {
        "trained": sum(
            p.numel() for a in sites.values() for p in a.parameters() if p.requires_grad
        ),
        "bits": curve[-1][1],
        "restarts": len([e for e in log.events if "restart" in e]) // len(sites),
        "losses": [round(x, 3) for x in losses[::10]],
    }
    if part != "test":
        return found
    counts = [rank.count_above(a.delta_weight(), ABOVE) for a in sites.values()]
    found |= {"above": round(sum(counts) / len(counts), 2), "curve": curve}
    if seed == SEEDS[0]:
        found["spectra"] = [[float(f"{v:.3g}") for v in s] for s in spectra]
    return found


SETTING = MODEL | {
    "every": EVERY,
    "batch": BATCH,
    "length": LENGTH,
    "above": ABOVE,
    "other": OTHER,
    "full": FULL,
}
STUDY = Study("pretraining", run, SETTING, SEEDS)
record = STUDY.record


def main(study: Study) -> None:
    look = ((k, lr) for k in FIRST for lr in FIRST[k])
    study.do(moby.jobs(look, [moby.TUNING], "validation", steps=LOOK))
    frozen = [(FROZEN, 0.0)]
    study.do(moby.jobs(frozen, [moby.TUNING], "validation", steps=LOOK))
    grid = ((k, lr) for k in SETTINGS for lr in RATES[k])
    tuning = study.do(moby.jobs(grid, [moby.TUNING], "validation", steps=STEPS))
    chosen = choose(tuning.values(), by=["setting"])
    study.protocol(chosen, "the validation addresses, with seed 100")
    best = {c["setting"]: c["best"] for c in chosen}
    study.note(lr=best)
    study.do(moby.jobs([*frozen, *best.items()], SEEDS, steps=STEPS))


if __name__ == "__main__":
    STUDY.start(main)
