"""LoRA-FA: LoRA with a frozen A.  Zhang et al., 2023.  arXiv:2308.03303

    ΔW = (α / r) B A    A: (r, d_in) random, frozen   B: (d_out, r), trained, from zero

The backward pass needs x Aᵀ, r numbers a token, and never x. `project=True` replaces
the gradient of B by g_B (A Aᵀ)⁻¹ / s², s = α / r: the step of B whose ΔW is nearest, in
the Frobenius norm, to the dense gradient's.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra.checks import check_bool
from hra.law import Law, dropout_mask
from hra.methods.lora import LoRA


class LoRAFA(LoRA):
    """Trains the r · d_out numbers of B. Raises what LoRA raises, TypeError for a
    `project` that is no bool.
    """

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        project: bool = False,
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        self.project = check_bool("project", project)
        self.A = nn.Parameter(self.like_base(self.A.data), requires_grad=False)

    def factors(
        self,
    ) -> tuple[Float[Tensor, "r {self.d_in}"], Float[Tensor, "{self.d_out} r"]]:
        A, B = self.like_base(self.A), self.B
        if self.project:
            B = _Project.apply(B, A, self.scale)
        return A, self.like_base(B)

    @classmethod
    def law(cls, dropout: float, grad: bool, **hyper: Any) -> Law:
        return Law(
            {"B": "d_out*r"},
            dropout_mask(dropout, grad) | {"Ax": "r"},
            frozen={"A": "r*d_in"},
            cast={"B": "d_out*r"} if grad else {},
        )


class _Project(torch.autograd.Function):
    """B itself; its gradient g becomes g (A Aᵀ)⁻¹ / s²."""

    @staticmethod
    def forward(ctx: Any, B: Tensor, A: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(A)
        ctx.scale = scale
        return B.view_as(B)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        A = ctx.saved_tensors[0].double()
        inverse = torch.linalg.pinv(A @ A.T, hermitian=True)  # r × r
        return (g.double() @ inverse / ctx.scale**2).to(g.dtype), None, None
