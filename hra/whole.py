"""Methods whose layer is the model itself: they act on what goes into it and comes out
of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hra.adapter import Method


class WholeModel(Method):
    """A module that stands inside a causal language model of transformers (GPT-2) and
    hooks its forward pass.

    Override `before(model, args, kwargs)` and, where the output changes, `after(model,
    args, kwargs, output)`.
    """

    family = "before LoRA"
    # under this name it is a part of the model: it moves, copies and saves with it
    NAME = "hra_adapter"

    def __init__(self, base: nn.Module, *, seed: int = 0, site: str = "") -> None:
        super().__init__(seed=seed, site=site)
        can: Any = getattr(base, "can_generate", None)
        if not (callable(can) and can()):
            raise ValueError(
                f"{type(self).__name__} needs a causal language model of transformers "
                "with a key/value cache, such as GPT2LMHeadModel; this is a "
                f"{type(base).__name__}."
            )
        self.training = base.training
        config: Any = base.config
        name = type(base).__name__
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"{name} has an encoder and a decoder; {type(self).__name__} is for "
                "models that read one text, such as GPT2LMHeadModel."
            )
        if getattr(config, "max_position_embeddings", None) is None:
            raise ValueError(
                f"{name} does not say how long its context is (its configuration has "
                f"no max_position_embeddings): {type(self).__name__} needs to know."
            )
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise ValueError(
                f"{name} has layers that see a window of the text only; what "
                f"{type(self).__name__} puts before the text would leave it."
            )
        self.layers, self.context = (
            config.num_hidden_layers,
            config.max_position_embeddings,
        )
        heads = config.num_attention_heads
        # grouped queries share keys; a head need not be as wide as its share of d
        self.heads = getattr(config, "num_key_value_heads", None) or heads
        self.head = getattr(config, "head_dim", None) or config.hidden_size // heads
        base.requires_grad_(False)

    @classmethod
    def sites(cls, model: nn.Module, targets: str) -> dict[str, nn.Module]:
        """The model itself, under the name ""; `targets` must be left out."""
        if targets:
            raise ValueError(
                f"{cls.__name__} has the model itself as its layer: leave "
                f"targets={targets!r} out."
            )
        return {"": model}

    @property
    def like(self) -> Tensor:
        """A tensor of the adapter's dtype and device."""
        return next(self.parameters())

    def check_length(self, n: Any, what: str) -> int:
        """`n` if it is an integer of 1 … context − 1."""
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(
                f"n={n!r} is a {type(n).__name__}; the length of a {what} is an "
                "integer from 1 to "
                f"{self.context - 1}."
            )
        if not 1 <= n < self.context:
            raise ValueError(
                f"n={n} is out of range: a {what} has 1 to {self.context - 1} "
                "positions, for the model's context "
                f"has {self.context}."
            )
        return n

    def base_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """All of the model; a module that trains in full names its own tensors."""
        own = [f"{n}." for n, m in model.named_modules() if isinstance(m, Method)]
        named = model.named_parameters()
        return {n: p for n, p in named if not n.startswith(tuple(own))}

    def install(self, model: nn.Module) -> None:
        self.release(model)  # installed twice, it would act twice
        model.add_module(self.NAME, self)
        model.register_forward_pre_hook(self.before, with_kwargs=True)
        model.register_forward_hook(self.after, with_kwargs=True)

    def release(self, model: nn.Module) -> None:
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is self:
                    for flags in (
                        model._forward_pre_hooks_with_kwargs,
                        model._forward_hooks_with_kwargs,
                    ):
                        flags.pop(key, None)
                    del hooks[key]  # last: an interrupted release is done again
        model._modules.pop(self.NAME, None)

    def before(
        self, model: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs

    def after(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> Any:
        return output

    def forward(self, *args: Any) -> Tensor:
        raise TypeError(
            f"{type(self).__name__} is no layer: call the model that it was attached "
            "to."
        )

    # ---- what the hooks share ------------------------------------------------------
    def inputs(
        self, args: tuple, kwargs: dict[str, Any], n: int
    ) -> tuple[dict[str, Any], int, int, int]:
        """(keyword arguments, rows, tokens, tokens in the cache), with positions for
        every token of the text and a mask that lets it see `n` more before the text.

        Positions follow the mask where there is one: a padded row is then what it is
        without its padding. Raises TypeError or ValueError for what cannot be right.
        """
        from transformers import DynamicCache

        kwargs = dict(kwargs)
        if args:
            if len(args) > 1 or "input_ids" in kwargs:
                raise TypeError(
                    "a model with a prefix or a prompt takes input_ids by position, "
                    "the rest by keyword."
                )
            kwargs["input_ids"] = args[0]
        x = kwargs.get("input_ids")
        x = kwargs.get("inputs_embeds") if x is None else x
        if x is None:
            raise ValueError(
                "the model was called without input_ids and without inputs_embeds."
            )
        if kwargs.get("return_dict") is False:
            raise ValueError("return_dict=False: take the output's fields by name.")
        cache = kwargs.get("past_key_values")
        if cache is not None and type(cache) is not DynamicCache:
            raise TypeError(
                f"past_key_values is a {type(cache).__name__}; {type(self).__name__} "
                "needs a DynamicCache, which can grow."
            )
        (rows, tokens), seen = (
            x.shape[:2],
            0 if cache is None else cache.get_seq_length(),
        )
        text = max(0, seen - n)
        mask, at = kwargs.get("attention_mask"), kwargs.get("position_ids")
        # generate() counts what is in the cache to know which tokens are new
        whole = at.max() + 1 if mask is None and at is not None and seen else None
        whole = mask.shape[-1] if mask is not None and mask.ndim == 2 else whole
        if whole is not None and whole != text + tokens:
            raise ValueError(
                f"the call is for {int(whole)} tokens, and there are {text} in the "
                f"cache and {tokens} new ones. The cache of an earlier generate() "
                "holds more than its text: begin a second turn without it."
            )
        if mask is not None:
            if mask.ndim != 2:
                raise ValueError(
                    f"attention_mask has {mask.ndim} dimensions; "
                    f"{type(self).__name__} widens a mask of (rows, tokens)."
                )
            kwargs["attention_mask"] = torch.cat([mask.new_ones(rows, n), mask], 1)
        if at is None:
            at = torch.arange(text, text + tokens, device=x.device)[None]
            if mask is not None:
                at = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -tokens:]
            kwargs["position_ids"] = at
        return kwargs, rows, tokens, seen
