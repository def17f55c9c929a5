"""RoSA: Robust Adaptation, low-rank and sparse.  Nikdan et al., 2024.  arXiv:2401.04679

    ΔW = (α / r) B A + S    A: (r, d_in)   B: (d_out, r)   S: (d_out, d_in), K entries

S is zero outside the K entries of each matrix where the squared gradient, accumulated
after a warm-up of the low-rank part alone, is largest; then both begin anew. B and S
start at zero, A as LoRA's.

    warm = hra.attach(model, hra.LoRA, targets=..., r=8)    # some 64 steps, then
    G = hra.probe(model, batches, targets=...).squared      # or .mean
    tuned = hra.attach(warm.detach(), hra.RoSA, targets=..., r=8, scores=G)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra import masks
from hra.adapter import Adapter
from hra.checks import check_number
from hra.entries import K_OF_DENSITY, Entries
from hra.law import Law
from hra.methods.lora import LoRA


class RoSA(LoRA, Entries):
    """Trains r (d_in + d_out) + K numbers. Dropout acts on the input of A alone.

    scores: {site: (d_out, d_in)}, a function of (site, W), or the matrix of one layer.
    ratio: of S's learning rate to that of A and B (the authors' example: 2e-4 to 7e-4).
    Raises what LoRA and SHiRA raise, ValueError for a ratio ≤ 0.
    """

    data = ("scores",)

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        scores: Any = None,
        density: float = 0.01,
        count: int | None = None,
        ratio: float = 1.0,
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        del self.alpha  # is in `scale`; S itself has none
        self.ratio = check_number("ratio", ratio, 0.0, float("inf"))
        if shared is None:
            how = "pass scores=hra.probe(model, batches, targets=...).squared"
            S = masks.given(scores, self.W0, site, "RoSA needs gradients", how)
            K = masks.budget(self.d_out, self.d_in, density, count)
            shared = masks.top(S.abs(), K)
        self.hold(shared)

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        return LoRA.delta_weight(self) + Entries.delta_weight(self)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        A, B = self.factors()
        h = F.linear(F.dropout(x, self.dropout, self.training), A)
        return Entries.forward(self, x) + F.linear(self.scale * h, B)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """A and B at `lr`, S at ratio · lr."""
        return [
            {"params": [self.A, self.B], "lr": lr},
            {"params": [self.values], "lr": self.ratio * lr},
        ]

    # the low-rank part changes every entry
    changes = Adapter.changes
    entries = Adapter.entries  # type: ignore[assignment]

    @classmethod
    def law(
        cls,
        dropout: float,
        grad: bool,
        adapter: Any = None,
        count: int | None = None,
        **given: Any,
    ) -> Law:
        """The two laws, added up; x is one tensor for both."""
        K = K_OF_DENSITY if count is None else count
        sparse = super(LoRA, cls).law(adapter, {"K": K, "columns": "min(K, d_in)"})
        low = super().law(dropout, grad)
        return replace(
            sparse,
            trained=low.trained | sparse.trained,
            token=sparse.token | low.token,
            cast=low.cast,
        )

    # ---- files
    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        d_out, d_in = shape
        factors = {"A": (hyper["r"], d_in), "B": (d_out, hyper["r"])}
        return super().schema(shape, hyper) | factors

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, hyper = super().packed(hyper)
        return tensors | {"A": self.A.detach(), "B": self.B.detach()}, hyper

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        super().unpack(tensors)
        self.A.data.copy_(tensors["A"])
        self.B.data.copy_(tensors["B"])
