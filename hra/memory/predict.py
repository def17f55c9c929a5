"""The bill of a whole model, from its shapes and the laws: nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hra import linear
from hra.law import Law
from hra.memory import blocks
from hra.memory.bill import PLAIN, Amount, Bill, law
from hra.memory.blocks import Architecture, Walk
from hra.memory.measure import amount, bare


def predict(tuned: Any, batch: Mapping[str, Any]) -> Bill:
    """The bill of a training step of a GPT-2, a LLaMA or a ViT of transformers, from
    shapes and formulas: to be held against `measure`.

    `predict(tuned, {"input_ids": ids, "labels": ids}) == measure(tuned, …)`, with ids
    (batch, tokens).

    tuned: what `hra.attach` returns, or the model itself with the parameters to be
    trained; a model on the meta device will do. batch: as for the model; only the
    shapes of its tensors are read. Raises ValueError for another architecture, a model
    with dropout of its own, an attention that is not fused, or a batch with more than
    inputs and labels.
    """
    model = bare(tuned)
    adapters: dict[str, Any] = dict(getattr(tuned, "adapters", {}))
    full: dict[str, Any] = dict(getattr(tuned, "also", {}))
    architecture, values = known(model, batch, adapters | full)
    met: set[str] = set()

    def path(module: str, block: int) -> str:
        return architecture.paths[module].format(block)

    def in_full(module: str, block: int) -> bool:
        return any(f"{path(module, block)}.".startswith(f"{n}.") for n in full)

    def trains(module: str, block: int) -> bool:
        if in_full(module, block):
            return True
        own = model.get_submodule(path(module, block)).parameters()
        return any(p.requires_grad for p in own)

    def rule(module: str, block: int, grad: bool) -> tuple[Law, Any] | None:
        site = path(module, block)
        if in_full(module, block):
            d_out, d_in = linear.weight(layer_at(model, site)).shape
            cast = {"W": "d_out*d_in"} if grad else {}
            return replace(PLAIN, fp32=True, cast=cast), {"d_out": d_out, "d_in": d_in}
        if site not in adapters:
            W = linear.weight(model.get_submodule(site))
            return (PLAIN, {"d_in": W.shape[1]}) if W.requires_grad else None
        met.add(site)
        a = adapters[site]
        sizes = {"d_out": a.d_out, "d_in": a.d_in}
        hyper = a.hyperparameters(getattr(tuned, "hyper", {}))
        found = law(type(a), grad, a.phase, site=site, adapter=a, **sizes, **hyper)
        return found, found.values(**sizes, **hyper)

    def masters(module: str, block: int) -> bool:
        return values["bytes"] < 4 and in_full(module, block)

    walk = Walk(values, trains, rule, masters)
    walk.run(architecture.begin)
    layers: Any = model.config
    for walk.block in range(layers.num_hidden_layers):
        walk.run(architecture.block)
    walk.run(architecture.end)
    if left := sorted(set(adapters) - met):
        raise ValueError(
            f"predict does not know what {type(adapters[left[0]]).__name__} keeps at "
            f"{left[0] or 'the model itself'!r}. measure() takes any."
        )
    trained, rest = Amount(), amount(model.buffers())
    for p in model.parameters():
        one = Amount(p.numel(), p.numel() * p.element_size())
        trained, rest = (
            (trained + one, rest) if p.requires_grad else (trained, rest + one)
        )
    return Bill(
        rest,
        trained,
        trained,
        trained + trained,
        sum(walk.kept.values(), Amount()),
        {k: a.numbers for k, a in walk.kept.items() if a.numbers},
    )


# ---- models of transformers: their steps, and numbers for the letters


def _gpt2(c: Any, ids: torch.Size) -> tuple[Architecture, dict[str, int]]:
    for name in ("reorder_and_upcast_attn", "add_cross_attention"):
        if getattr(c, name, False):
            raise ValueError(f"predict is for models without config.{name}.")
    d, h, f = c.n_embd, c.n_head, c.n_inner or 4 * c.n_embd
    sizes = {"B": ids[0], "t": ids[1], "d": d, "h": h, "g": h, "D": d // h, "f": f}
    return blocks.gpt2(c.activation_function, c.use_cache), sizes | {"V": c.vocab_size}


def _llama(c: Any, ids: torch.Size) -> tuple[Architecture, dict[str, int]]:
    sizes = {
        "B": ids[0],
        "t": ids[1],
        "d": c.hidden_size,
        "h": c.num_attention_heads,
        "g": c.num_key_value_heads,
        "D": c.head_dim,
        "f": c.intermediate_size,
        "V": c.vocab_size,
    }
    return blocks.llama(c.hidden_act, c.use_cache), sizes


def _vit(c: Any, pixels: torch.Size) -> tuple[Architecture, dict[str, int]]:
    if c.num_labels < 2 or c.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"predict is for a ViT that tells classes apart; this one has "
            f"{c.num_labels} labels, problem_type={c.problem_type!r}."
        )
    d, h = c.hidden_size, c.num_attention_heads
    sizes = {
        "B": pixels[0],
        "t": (c.image_size // c.patch_size) ** 2 + 1,
        "p": pixels[1:].numel(),
        "d": d,
        "h": h,
        "D": d // h,
        "f": c.intermediate_size,
        "V": c.num_labels,
    }
    return blocks.vit(c.hidden_act), sizes


MODELS = {
    "GPT2LMHeadModel": (_gpt2, "input_ids"),
    "LlamaForCausalLM": (_llama, "input_ids"),
    "ViTForImageClassification": (_vit, "pixel_values"),
}


def layer_at(model: nn.Module, site: str) -> nn.Module:
    """The linear layer at `site`, below what stands for it."""
    layer = model.get_submodule(site)
    return getattr(layer, "base", layer)  # type: ignore[return-value]


def known(
    model: nn.Module, batch: Mapping[str, Any], parts: Mapping[str, Any]
) -> tuple[Architecture, dict[str, int]]:
    """The steps of this model, and numbers for their letters."""
    kind, c = type(model).__name__, getattr(model, "config", None)
    if kind not in MODELS or c is None:
        raise ValueError(
            f"predict knows the operations of {', '.join(MODELS)}; this model is a "
            f"{kind}. measure() takes any."
        )
    sizes_of, read = MODELS[kind]
    if set(batch) != {read, "labels"}:
        raise ValueError(
            f"predict needs a batch of {read} and labels; this one has "
            f"{', '.join(batch) or 'nothing'}. measure() takes any."
        )
    if c._attn_implementation != "sdpa":
        raise ValueError(
            "predict is for fused attention, attn_implementation='sdpa'; this model "
            f"has {c._attn_implementation!r}. measure() takes any."
        )
    if any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise ValueError(
            "predict is for models without gradient checkpointing. measure() takes any."
        )
    noise = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    noise |= {n: getattr(c, n, 0.0) for n in DROPOUTS}
    for name, p in noise.items():
        if p:
            raise ValueError(
                f"predict is for models without dropout of their own; {name} has p = "
                f"{p}. Build the model with its dropout at 0."
            )
    own = {
        id(p)
        for a in parts.values()
        for name, p in a.named_parameters()
        if not name.startswith("base.")
    }
    dtypes = {p.dtype for p in model.parameters() if id(p) not in own}
    if len(dtypes) != 1:
        raise ValueError(
            "predict is for models in one kind of numbers; this one has "
            f"{', '.join(sorted(map(str, dtypes)))}."
        )
    architecture, sizes = sizes_of(c, batch[read].shape)
    return architecture, sizes | {
        "T": sizes["B"] * sizes["t"],
        "bytes": dtypes.pop().itemsize,
    }


# of the configuration, where it is no module
DROPOUTS = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")
