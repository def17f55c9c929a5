"""What the operations of a transformer keep for the backward pass, as text.

A model is a list of steps before its blocks, one for each block, and one after them. A
step reads tensors and makes some; if a gradient is wanted it keeps some, and a tensor
that several steps keep is kept once. `Walk` goes through the steps and adds up; the
calculator of the book does the same in JavaScript with the same texts.

Letters of the formulas: T tokens in the batch, B rows, t = T / B; d width, h heads of
D numbers each, g heads of keys and values, f width of the MLP, V classes of the loss,
and `bytes`, of the model's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hra.law import SLICE, Law, evaluate
from hra.memory.bill import Amount, kept


@dataclass(frozen=True)
class Step:
    """One operation.

    what: the name under which `Bill.kept` lists what it keeps. reads, makes: tensors,
    {name: numbers}. module: the one whose own parameters take part. keeps: {tensor:
    which tensor must need a gradient; "" for any that it reads, or its own parameters;
    "." for its own parameters}. bytes: {tensor: bytes a number}, where they are not the
    model's. rows: for a linear layer, whose law says what it keeps, the rows of its
    input. cast: where the module's own parameters are trained in fp32 over a
    half-precision model (`attach(..., also=...)`), numbers of their copies that it
    keeps, and the condition as in `keeps`.
    """

    what: str
    reads: tuple[str, ...]
    makes: Mapping[str, str]
    keeps: Mapping[str, str] = field(default_factory=dict)
    bytes: Mapping[str, str] = field(default_factory=dict)
    module: str = ""
    rows: str = ""
    cast: tuple[str, str] = ("0", "")


@dataclass(frozen=True)
class Architecture:
    """The steps of a model, and where its modules are: {name: path}, with `{}` for the
    number of the block.
    """

    begin: tuple[Step, ...]
    block: tuple[Step, ...]
    end: tuple[Step, ...]
    paths: Mapping[str, str]


# ---- the operations


def linear(layer: str, x: str, y: str, size: str, rows: str = "T") -> Step:
    return Step("", (x,), {y: size}, module=layer, rows=rows)


def add(a: str, b: str, total: str) -> Step:
    """Keeps nothing: the derivative of a sum is one."""
    return Step("", (a, b), {total: "T*d"})


def layer_norm(module: str, x: str, y: str) -> Step:
    """Its input; a mean and a deviation a token."""
    made = {y: "T*d", "mean and deviation": "2*T"}
    keeps = {x: "", "mean and deviation": ""}
    return Step("norms", (x,), made, keeps, module=module, cast=("2*d", ""))


def rms_norm(module: str, x: str, y: str) -> Step:
    """x / rms(x) in fp32 (Zhang and Sennrich, 2019, arXiv:1910.07467): for ∂x its input
    in fp32 and 1/rms, for the gradient of the weight their product.
    """
    made = {y: "T*d", "x in fp32": "T*d", "1/rms": "T", "x/rms": "T*d"}
    keeps = {"x in fp32": x, "1/rms": x, "x/rms": "."}
    wide = {"x in fp32": "4", "1/rms": "4"}
    return Step("norms", (x,), made, keeps, wide, module, cast=("d", x))


def rotary(x: str, y: str, heads: str) -> Step:
    """Turns pairs of numbers by their position (Su et al., 2021, arXiv:2104.09864). The
    cosines and sines, which all layers share.
    """
    return Step("attention", (x,), {y: f"T*{heads}*D"}, {"cosines": "", "sines": ""})


def cached(x: str, y: str, heads: str) -> Step:
    """The cache of keys and values, which a model fills in training too: a copy."""
    return Step("", (x,), {y: f"T*{heads}*D"})


def attention(*reads: str) -> Step:
    """Fused (Dao et al., 2022, arXiv:2205.14135): queries, keys, values, the output,
    and one log-sum-exp a token and head.
    """
    made = {"mixed": "T*h*D", "log-sum-exp": "T*h"}
    keeps = dict.fromkeys((*reads, *made), "")
    return Step("attention", reads, made, keeps, {"log-sum-exp": "max(4, bytes)"})


def activation(kind: str, x: str, y: str) -> Step:
    """One function of each number. What it keeps depends on how it is written."""
    if kind not in ACTIVATIONS:
        raise ValueError(
            f"the activation function {kind!r} is not known; there are "
            f"{', '.join(ACTIVATIONS)}."
        )
    own, keeps = ACTIVATIONS[kind]
    return Step(
        "activation",
        (x,),
        {y: "T*f"} | dict(own),
        {{"x": x, "y": y}.get(k, k): "" for k in keeps},
    )


# {name: (tensors that it makes on the way, what it keeps; x: its input, y: its output)}
ACTIVATIONS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    # GELU's tanh form in elementary operations, as GPT-2 has it: four of them
    "gelu_new": (
        {"x/2": "T*f", "tanh": "T*f", "1 + tanh": "T*f"},
        ("x", "x/2", "tanh", "1 + tanh"),
    ),
    "gelu_pytorch_tanh": ({}, ("x",)),
    "gelu": ({}, ("x",)),
    "silu": ({}, ("x",)),
    "relu": ({}, ("y",)),
}


def product(a: str, b: str, y: str) -> Step:
    """Each factor, if the other one needs a gradient."""
    return Step("activation", (a, b), {y: "T*f"}, {a: b, b: a})


def embedding(module: str, y: str, rows: str) -> Step:
    """The numbers of the rows that were read, eight bytes each, if the table trains."""
    ids = f"ids of {module}"
    made = {y: f"{rows}*d", ids: rows}
    return Step("embedding", (), made, {ids: "."}, {ids: "8"}, module)


def loss(rows: str, bytes: str) -> Step:
    """Cross-entropy: the log-probabilities of all classes, the sum of the weights, the
    labels.
    """
    made = {"log-probabilities": f"{rows}*V + 1", "labels": rows}
    keeps = dict.fromkeys(made, "")
    return Step(
        "loss", ("logits",), made, keeps, {"log-probabilities": bytes, "labels": "8"}
    )


# ---- the models


def gpt2(kind: str = "gelu_new", cache: bool = True) -> Architecture:
    """GPT-2 as transformers runs it: queries, keys and values from one matrix, tied
    embeddings, the loss in fp32.
    """
    copies = ("keys", "values") if cache else ()
    block = (
        layer_norm("ln_1", "x", "n"),
        linear("c_attn", "n", "qkv", "3*T*d"),
        *(cached("qkv", c, "h") for c in copies),
        attention("qkv", *copies),
        linear("attn.c_proj", "mixed", "a", "T*d"),
        add("x", "a", "z"),
        layer_norm("ln_2", "z", "m"),
        linear("mlp.c_fc", "m", "u", "T*f"),
        activation(kind, "u", "v"),
        linear("mlp.c_proj", "v", "w", "T*d"),
        add("z", "w", "x"),
    )
    end = (
        layer_norm("ln_f", "x", "n"),
        linear("lm_head", "n", "logits", "T*V"),
        loss("T", "4"),
    )
    inside = {"c_attn": "attn.c_attn"} | {
        n: n for n in ("ln_1", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    }
    paths = {n: f"transformer.h.{{}}.{p}" for n, p in inside.items()}
    paths |= {n: f"transformer.{n}" for n in ("wte", "wpe", "ln_f")}
    begin = (embedding("wte", "e", "T"), embedding("wpe", "p", "t"), add("e", "p", "x"))
    return Architecture(begin, block, end, paths | {"lm_head": "lm_head"})


def llama(kind: str = "silu", cache: bool = True) -> Architecture:
    """LLaMA as transformers runs it: RMSNorm, rotary positions, grouped queries, a
    gated MLP, the loss in fp32.
    """
    k, v = ("keys", "values") if cache else ("k turned", "v")
    copies = (cached("k turned", k, "g"), cached("v", v, "g")) if cache else ()
    block = (
        rms_norm("norm_1", "x", "n"),
        linear("q", "n", "q", "T*h*D"),
        linear("k", "n", "k", "T*g*D"),
        linear("v", "n", "v", "T*g*D"),
        rotary("q", "q turned", "h"),
        rotary("k", "k turned", "g"),
        *copies,
        attention("q turned", k, v),
        linear("o", "mixed", "a", "T*d"),
        add("x", "a", "z"),
        rms_norm("norm_2", "z", "m"),
        linear("gate", "m", "gate", "T*f"),
        linear("up", "m", "up", "T*f"),
        activation(kind, "gate", "open"),
        product("open", "up", "w"),
        linear("down", "w", "b", "T*d"),
        add("z", "b", "x"),
    )
    end = (
        rms_norm("norm", "x", "n"),
        linear("lm_head", "n", "logits", "T*V"),
        loss("T", "4"),
    )
    positions = Step("", (), {"cosines": "t*D", "sines": "t*D"})
    inside = {
        **{n: f"self_attn.{n}_proj" for n in "qkvo"},
        **{n: f"mlp.{n}_proj" for n in ("gate", "up", "down")},
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
    }
    paths = {n: f"model.layers.{{}}.{p}" for n, p in inside.items()}
    paths |= {"embedding": "model.embed_tokens", "norm": "model.norm"}
    begin = (embedding("embedding", "x", "T"), positions)
    return Architecture(begin, block, end, paths | {"lm_head": "lm_head"})


def vit(kind: str = "gelu", cache: bool = False) -> Architecture:
    """ViT as transformers runs it: t patches and a class token (t counts it) of each of
    B images, classified by what the class token has become; p pixels an image.
    """
    block = (
        layer_norm("norm_1", "x", "n"),
        *(linear(n, "n", n, "T*d") for n in "qkv"),
        attention("q", "k", "v"),
        linear("o", "mixed", "a", "T*d"),
        add("x", "a", "z"),
        layer_norm("norm_2", "z", "m"),
        linear("fc", "m", "u", "T*f"),
        activation(kind, "u", "v"),
        linear("proj", "v", "w", "T*d"),
        add("z", "w", "x"),
    )
    end = (
        layer_norm("norm", "x", "n"),  # the classifier reads a view of all of it
        linear("classifier", "n", "logits", "B*V", rows="B"),
        loss("B", "bytes"),
    )
    begin = (
        Step(
            "embedding",
            (),
            {"e": "T*d", "pixels": "B*p"},
            {"pixels": "."},
            module="patches",
            cast=("d*p//(t - 1)", "."),
        ),
        Step("", ("e",), {"x": "T*d"}, module="embeddings"),  # class token, positions
    )
    inside = {
        **{n: f"attention.{n}_proj" for n in "qkvo"},
        "norm_1": "layernorm_before",
        "norm_2": "layernorm_after",
        "fc": "mlp.fc1",
        "proj": "mlp.fc2",
    }
    paths = {n: f"vit.layers.{{}}.{p}" for n, p in inside.items()}
    paths |= {
        "embeddings": "vit.embeddings",
        "patches": "vit.embeddings.patch_embeddings",
        "norm": "vit.layernorm",
        "classifier": "classifier",
    }
    return Architecture(begin, block, end, paths)


# ---- the walk


class Walk:
    """Goes through the steps and notes what each keeps, given where gradients flow.

    values: numbers for the letters. trains(module, block): whether parameters of its
    own train. law(layer, block, grad): the law of a linear layer and numbers for its
    names, or None if its weight neither trains nor is adapted. masters(module, block):
    whether what trains of the module is in fp32 over a half-precision model.
    """

    def __init__(
        self,
        values: Mapping[str, int],
        trains: Callable[[str, int], bool],
        law: Callable[[str, int, bool], tuple[Law, Mapping[str, Any]] | None],
        masters: Callable[[str, int], bool] = lambda module, block: False,
    ) -> None:
        self.values, self.trains, self.law = values, trains, law
        self.masters = masters
        self.kept: dict[str, Amount] = {}  # by the names of `Bill.kept`
        self.size: dict[str, Amount] = {}  # of the tensors that have been made
        self.graded: set[str] = set()  # those that need a gradient
        self.noted: dict[str, str] = {}  # those that are kept, and by what
        self.block = 0

    def run(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            grad = any(t in self.graded for t in step.reads)
            law = self.law(step.module, self.block, grad) if step.rows else None
            # an adapter may have all that it trains in another layer
            own = law is not None or (
                bool(step.module) and self.trains(step.module, self.block)
            )
            for t, formula in step.makes.items():  # a new tensor, perhaps an old name
                numbers = evaluate(formula, self.values)
                each = evaluate(step.bytes.get(t, "bytes"), self.values)
                self.size[t] = Amount(numbers, numbers * each)
                self.noted.pop(t, None)
                self.noted.pop(t + SLICE, None)
            if law is not None:
                self.layer(step, *law)

            met = {t: True for t in self.graded} | {"": own or grad, ".": own}
            for t, condition in step.keeps.items():
                if met.get(condition, False):
                    self.keep(step.what, t)
            cast = own and met.get(step.cast[1], False)
            if cast and self.masters(step.module, self.block):
                numbers = evaluate(step.cast[0], self.values)
                self.note(step.what, Amount(numbers, numbers * self.values["bytes"]))
            for t in step.makes:
                (self.graded.add if own or grad else self.graded.discard)(t)

    def layer(self, step: Step, rule: Law, values: Mapping[str, Any]) -> None:
        """What a linear layer keeps: its law's "x" and "y" are tensors of the model."""
        rows, each = evaluate(step.rows, self.values), self.values["bytes"]
        (x,), (y,) = step.reads, step.makes
        for name, held in kept(rule, values, rows, each).items():
            if name == "x":
                self.keep("inputs of adapted layers", x)
            elif name == "y":
                self.keep("adapters", y)
            elif name == SLICE:
                self.size[x + SLICE] = held
                self.keep("adapters", x + SLICE)
            else:
                self.note("adapters", held)

    def keep(self, what: str, tensor: str) -> None:
        """Once; what an adapter keeps is the next operation's, if that keeps it too."""
        size = self.size[tensor]
        if self.noted.get(tensor) == "adapters":
            self.note("adapters", Amount(-size.numbers, -size.bytes))
        elif tensor in self.noted:
            return
        self.noted[tensor] = what
        self.note(what, size)

    def note(self, what: str, amount: Amount) -> None:
        self.kept[what] = self.kept.get(what, Amount()) + amount
