"""Prefix-tuning: trained keys and values before the text.

Li and Liang, 2021.  arXiv:2101.00190

    K ← [P_K; K],  V ← [P_V; V] in every layer    P: (layers, 2, heads, n, d / heads)

Every token attends to n pairs more. The text keeps its positions 0 … T − 1; the prefix
has none. P starts normal with deviation 0.02. With `hidden`, P is the output of an MLP
on n trained vectors (d → hidden → 2 · layers · d, tanh) during training, as in the
paper (§4.3); a file holds P alone.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import WIDE
from hra.checks import check_count
from hra.whole import WholeModel


class PrefixTuning(WholeModel):
    """Trains 2 · layers · n · d numbers. Raises TypeError or ValueError for n outside 1
    … context − 1, hidden below 1.
    """

    prefix: Float[Tensor, "layers 2 heads n d_head"]
    no_delta = "it adds keys and values to the attention and changes no weight"

    def __init__(
        self,
        base: nn.Module,
        n: int = 8,
        hidden: int | None = None,
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.n = self.check_length(n, "prefix")
        self.hidden = None if hidden is None else check_count("hidden", hidden)
        g, heads = self.generator("prefix"), self.heads
        d = base.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        like = next(base.parameters())

        def drawn(*shape: int, std: float) -> nn.Parameter:
            draw = torch.empty(shape, dtype=torch.float32).normal_(0, std, generator=g)
            wide = torch.promote_types(like.dtype, WIDE)
            return nn.Parameter(draw.to(like.device, wide))

        if hidden is None:
            self.prefix = drawn(self.layers, 2, heads, n, self.head, std=0.02)
        else:
            self.vectors = drawn(n, d, std=1.0)
            self.W1 = drawn(hidden, d, std=d**-0.5)
            self.W2 = drawn(2 * self.layers * heads * self.head, hidden, std=0.02)

    def P(self) -> Float[Tensor, "layers 2 heads n d_head"]:
        """The keys and values of the prefix."""
        if self.hidden is None:
            return self.prefix
        flat = torch.tanh(self.vectors @ self.W1.T) @ self.W2.T
        return flat.view(self.n, self.layers, 2, self.heads, -1).permute(1, 2, 3, 0, 4)

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        if hyper["hidden"] is not None:
            raise ValueError("a file holds the prefix, not the MLP that made it.")
        return super().schema(shape, hyper)

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file holds: P, without the MLP that made it."""
        return {"prefix": self.P().detach()}, hyper | {"hidden": None}

    def before(
        self, model: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        from transformers import DynamicCache

        kwargs, rows, _, seen = self.inputs(model, args, kwargs)
        # transformers' own question is asked by another name in every version
        if model.training and any(
            getattr(m, "gradient_checkpointing", False) for m in model.modules()
        ):
            raise ValueError(
                "gradient checkpointing drops the key/value cache, in which the prefix "
                "lives: turn it off (model.gradient_checkpointing_disable())."
            )
        if not seen:
            cache = kwargs.get("past_key_values")
            cache = DynamicCache(config=model.config) if cache is None else cache
            for i, (k, v) in enumerate(self.P().to(model.dtype)):
                cache.update(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1), i)
            kwargs["past_key_values"] = cache
        return (), kwargs
