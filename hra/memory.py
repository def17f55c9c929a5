"""The bill of fine-tuning, to the byte: derived from formulas (`cost`, `predict`) and
read off autograd (`measure`).

Five things are held at the fullest moment of a step, each counted once:
  weights      every number that does not train: W0, the bias, frozen factors and bases
  trained      every number that trains (with fp32 masters: both copies)
  gradients    one number for each trained one, held until the optimizer's step
  moments      two for each trained one (Adam: Kingma and Ba, 2014, arXiv:1412.6980)
  activations  what autograd keeps of the forward pass for the backward pass, without
               parameters and buffers
`peak` is their sum. Temporaries that live inside one operation are not in it.

The formulas are text, so that the book shows, and its calculator evaluates, exactly
what is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear
from hra.adapter import Adapter
from hra.law import Law, evaluate

# ---- the bill
# ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """So many numbers in so many bytes."""

    numbers: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.numbers + other.numbers, self.bytes + other.bytes)


@dataclass(frozen=True)
class Bill:
    """What a step holds. `kept` names the activations: {name: numbers}."""

    weights: Amount = Amount()
    trained: Amount = Amount()
    gradients: Amount = Amount()
    moments: Amount = Amount()
    activations: Amount = Amount()
    kept: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def parts(self) -> dict[str, Amount]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kept"}

    @property
    def peak(self) -> Amount:
        """Everything that is held at once: the sum of the five parts."""
        return sum(self.parts.values(), Amount())

    def __str__(self) -> str:
        rows = [*self.parts.items(), ("peak", self.peak)]
        head = f"{'':<12}{'numbers':>16}{'bytes':>18}"
        return "\n".join(
            [head, *(f"{k:<12}{a.numbers:>16,}{a.bytes:>18,}" for k, a in rows)]
        )

    __repr__ = __str__

    def plot(self, **others: Bill) -> Any:
        """Stacked bars in MiB: this bill, or the named ones beside each other."""
        from hra import viz

        return viz.bills(others or {"": self})


@dataclass(frozen=True)
class Plan:
    """Bytes that a number takes: frozen weight, trained weight, gradient, both moments'
    share, activation.
    """

    frozen: int
    trained: int
    gradient: int
    moment: int
    activation: int


PLANS = {
    "fp64": Plan(8, 8, 8, 8, 8),
    "fp32": Plan(4, 4, 4, 4, 4),
    "bf16": Plan(2, 2, 2, 2, 2),
    "bf16, fp32 masters": Plan(
        2, 2 + 4, 2, 4, 2
    ),  # the trained numbers twice, moments in fp32: 16 bytes in all
}

# ---- from laws to bills
# --------------------------------------------------------------------------

PLAIN = Law(
    {"W": "d_out*d_in"}, {"x": "d_in"}, base=False
)  # ordinary fine-tuning of the layer itself


def law(method: type[Adapter] | None, grad: bool = True, **given: Any) -> Law:
    """The formulas of a method; of ordinary fine-tuning of the layer itself for
    `method=None`.
    """
    return (
        PLAIN
        if method is None
        else method.law(grad=grad, **{**method.hyperparameters({}), **given})
    )


def cost(
    method: type[Adapter] | None,
    d_out: int,
    d_in: int,
    tokens: int,
    *,
    plan: str = "fp32",
    bias: bool = False,
    input_grad: bool = True,
    site: str = "",
    adapter: Adapter | None = None,
    **hyper: Any,
) -> Bill:
    """The bill of one adapted d_out × d_in layer for a batch of `tokens` tokens, from
    the formulas alone.

    method: a class of `hra.METHODS`, or None for ordinary fine-tuning of the layer's
    own weight. plan: bytes a number, a key of `PLANS`. bias: whether the layer has one.
    input_grad: whether gradients flow on to the layer's input (false for a model's
    first layer). site: the layer's name, where a draw depends on it (SHiRA's random
    masks). adapter: take the sizes of a mask that the weights decide from this one;
    without it such a mask is taken to touch every column. Further keywords are the
    method's hyperparameters.

    Raises ValueError for sizes below 1 or an unknown plan, TypeError for an unknown
    hyperparameter.
    """
    for name, value in {"d_out": d_out, "d_in": d_in, "tokens": tokens}.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < (name != "tokens")
        ):
            raise ValueError(
                f"{name}={value!r} must be an integer of at least "
                f"{int(name != 'tokens')}."
            )
    if plan not in PLANS:
        raise ValueError(
            f"plan={plan!r} does not exist. The plans are {', '.join(PLANS)}."
        )
    hyper = {} if method is None else method.hyperparameters(hyper)
    p, rule = (
        PLANS[plan],
        law(
            method,
            input_grad,
            d_out=d_out,
            d_in=d_in,
            site=site,
            adapter=adapter,
            **hyper,
        ),
    )
    values = {"d_out": d_out, "d_in": d_in, **hyper, **rule.sizes}
    trained = sum(evaluate(f, values) for f in rule.trained.values())
    frozen = (
        sum(evaluate(f, values) for f in rule.frozen.values())
        + d_out * bias
        + d_out * d_in * rule.base
    )
    wide = sum(evaluate(f, values) for f in rule.wide.values())
    each = [max(b, 4) if rule.full else b for b in (p.trained, p.gradient, p.moment)]
    kept = {k: evaluate(f, values) * tokens for k, f in rule.token.items()}
    kept |= {k: evaluate(f, values) for k, f in rule.once.items()}
    held = sum(kept.values())
    return Bill(
        Amount(frozen + wide, frozen * p.frozen + wide * 8),
        Amount(trained, trained * each[0]),
        Amount(trained, trained * each[1]),
        Amount(2 * trained, 2 * trained * each[2]),
        Amount(held, held * p.activation),
        kept,
    )


# ---- the measurement
# -----------------------------------------------------------------------------


def amount(tensors: Any) -> Amount:
    """Numbers and bytes of the tensors' storages, each storage once."""
    storages = {
        t.untyped_storage().data_ptr(): (t.untyped_storage().nbytes(), t.element_size())
        for t in tensors
    }
    return sum((Amount(b // size, b) for b, size in storages.values()), Amount())


def saved(run: Callable[[], Any], model: nn.Module) -> tuple[Any, list[Tensor]]:
    """(what `run` returns, the tensors that autograd keeps of it, those of the model's
    parameters and buffers left out).
    """
    own = {
        t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())
    }
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        for part in (t._indices(), t._values()) if t.is_sparse else (t,):
            if part.untyped_storage().data_ptr() not in own:
                kept.append(part)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return run(), kept


def measure(
    tuned: Any,
    batch: Mapping[str, Any],
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Bill:
    """The bill of one training step, read off autograd and the optimizer; nothing of
    the model is changed.

    tuned: what `hra.attach` returns, or a plain module whose trainable parameters are
    to be charged. batch: keyword arguments of the model, which returns an object with a
    scalar `.loss`, or a tensor (its sum is then the loss). Kept activations are counted
    by storage: a view keeps alive all of what it looks at.
    """
    model: nn.Module = getattr(tuned, "model", tuned)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError(
            "nothing of this model trains: attach a method first, or set requires_grad."
        )
    before, mode = [p.grad for p in params], model.training
    inputs = [t for t in batch.values() if isinstance(t, Tensor) and t.requires_grad]
    input_grads = [t.grad for t in inputs]
    model.train()
    for p in params:
        p.grad = None
    try:
        with torch.random.fork_rng(devices=[]):
            out, kept = saved(lambda: model(**batch), model)
            loss = out.loss if hasattr(out, "loss") else out.sum()
            activations = amount(kept)
            loss.backward()
        gradients = [p.grad for p in params if p.grad is not None]
        twins = [torch.zeros_like(p).requires_grad_() for p in params]
        for t, p in zip(twins, params, strict=True):
            t.grad = None if p.grad is None else torch.zeros_like(p)
        opt = optimizer(twins)  # type: ignore[call-arg]
        opt.step()
        moments = [
            s
            for t in twins
            for s in opt.state[t].values()
            if isinstance(s, Tensor) and s.shape == t.shape and s.ndim
        ]
        ids = {id(p) for p in params}
        rest = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in ids]
        return Bill(
            amount(rest),
            amount(params),
            amount(gradients),
            amount(moments),
            activations,
        )
    finally:
        for p, g in zip(params, before, strict=True):
            p.grad = g
        for t, g in zip(inputs, input_grads, strict=True):
            t.grad = g
        model.train(mode)


# ---- a whole model, predicted
# --------------------------------------------------------------------


class _Walk:
    """Goes through a model's operations in order and notes what each keeps, given where
    gradients flow.
    """

    def __init__(self, tuned: Any) -> None:
        self.model: nn.Module = getattr(tuned, "model", tuned)
        self.adapters: dict[str, Adapter] = dict(getattr(tuned, "adapters", {}))
        self.hyper = getattr(tuned, "hyper", {})
        self.size = next(self.model.parameters()).element_size()
        self.kept: dict[str, Amount] = {}
        self.inputs: set[str] = set()
        self.grad = False  # whether the tensor that flows here needs a gradient

    def keep(self, what: str, numbers: int, size: int | None = None) -> None:
        self.kept[what] = self.kept.get(what, Amount()) + Amount(
            numbers, numbers * (size or self.size)
        )

    def trains(self, name: str) -> bool:
        return any(p.requires_grad for p in self.model.get_submodule(name).parameters())

    def norm(self, name: str, tokens: int, d: int) -> None:
        if self.grad or self.trains(name):
            self.keep(
                "norms", tokens * (d + 2)
            )  # the input; a mean and a deviation a token
            self.grad = True

    def linear(
        self,
        name: str,
        x: str,
        tokens: int,
        whole: int | None = None,
        y_kept: bool = False,
    ) -> bool:
        """A linear layer that reads `x`; True if its output needs a gradient.

        whole: numbers of x, if x is a view of more. y_kept: the next operation keeps
        the output, if gradients flow.
        """
        layer: Any = self.model.get_submodule(name)
        flows = self.grad
        if name in self.adapters:
            a = self.adapters[name]
            hyper = a.hyperparameters(self.hyper)
            rule = law(type(a), flows, d_out=a.d_out, d_in=a.d_in, adapter=a, **hyper)
            values = {"d_out": a.d_out, "d_in": a.d_in, **hyper, **rule.sizes}
        elif layer.weight.requires_grad:  # ordinary fine-tuning
            rule, values = PLAIN, {"d_in": linear.weight(layer).shape[1]}
        else:
            return flows
        for key, formula in rule.token.items():
            if key == "y" and y_kept:
                continue
            if key != "x":
                self.keep("adapters", tokens * evaluate(formula, values))
            elif x not in self.inputs:
                self.inputs.add(x)
                self.keep(
                    "inputs of adapted layers",
                    whole or tokens * evaluate(formula, values),
                )
        for formula in rule.once.values():
            self.keep("adapters", evaluate(formula, values))
        return True

    def already(self, x: str) -> None:
        """`x` is kept by the operation that made it."""
        self.inputs.add(x)

    def loss(self, tokens: int, classes: int, size: int | None = None) -> None:
        self.keep(
            "loss", tokens * classes + 1, size
        )  # log-probabilities, and the sum of the weights
        self.keep("loss", tokens, 8)  # the labels


def _gpt2(w: _Walk, batch: Mapping[str, Any]) -> None:
    c: Any = w.model.config
    (rows, length), d = batch["input_ids"].shape, c.n_embd
    t, inner = rows * length, c.n_inner or 4 * c.n_embd
    w.keep(
        "embedding",
        t * w.trains("transformer.wte") + length * w.trains("transformer.wpe"),
        8,
    )
    w.grad = w.trains("transformer.wte") or w.trains("transformer.wpe")
    for i in range(c.n_layer):
        p = f"transformer.h.{i}"
        stream = w.grad
        w.norm(f"{p}.ln_1", t, d)
        w.grad = w.linear(f"{p}.attn.c_attn", f"{p}.ln_1", t, y_kept=True)
        if w.grad:
            w.keep(
                "attention", 3 * t * d + 2 * t * d * bool(c.use_cache) + t * d
            )  # q k v, the cache's copies, the output
            w.keep("attention", t * c.n_head, 4)  # log-sum-exp
            w.already(f"{p}.attention")
        w.grad = w.linear(f"{p}.attn.c_proj", f"{p}.attention", t) or stream
        stream = w.grad
        w.norm(f"{p}.ln_2", t, d)
        w.grad = w.linear(f"{p}.mlp.c_fc", f"{p}.ln_2", t, y_kept=True)
        w.keep("GELU", 4 * t * inner * w.grad)  # the tanh form: x, x/2, tanh, 1 + tanh
        w.grad = w.linear(f"{p}.mlp.c_proj", f"{p}.gelu", t) or stream
    w.norm("transformer.ln_f", t, d)
    w.linear("lm_head", "ln_f", t)
    w.loss(t, c.vocab_size, 4)  # in fp32 whatever the model's dtype


def _vit(w: _Walk, batch: Mapping[str, Any]) -> None:
    c: Any = w.model.config
    rows, pixels, d = (
        len(batch["pixel_values"]),
        batch["pixel_values"].numel(),
        c.hidden_size,
    )
    length = (c.image_size // c.patch_size) ** 2 + 1
    t = rows * length
    w.keep("embedding", pixels * w.trains("vit.embeddings.patch_embeddings"))
    w.grad = w.trains("vit.embeddings")
    for i in range(c.num_hidden_layers):
        p = f"vit.layers.{i}"
        stream = w.grad
        w.norm(f"{p}.layernorm_before", t, d)
        w.grad = any(
            [
                w.linear(f"{p}.attention.{k}_proj", f"{p}.before", t, y_kept=True)
                for k in "qkv"
            ]
        )
        if w.grad:
            w.keep("attention", 4 * t * d)
            w.keep("attention", t * c.num_attention_heads, 4)
            w.already(f"{p}.attention")
        w.grad = w.linear(f"{p}.attention.o_proj", f"{p}.attention", t) or stream
        stream = w.grad
        w.norm(f"{p}.layernorm_after", t, d)
        w.grad = w.linear(f"{p}.mlp.fc1", f"{p}.after", t, y_kept=True)
        w.keep(
            "GELU", t * c.intermediate_size * w.grad
        )  # the exact form keeps its input alone
        w.grad = w.linear(f"{p}.mlp.fc2", f"{p}.gelu", t) or stream
    w.norm("vit.layernorm", t, d)
    w.linear(
        "classifier", "layernorm", rows, whole=t * d
    )  # reads the first token of each image: a view of them all
    w.loss(rows, c.num_labels)  # in the model's own dtype


_MODELS = {"gpt2": _gpt2, "vit": _vit}


def predict(tuned: Any, batch: Mapping[str, Any]) -> Bill:
    """The bill of a training step of a GPT-2 or a ViT, from shapes and formulas: to be
    held against `measure`.

    tuned: what `hra.attach` returns, or the model itself with the parameters to be
    trained. batch: as for the model; only the shapes of its tensors are read. Raises
    ValueError for another architecture, or a model with dropout of its own.
    """
    w = _Walk(tuned)
    kind = getattr(
        getattr(w.model, "config", None), "model_type", type(w.model).__name__
    )
    if kind not in _MODELS:
        raise ValueError(
            f"predict knows the operations of {' and '.join(_MODELS)}; this model is "
            f"{kind!r}. "
            "measure() takes any."
        )
    noisy = [
        n for n, m in w.model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0
    ]
    if noisy:
        raise ValueError(
            f"predict is for models without dropout of their own; {noisy[0]} has p = "
            f"{w.model.get_submodule(noisy[0]).p}. Build the model with its dropout "
            "at 0."
        )
    _MODELS[kind](w, batch)
    trains, rest = Amount(), Amount()
    for p in w.model.parameters():
        one = Amount(p.numel(), p.numel() * p.element_size())
        trains, rest = (trains + one, rest) if p.requires_grad else (trains, rest + one)
    buffers = amount(w.model.buffers())
    return Bill(
        rest + buffers,
        trains,
        trains,
        trains + trains,
        sum(w.kept.values(), Amount()),
        {k: a.numbers for k, a in w.kept.items() if a.numbers},
    )


# ---- models known by their public configurations
# --------------------------------------------------


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
    method: type[Adapter] | None,
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
