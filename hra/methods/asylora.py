"""AsyLoRA: one orthonormal factor frozen, one trained.

Zhu et al., 2024.  arXiv:2402.16842

    ΔW = (α / r) B A        A: (r, d_in)   B: (d_out, r)

train="B": A Aᵀ = I, frozen; B starts at zero.
train="A": Bᵀ B = I, frozen; A starts at zero.
The frozen factor holds the right (for B: left) singular vectors of a matrix of
independent uniform numbers.
"""

from typing import Any

import torch
from torch import nn

from hra.checks import check_choice
from hra.law import Law, dropout_mask, kept_input
from hra.methods.lora import LoRA


class AsyLoRA(LoRA):
    """Trains r · d_out numbers (train="B") or r · d_in (train="A"). Raises ValueError
    for another `train`.
    """

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        train: str = "B",
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        self.trained = check_choice("train", train, ("A", "B"))
        shape = (r, self.d_in) if train == "B" else (r, self.d_out)
        draw = torch.empty(shape, dtype=torch.float64).uniform_(
            -0.5, 0.5, generator=self.generator(f"orthonormal, {train} trains")
        )
        rows = torch.linalg.svd(draw, full_matrices=False).Vh.to(self.W0).contiguous()
        if train == "B":
            self.A = nn.Parameter(rows, requires_grad=False)
        else:
            self.A = self.new_parameter(r, self.d_in)
            self.B = nn.Parameter(rows.T.contiguous(), requires_grad=False)

    @classmethod
    def law(cls, dropout: float, grad: bool, train: str = "B", **hyper: Any) -> Law:
        if train == "A":
            return Law(
                {"A": "r*d_in"},
                kept_input(dropout, grad),
                frozen={"B": "d_out*r"},
                cast={"A": "r*d_in"} if grad else {},
            )
        return Law(
            {"B": "d_out*r"},
            dropout_mask(dropout, grad) | {"Ax": "r"},
            frozen={"A": "r*d_in"},
            cast={"B": "d_out*r"} if grad else {},
        )
