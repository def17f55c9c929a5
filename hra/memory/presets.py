"""Models known by their public configurations, and their bills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hra.adapter import Method
from hra.law import SLICE, Law, evaluate
from hra.memory import blocks
from hra.memory.bill import PLAIN, Amount, Bill, check_sizes, kept, law, plan_named
from hra.memory.blocks import Architecture, Walk


@dataclass(frozen=True)
class Preset:
    """The sizes of a public model, without its weights: `sites` are the linear layers
    of one block, (d_out, d_in).

    architecture: its operations, where `predict` knows them; `letters` are the numbers
    of their formulas. Without one, sites whose names are in one group of `reads` read
    one tensor and keep it once.
    """

    layers: int
    sites: dict[str, tuple[int, int]]
    other: int  # numbers outside the blocks' linear weights: embeddings, norms, …
    context: int  # positions of a row, at most
    architecture: Architecture | None = None
    letters: Mapping[str, int] = field(default_factory=dict)
    bias: bool = True  # whether the blocks' linear layers have one
    images: bool = False  # rows are images, and always as long as the context
    buffers: int = 0  # numbers of the model that are no parameters
    reads: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("gate", "up"))

    def input(self, site: str) -> str:
        """A name for the tensor that `site` reads."""
        return next((group[0] for group in self.reads if site in group), site)

    @property
    def parameters(self) -> int:
        return self.layers * sum(m * n for m, n in self.sites.values()) + self.other

    def batch(self, tokens: int, rows: int | None) -> dict[str, int]:
        """B rows of t positions. Without `rows`: one, or as many as the context asks
        for.
        """
        one = tokens <= self.context and not self.images
        B = rows or (1 if one else max(1, tokens // self.context))
        t, left = divmod(tokens, B)
        if left or t > self.context or (self.images and t != self.context):
            what = "images" if self.images else "rows of at most"
            raise ValueError(
                f"{tokens} tokens{f' in {rows} rows' if rows else ''} are no batch of "
                f"equal {what} {self.context}{' tokens each' if self.images else ''}."
            )
        return {"B": B, "t": t, "T": tokens}


def _gpt2(d: int, layers: int, h: int, V: int = 50257, t: int = 1024) -> Preset:
    """Radford et al., 2019; the sizes that transformers gives gpt2 … gpt2-xl."""
    f = 4 * d
    sites = {
        "c_attn": (3 * d, d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (f, d),
        "mlp.c_proj": (d, f),
    }
    letters = {"d": d, "h": h, "g": h, "D": d // h, "f": f, "V": V}
    other = (V + t) * d + layers * 13 * d + 2 * d
    return Preset(layers, sites, other, t, blocks.gpt2(), letters)


def _gpt3(d: int, layers: int, t: int = 2048, V: int = 50257) -> Preset:
    """Brown et al., 2020 (arXiv:2005.14165), as its adapters' papers count it: q, k, v
    and o are four d × d matrices.
    """
    sites = {n: (d, d) for n in "qkvo"} | {"fc": (4 * d, d), "proj": (d, 4 * d)}
    return Preset(layers, sites, (V + t) * d + layers * 13 * d + 2 * d, t)


def _llama(d: int, f: int, layers: int, h: int, V: int, t: int) -> Preset:
    """Touvron et al., 2023 (arXiv:2307.09288)."""
    sites = {n: (d, d) for n in "qkvo"}
    sites |= {"gate": (f, d), "up": (f, d), "down": (d, f)}
    letters = {"d": d, "h": h, "g": h, "D": d // h, "f": f, "V": V}
    other = 2 * V * d + layers * 2 * d + d
    return Preset(
        layers,
        sites,
        other,
        t,
        blocks.llama(),
        letters,
        bias=False,
        buffers=d // h,  # the frequencies of the positions, twice
    )


def _vit(d: int, layers: int, h: int, f: int, patches: int, p: int, V: int) -> Preset:
    """Dosovitskiy et al., 2020 (arXiv:2010.11929); p pixels a patch, all colours."""
    sites = {n: (d, d) for n in "qkvo"} | {"fc": (f, d), "proj": (d, f)}
    t = patches + 1  # and a class token
    letters = {"d": d, "h": h, "D": d // h, "f": f, "V": V, "p": patches * p}
    other = p * d + d + d + t * d + layers * (9 * d + f) + 2 * d + V * (d + 1)
    return Preset(layers, sites, other, t, blocks.vit(), letters, images=True)


PRESETS = {
    "GPT-2 small": _gpt2(768, 12, 12),
    "GPT-2 medium": _gpt2(1024, 24, 16),
    "GPT-2 large": _gpt2(1280, 36, 20),
    "GPT-2 XL": _gpt2(1600, 48, 25),
    "GPT-3 175B": _gpt3(12288, 96),
    "LLaMA-2 7B": _llama(4096, 11008, 32, 32, 32000, 4096),
    "ViT-B/16": _vit(768, 12, 12, 3072, 196, 16 * 16 * 3, 1000),
}
LAYERS_ONLY = "linear layers only"


def preset_cost(
    name: str,
    method: type[Method] | None,
    sites: str | list[str],
    tokens: int,
    plan: str = "fp32",
    *,
    rows: int | None = None,
    **hyper: Any,
) -> Bill:
    """The bill of a whole public model with `method` at `sites` of every block
    (`"all"`: at each), or None: all of it trains.

    `preset_cost("GPT-2 small", hra.LoRA, "all", 1024, r=8).peak.bytes` is what
    `predict` says of such a model. tokens: in the batch, in `rows` equal rows (by
    default one, or as many as the model's context asks for). Where `predict` does not
    know the model's operations, the activations are those of the adapted layers alone,
    and the bill says so: `Bill.partial`.

    Raises ValueError for an unknown model, site or plan, for tokens that are no such
    batch, and for a method that needs biases where there are none.
    """
    if name not in PRESETS:
        raise ValueError(
            f"{name!r} is no preset. The presets are {', '.join(PRESETS)}."
        )
    check_sizes(tokens=tokens)
    return of_preset(name, PRESETS[name], method, sites, tokens, plan, rows, hyper)


def of_preset(
    name: str,
    model: Preset,
    method: type[Method] | None,
    sites: str | list[str],
    tokens: int,
    plan: str,
    rows: int | None,
    hyper: dict[str, Any],
) -> Bill:
    """`preset_cost` for any `Preset`."""
    chosen = [sites] if isinstance(sites, str) else list(sites)
    if method is None or sites == "all":
        chosen = list(model.sites)
    for s in chosen:
        if s not in model.sites:
            raise ValueError(
                f"{name} has no site {s!r} in its blocks. It has "
                f"{', '.join(model.sites)}."
            )
    hyper = {} if method is None else method.hyperparameters(hyper)
    laws = {
        (s, grad): _law(method, grad, *model.sites[s], hyper)
        for s in chosen
        for grad in (True, False)
    }
    inner = [laws[s, True] for s in chosen]
    rule = inner[0][0]
    if rule.bias and not model.bias and method is not None:
        raise ValueError(
            f"{method.__name__} trains biases, and the linear layers of {name} have "
            "none."
        )
    p = plan_named(plan).under(rule)
    if method is None:
        trained, frozen, int64 = model.parameters, model.buffers, 0
    else:
        trained, frozen, int64 = (
            _sum(inner, part, model.layers) for part in ("trained", "frozen", "int64")
        )
        frozen += model.parameters + model.buffers
    found, partial = {}, ""
    if tokens and model.architecture:
        letters = {**model.letters, **model.batch(tokens, rows), "bytes": p.activation}
        found = _walk(model, model.architecture, letters, laws, method is None)
    elif tokens:
        found, partial = _layers(model, laws, chosen, tokens, p.activation), LAYERS_ONLY
    return Bill(
        Amount(frozen + int64, frozen * p.frozen + int64 * 8),
        Amount(trained, trained * p.trained),
        Amount(trained, trained * p.gradient),
        Amount(2 * trained, 2 * trained * p.moment),
        sum(found.values(), Amount()),
        {k: a.numbers for k, a in found.items() if a.numbers},
        partial,
    )


Stated = tuple[Law, dict[str, Any]]  # a law, and numbers for its names


def _law(
    method: type[Method] | None, grad: bool, d_out: int, d_in: int, hyper: Any
) -> Stated:
    rule = (
        PLAIN if method is None else law(method, grad, d_out=d_out, d_in=d_in, **hyper)
    )
    return rule, rule.values(d_out=d_out, d_in=d_in, **hyper)


def _sum(laws: list[Stated], part: str, layers: int) -> int:
    """Numbers of one part over all blocks; what all layers share is as large as the
    largest of them needs, and there once.
    """
    total, shared = 0, dict.fromkeys(laws[0][0].shared, 0)
    for rule, values in laws:
        for name, formula in getattr(rule, part).items():
            numbers = evaluate(formula, values)
            if name in shared:
                shared[name] = max(shared[name], numbers)
            else:
                total += layers * numbers
    return total + sum(shared.values())


def _walk(
    model: Preset,
    steps: Architecture,
    letters: Mapping[str, int],
    laws: Mapping[tuple[str, bool], Stated],
    everything: bool,
) -> dict[str, Amount]:
    """What the whole model keeps. The second block stands for those after it."""
    linears = {s for s, _ in laws}

    def rule(layer: str, block: int, grad: bool) -> Stated | None:
        if everything and layer not in linears:
            return PLAIN, {"d_in": 1}
        return laws.get((layer, grad))

    def trains(module: str, block: int) -> bool:
        return everything or module in linears

    walk = Walk(letters, trains, rule)
    walk.run(steps.begin)
    for walk.block in range(min(model.layers, 2)):
        before = dict(walk.kept)
        walk.run(steps.block)
    for k, a in walk.kept.items():
        more, old = model.layers - 2, before.get(k, Amount())
        if more > 0:
            walk.kept[k] = Amount(
                a.numbers + more * (a.numbers - old.numbers),
                a.bytes + more * (a.bytes - old.bytes),
            )
    walk.run(steps.end)
    return walk.kept


def _layers(
    model: Preset,
    laws: Mapping[tuple[str, bool], Stated],
    chosen: list[str],
    tokens: int,
    bytes: int,
) -> dict[str, Amount]:
    """What the adapted layers keep, an input that several read counted once."""
    inputs, slices, own = {}, {}, Amount()
    for s in chosen:
        found = kept(*laws[s, True], tokens, bytes)
        if "x" in found:
            inputs[model.input(s)] = found.pop("x")
        if SLICE in found:
            slices[model.input(s)] = found.pop(SLICE)
        own += sum(found.values(), Amount())
    own += sum(slices.values(), Amount())
    once = {"inputs of adapted layers": sum(inputs.values(), Amount()), "adapters": own}
    return {
        k: Amount(model.layers * a.numbers, model.layers * a.bytes)
        for k, a in once.items()
    }
