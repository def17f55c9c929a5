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
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.width, self.context = config.hidden_size, config.max_position_embeddings
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
        return {
            n: p for n, p in model.named_parameters() if not n.startswith(self.NAME)
        }

    def install(self, model: nn.Module) -> None:
        self.release(model)  # installed twice, it would act twice
        model.add_module(self.NAME, self)
        model.register_forward_pre_hook(self.before, with_kwargs=True)
        model.register_forward_hook(self.after, with_kwargs=True)

    def release(self, model: nn.Module) -> None:
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is self:
                    del hooks[key]
                    for flags in (
                        model._forward_pre_hooks_with_kwargs,
                        model._forward_hooks_with_kwargs,
                    ):
                        flags.pop(key, None)
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
        self, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], int, int, int]:
        """(keyword arguments, rows, tokens, tokens already in the cache, the adapter's
        own included).
        """
        kwargs = dict(kwargs)
        if args:
            if len(args) > 1 or "input_ids" in kwargs:
                raise TypeError(
                    "a model with a prefix or a prompt takes input_ids by position, "
                    "the rest by keyword."
                )
            kwargs["input_ids"] = args[0]
        x = (
            kwargs.get("inputs_embeds")
            if kwargs.get("input_ids") is None
            else kwargs["input_ids"]
        )
        if x is None:
            raise ValueError(
                "the model was called without input_ids and without inputs_embeds."
            )
        cache = kwargs.get("past_key_values")
        return (
            kwargs,
            x.shape[0],
            x.shape[1],
            0 if cache is None else cache.get_seq_length(),
        )

    @staticmethod
    def widen_mask(kwargs: dict[str, Any], extra: int) -> None:
        """Let every token see `extra` positions before the text."""
        mask = kwargs.get("attention_mask")
        if mask is not None:
            kwargs["attention_mask"] = torch.cat(
                [mask.new_ones(len(mask), extra), mask], 1
            )
