"""Methods whose layer is the model itself: they act on what goes into it and comes out
of it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra.adapter import Method


class WholeModel(Method):
    """A module that stands inside a causal language model of transformers (GPT-2) and
    hooks its forward pass.

    Override `before(model, args, kwargs)` and, where the output changes, `after(model,
    args, kwargs, output)`. The `n` virtual positions before the text stand in the
    model's cache; `inputs` alone knows positions, masks and caches.
    """

    n: int
    in_sequence = False  # whether the model computes the n positions, on a first call

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
        why = _unfit(base, config)
        if why:
            raise ValueError(
                f"{type(base).__name__} {why}. {type(self).__name__} is for models "
                "that read one text from left to right, every token seeing all before "
                "it, such as GPT2LMHeadModel or LlamaForCausalLM."
            )
        self.layers, self.context = (
            config.num_hidden_layers,
            config.max_position_embeddings,
        )
        heads = config.num_attention_heads
        # grouped queries share keys; a head need not be as wide as its share of d
        self.head = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.heads = getattr(config, "num_key_value_heads", None) or heads
        # Falcon's newer ones, too, say multi_query, and keep every head
        grouped = getattr(config, "new_decoder_architecture", False)
        if getattr(config, "multi_query", False) and not grouped:
            self.heads = 1
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
        """The output, its cache counting the text alone."""
        inner, made = kwargs.get("past_key_values"), output.past_key_values
        cache = made if inner is None else vars(inner).pop("callers", inner)
        if cache is not None:
            if inner is not None:
                cache.layers = inner.layers
            cache.__class__, cache.made_by = text_cache(), self.stamp
        if made is not None:
            output.past_key_values = cache
        return output

    def forward(self, *args: Any) -> Tensor:
        raise TypeError(
            f"{type(self).__name__} is no layer: call the model that it was attached "
            "to."
        )

    # ---- what the hooks share ------------------------------------------------------
    @property
    def stamp(self) -> tuple[str, int]:
        """What a cache says of who filled it."""
        return type(self).__name__, self.n

    def inputs(
        self, model: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], int, int, int]:
        """(keyword arguments, rows, tokens, positions in the cache), with positions for
        every token of the text, a mask that lets it see the n before it, and a cache
        that the model may fill.

        Positions follow the mask where there is one: a padded row is then what it is
        without its padding. Raises TypeError or ValueError for what cannot be right.
        """
        kwargs, name = dict(kwargs), type(self).__name__
        if args:
            if len(args) > 1 or "input_ids" in kwargs:
                raise TypeError(
                    "a model with a prefix or a prompt takes input_ids by position, "
                    "the rest by keyword."
                )
            kwargs["input_ids"] = args[0]
        dims = {"input_ids": 2, "inputs_embeds": 3}
        given = [k for k in dims if kwargs.get(k) is not None]
        if not given:
            raise ValueError(
                "the model was called without input_ids and without inputs_embeds."
            )
        if len(given) > 1:
            raise ValueError("input_ids and inputs_embeds were given: leave one out.")
        x = kwargs[given[0]]
        if x.ndim != dims[given[0]]:
            raise ValueError(
                f"{given[0]} of shape {tuple(x.shape)} has {x.ndim} dimensions, not "
                f"{dims[given[0]]}: rows and tokens come first."
            )
        if not kwargs.get("return_dict", getattr(model.config, "return_dict", True)):
            raise ValueError(
                "return_dict=False, in the call or in the model's config: leave it out "
                "and take the output's fields by name."
            )
        (rows, tokens), seen = x.shape[:2], self.open_cache(kwargs)
        whole = max(0, seen - self.n) + tokens
        mask, at = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is None:
            if at is not None:
                self.refuse_packed(model, at, kwargs)
            mask = torch.ones(rows, whole, dtype=torch.long, device=x.device)
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask)
            raise ValueError(
                f"attention_mask is {shape}; {name} widens a mask of (rows, tokens) or "
                "of (rows, 1, tokens, tokens seen)."
            )
        if mask.shape[-1] != whole:
            raise ValueError(
                f"attention_mask is for {mask.shape[-1]} tokens, and there are "
                f"{whole - tokens} in the cache and {tokens} new ones: it has a column "
                "for each of them and none for the "
                f"{self.n} of {name}."
            )
        if at is None and mask.ndim == 2:
            at = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -tokens:]
        if at is None:
            at = torch.arange(whole - tokens, whole, device=x.device)[None]
        kwargs["position_ids"] = at
        kwargs["attention_mask"] = self.widened(mask, first=not seen)
        return kwargs, rows, tokens, seen

    def widened(self, mask: Tensor, first: bool) -> Tensor:
        """The mask, with n positions before the text that every token sees."""
        n = self.n
        if mask.ndim == 2:
            return torch.cat([mask.new_ones(len(mask), n), mask], 1)
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(
                f"an attention_mask of 4 dimensions is bool (True: seen) or float (0: "
                f"seen, −inf: not), as the attention adds it; this is {mask.dtype}."
            )
        boolean = mask.dtype == torch.bool
        wide = F.pad(mask, (n, 0), value=boolean)  # True is seen; so is 0.0
        if not (self.in_sequence and first):
            return wide
        hidden = False if boolean else torch.finfo(mask.dtype).min
        own = wide.new_full((*wide.shape[:2], n, wide.shape[-1]), hidden)
        later = torch.ones_like(own, dtype=torch.bool).triu(1)
        return torch.cat([own.masked_fill(~later, boolean), wide], 2)

    def refuse_packed(self, model: Any, at: Tensor, kwargs: dict[str, Any]) -> None:
        """Positions that jump, and no mask: a row holds several texts."""
        cached = kwargs.get("use_cache")
        cached = getattr(model.config, "use_cache", True) if cached is None else cached
        step = at.diff()
        packed = step < 0 if cached else step != 1
        if kwargs.get("past_key_values") is None and packed.any():
            raise ValueError(
                "position_ids that jump pack several texts into a row, and each would "
                f"need its own {self.n} positions of {type(self).__name__}: give a row "
                "to each text, or an attention_mask."
            )

    def open_cache(self, kwargs: dict[str, Any]) -> int:
        """How many positions the caller's cache holds, the n too. The model gets one
        that counts them all; `after` lets the caller's count the text alone.
        """
        from transformers import DynamicCache

        cache: Any = kwargs.get("past_key_values")
        if cache is None:
            return 0
        counts_text = isinstance(cache, text_cache())
        if not (counts_text or type(cache) is DynamicCache):
            raise TypeError(
                f"past_key_values is a {type(cache).__name__}; {type(self).__name__} "
                "needs a DynamicCache, which can grow."
            )
        inner: Any = DynamicCache.__new__(DynamicCache)
        vars(inner).update(vars(cache))  # the layers are the same
        kwargs["past_key_values"], inner.callers = inner, cache
        seen = inner.get_seq_length()
        made_by = cache.made_by if counts_text else None
        if seen and (made_by != self.stamp or seen < self.n):
            by = "{}(n={})".format(*made_by) if made_by else "the model without it"
            raise ValueError(
                f"past_key_values has {seen} positions, filled by {by}; this is "
                "{}(n={}): begin with an empty cache.".format(*self.stamp)
            )
        if not seen:  # a call that fails leaves the caller's cache empty
            inner.layers = copy.deepcopy(cache.layers)
        return seen


def _unfit(base: nn.Module, config: Any) -> str:
    """Why nothing can be put before this model's text; "" if it can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if getattr(config, "is_encoder_decoder", False) or getattr(
        config, "add_cross_attention", False
    ):
        return "has an encoder and a decoder, or a decoder's attention to an encoder"
    if getattr(config, "max_position_embeddings", None) is None:
        return (
            "does not say how long its context is (its configuration has no "
            "max_position_embeddings)"
        )
    takes: set[str] = set()
    for c in type(base).__mro__:  # a subclass may hand on **kwargs
        if "forward" in vars(c):
            takes |= set(inspect.signature(vars(c)["forward"]).parameters)
    for name in ("past_key_values", "position_ids", "attention_mask", "inputs_embeds"):
        if name not in takes:
            return f"takes no {name}"
    if any(type(a) is not DynamicLayer for a in DynamicCache(config=config).layers):
        return (
            "has layers that see a window of the text only, or keep something other "
            "than the keys and values of every token"
        )
    if getattr(config, "kv_lora_rank", None):
        return "compresses its keys and values (its configuration has a kv_lora_rank)"
    parts = list(base.modules())
    if getattr(config, "is_decoder", None) is False and not any(
        getattr(m, "is_causal", False) for m in parts
    ):
        return "lets tokens see what follows (its configuration has is_decoder=False)"
    if any(hasattr(m, "create_position_ids_from_input_ids") for m in parts):
        return "counts positions in its own way, not from 0"
    return ""


# ---- a cache that counts the text --------------------------------------------------


@functools.cache
def text_cache() -> Any:
    """TextCache, which brings transformers: only when used."""
    from transformers import DynamicCache

    class TextCache(DynamicCache):
        """What the caller has of a model's cache: its length leaves the virtual
        positions out, for by it generate() tells old tokens from new.
        """

        made_by: tuple[str, int]

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return max(0, super().get_seq_length(layer_idx) - self.made_by[1])

        def update(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError(
                "this cache was filled by {}(n={}), and the model has that no more: "
                "begin with an empty cache.".format(*self.made_by)
            )

    TextCache.__qualname__ = "TextCache"
    return TextCache


def __getattr__(name: str) -> Any:
    if name == "TextCache":  # where pickle looks for it
        return text_cache()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
