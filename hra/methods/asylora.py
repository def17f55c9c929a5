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
        if train not in ("A", "B"):
            raise ValueError(
                f"train={train!r} must be 'A' or 'B': the factor that trains."
            )
        self.trained = train  # before LoRA's constructor, which calls reset()
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)

    @torch.no_grad()
    def reset(self) -> None:
        """The frozen factor is drawn from (seed, site), the other is zero."""
        frozen, moved = (self.A, self.B) if self.trained == "B" else (self.B.T, self.A)
        draw = torch.empty(frozen.shape, dtype=torch.float64)
        draw.uniform_(
            -0.5, 0.5, generator=self.generator(f"orthonormal, {self.trained} trains")
        )
        frozen.copy_(torch.linalg.svd(draw, full_matrices=False).Vh)
        moved.zero_()
        self.A.requires_grad_(self.trained == "A")
        self.B.requires_grad_(self.trained == "B")

    @classmethod
    def law(cls, dropout: float, grad: bool, train: str = "B", **hyper: Any) -> Law:
        if train == "A":
            return Law(
                {"A": "r*d_in"}, kept_input(dropout, grad), frozen={"B": "d_out*r"}
            )
        return Law(
            {"B": "d_out*r"},
            dropout_mask(dropout, grad) | {"Ax": "r"},
            frozen={"A": "r*d_in"},
        )
