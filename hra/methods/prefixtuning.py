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

from hra.adapter import check_count
from hra.whole import WholeModel


class PrefixTuning(WholeModel):
    """Trains 2 · layers · n · d numbers. Raises TypeError or ValueError for n outside 1
    … context − 1, hidden below 1.
    """

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
        like, g = next(base.parameters()), self.generator("prefix")
        shape = (self.layers, 2, self.heads, n, self.width // self.heads)
        if hidden is None:
            self.prefix = nn.Parameter(
                torch.empty(shape).normal_(0, 0.02, generator=g).to(like)
            )
        else:
            self.vectors = nn.Parameter(
                torch.empty(n, self.width).normal_(0, 1, generator=g).to(like)
            )
            self.W1 = nn.Parameter(
                torch.empty(hidden, self.width)
                .normal_(0, self.width**-0.5, generator=g)
                .to(like)
            )
            self.W2 = nn.Parameter(
                torch.empty(2 * self.layers * self.width, hidden)
                .normal_(0, 0.02, generator=g)
                .to(like)
            )

    def P(self) -> Float[Tensor, "layers 2 heads n d_head"]:
        """The keys and values of the prefix."""
        if self.hidden is None:
            return self.prefix
        flat = torch.tanh(self.vectors @ self.W1.T) @ self.W2.T
        return flat.view(self.n, self.layers, 2, self.heads, -1).permute(1, 2, 3, 0, 4)

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file holds: P, without the MLP that made it."""
        return {"prefix": self.P().detach()}, {
            k: v for k, v in hyper.items() if k != "hidden"
        }

    def before(
        self, model: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        from transformers import DynamicCache

        kwargs, rows, tokens, seen = self.unpack(args, kwargs)
        self.widen_mask(kwargs, self.n)
        if not seen:
            cache = kwargs.get("past_key_values") or DynamicCache(config=model.config)
            for i, (k, v) in enumerate(self.P()):
                cache.update(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1), i)
            kwargs["past_key_values"], seen = cache, self.n
        text = seen - self.n
        kwargs["position_ids"] = torch.arange(
            text, text + tokens, device=self.like.device
        )[None]
        return (), kwargs
