"""The bill of a whole model, from its shapes and the laws: nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hra import linear
from hra.adapter import Adapter
from hra.law import evaluate
from hra.memory.bill import PLAIN, Amount, Bill, law
from hra.memory.measure import amount


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
            rule = law(
                type(a), flows, a.phase, d_out=a.d_out, d_in=a.d_in, adapter=a, **hyper
            )
            values = rule.values(d_out=a.d_out, d_in=a.d_in, **hyper)
        elif layer.weight.requires_grad:  # ordinary fine-tuning
            rule, values = PLAIN, {"d_in": linear.weight(layer).shape[1]}
        else:
            return flows
        for key, formula in rule.token.items():
            numbers = tokens * evaluate(formula, values)
            if not numbers or (key == "y" and y_kept):
                continue
            if key != "x":
                self.keep("adapters", numbers)
            elif x not in self.inputs:
                self.inputs.add(x)
                self.keep("inputs of adapted layers", whole or numbers)
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
