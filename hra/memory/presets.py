"""Models known by their public configurations, and their bills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hra.adapter import Method
from hra.memory.bill import PLANS, Amount, Bill, cost


@dataclass(frozen=True)
class Preset:
    """The sizes of a public model, without its weights: `sites` are the linear layers
    of one block, (d_out, d_in).

    Sites whose names are in one group of `reads` read one tensor and keep it once.
    """

    layers: int
    sites: dict[str, tuple[int, int]]
    other: int  # numbers outside the blocks' linear weights: embeddings, norms, …
    reads: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("gate", "up"))

    def input(self, site: str) -> str:
        """A name for the tensor that `site` reads."""
        return next((group[0] for group in self.reads if site in group), site)

    @property
    def parameters(self) -> int:
        return self.layers * sum(m * n for m, n in self.sites.values()) + self.other


def _gpt(d: int, layers: int, context: int = 1024, vocabulary: int = 50257) -> Preset:
    sites = {
        "c_attn": (3 * d, d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (4 * d, d),
        "mlp.c_proj": (d, 4 * d),
    }
    return Preset(layers, sites, (vocabulary + context) * d + layers * 13 * d + 2 * d)


def _q_k_v(d: int, layers: int, context: int, other: int | None = None) -> Preset:
    """GPT-3 as its adapters' papers count it: q, k, v and o are four d × d matrices."""
    sites = {
        "q": (d, d),
        "k": (d, d),
        "v": (d, d),
        "o": (d, d),
        "fc": (4 * d, d),
        "proj": (d, 4 * d),
    }
    return Preset(
        layers, sites, _gpt(d, layers, context).other if other is None else other
    )


def _llama(d: int, inner: int, layers: int, vocabulary: int) -> Preset:
    sites = {
        "q": (d, d),
        "k": (d, d),
        "v": (d, d),
        "o": (d, d),
        "gate": (inner, d),
        "up": (inner, d),
        "down": (d, inner),
    }
    return Preset(layers, sites, 2 * vocabulary * d + layers * 2 * d + d)


PRESETS = {
    "GPT-2 small": _gpt(768, 12),
    "GPT-2 medium": _gpt(1024, 24),
    "GPT-2 large": _gpt(1280, 36),
    "GPT-2 XL": _gpt(1600, 48),
    "GPT-3 175B": _q_k_v(12288, 96, 2048),
    "LLaMA-2 7B": _llama(4096, 11008, 32, 32000),
    # patches of 16 × 16 × 3, 196 of them and a class token, 1,000 classes
    "ViT-B/16": _q_k_v(
        768,
        12,
        0,
        16 * 16 * 3 * 768
        + 768
        + 768
        + 197 * 768
        + 12 * 13 * 768
        + 2 * 768
        + 1000 * 769,
    ),
}


def preset_cost(
    name: str,
    method: type[Method] | None,
    sites: str | list[str],
    tokens: int,
    plan: str = "fp32",
    **hyper: Any,
) -> Bill:
    """The bill of a whole public model with `method` at `sites` of every block
    (`"all"`: at each), or None: all of it trains.

    The activations are those of the adapted layers alone, an input that several read
    counted once: what attention, norms and losses keep beside them depends on the
    program (see `predict`). Raises ValueError for an unknown model or site.
    """
    if name not in PRESETS:
        raise ValueError(
            f"{name!r} is no preset. The presets are {', '.join(PRESETS)}."
        )
    p, model = PLANS[plan], PRESETS[name]
    chosen = (
        list(model.sites)
        if sites == "all"
        else [sites]
        if isinstance(sites, str)
        else list(sites)
    )
    for s in chosen:
        if s not in model.sites:
            raise ValueError(
                f"{name} has no site {s!r} in its blocks. It has "
                f"{', '.join(model.sites)}."
            )
    bills = [cost(method, *model.sites[s], tokens, plan=plan, **hyper) for s in chosen]
    trained = (
        model.parameters
        if method is None
        else model.layers * sum(b.trained.numbers for b in bills)
    )
    frozen = (
        0
        if method is None
        else model.parameters
        + model.layers
        * sum(
            b.weights.numbers - m * n
            for b, (m, n) in zip(bills, (model.sites[s] for s in chosen), strict=True)
        )
    )
    inputs = {
        model.input(s): b.kept["x"]
        for s, b in zip(chosen, bills, strict=True)
        if "x" in b.kept
    }
    own = sum(b.activations.numbers - b.kept.get("x", 0) for b in bills)
    kept = model.layers * (own + sum(inputs.values()))
    return Bill(
        Amount(frozen, frozen * p.frozen),
        Amount(trained, trained * p.trained),
        Amount(trained, trained * p.gradient),
        Amount(2 * trained, 2 * trained * p.moment),
        Amount(kept, kept * p.activation),
    )
