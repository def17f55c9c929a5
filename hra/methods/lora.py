"""LoRA: Low-Rank Adaptation.  Hu et al., 2021.  arXiv:2106.09685

    ΔW = (α / r) B A        A: (r, d_in)   B: (d_out, r)                        (eq. 3)

A starts as a linear layer of fan-in d_in does (uniform, variance 1 / (3 d_in)), B at
zero: ΔW = 0 and the adapted layer begins as the pretrained one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import Adapter, uniform
from hra.checks import check_number
from hra.law import Law, kept_input


class LoRA(Adapter):
    """Trains r (d_in + d_out) numbers. Dropout acts on the input of A, in training
    only.

    Raises TypeError or ValueError for r outside 1 … min(d_out, d_in), α ≤ 0, dropout
    outside [0, 1).
    """

    family = "low rank"
    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.r = self.check_rank(r)
        self.alpha = check_number("alpha", alpha, 0.0, float("inf"))
        self.dropout = check_number("dropout", dropout, 0.0, 1.0, closed_low=True)
        self.scale = self.scaling(self.alpha, self.r)
        self.A = self.new_parameter(r, self.d_in)
        self.B = self.new_parameter(self.d_out, r)
        self.start()

    @staticmethod
    def scaling(alpha: float, r: int) -> float:
        return alpha / r

    @torch.no_grad()
    def start(self) -> None:
        """A is drawn from (seed, site), B is zero."""
        draw = uniform((self.r, self.d_in), self.d_in**-0.5, self.generator("A"))
        self.A.copy_(draw)
        self.B.zero_()

    def factors(
        self,
    ) -> tuple[Float[Tensor, "r {self.d_in}"], Float[Tensor, "{self.d_out} r"]]:
        """(A, B) in the layer's dtype, for methods that compute them otherwise."""
        return self.like_base(self.A), self.like_base(self.B)

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        A, B = self.factors()
        return self.scale * B @ A

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        """x W0ᵀ + (α/r) (x Aᵀ) Bᵀ: r numbers between the two, ΔW is never formed."""
        A, B = self.factors()
        h = F.linear(F.dropout(x, self.dropout, self.training), A)
        return F.linear(x, self.frozen, self.bias) + F.linear(self.scale * h, B)

    @classmethod
    def law(cls, dropout: float, grad: bool, **hyper: Any) -> Law:
        return Law(
            {"A": "r*d_in", "B": "d_out*r"},
            kept_input(dropout, grad) | {"Ax": "r"},
            cast={"B": "d_out*r"} | ({"A": "r*d_in"} if grad else {}),
        )

    def extra_repr(self) -> str:
        own = f"r={self.r}, scale={self.scale:g}, dropout={self.dropout:g}"
        return f"{super().extra_repr()}, {own}"
