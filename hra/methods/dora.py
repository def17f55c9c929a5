"""DoRA: weight-decomposed LoRA.  Liu et al., 2024.  arXiv:2402.09353

    W = m ⊙ V / ‖V‖    V = W0 + (α / r) B A: (d_out, d_in)   m: (d_out,)        (eq. 5)

m starts at ‖W0‖, the norms of the rows.

‖·‖ is taken over d_in: one norm an output neuron. §4.3 (eq. 11) holds ‖V‖ constant in
the backward pass: `detach_norm=True`. With dropout d: y = W0 x + (γ − 1) W0 d(x) + γ (α
/ r) B A d(x), γ = m / ‖V‖; the bias is never scaled.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra.checks import check_bool, no_second_derivative
from hra.law import Law, kept_input
from hra.methods.lora import LoRA


class DoRA(LoRA):
    """Trains r (d_in + d_out) + d_out numbers. Raises what LoRA raises, TypeError for a
    `detach_norm` that is no bool.
    """

    m: Float[Tensor, " d_out"]

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        detach_norm: bool = True,
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        self.detach_norm = check_bool("detach_norm", detach_norm)
        self.m = self.new_parameter(self.d_out)
        self.m.data.copy_(_row_norm(self.W0, self.m.dtype))

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        V = self.W0 + super().delta_weight()
        norm = _row_norm(V, self.m.dtype)
        gamma = self.m / _no_zero(norm.detach() if self.detach_norm else norm)
        return self.like_base(gamma)[:, None] * V - self.W0

    def norm(self) -> Float[Tensor, " {self.d_out}"]:
        """‖V‖ without V: the cross terms of ‖W0 + s B A‖² need products with r columns
        only.
        """
        return _RowNorm.apply(self.W0, self.A, self.B, self.scale)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        """γ multiplies x Vᵀ, V is never formed; y is kept for the gradient of γ (the
        next operation often keeps it too).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm):
            norm = self.norm()
        V = self.A, self.B, self.m / norm, self.scale
        if not (self.training and self.dropout):
            return _Scaled.apply(x, self.W0, self.bias, *V)
        dx = F.dropout(x, self.dropout, True)
        # y − b = W0 (x − d(x)) + γ (W0 + s B A) d(x)
        return F.linear(x - dx, self.W0) + _Scaled.apply(dx, self.W0, self.bias, *V)

    @classmethod
    def law(cls, dropout: float, grad: bool, **hyper: Any) -> Law:
        y = {"gVd(x)": "d_out"} if dropout else {"y": "d_out"}
        return Law(
            {"A": "r*d_in", "B": "d_out*r", "m": "d_out"},
            kept_input(dropout, grad) | {"Ax": "r"} | y,
            masters={"norm": "d_out", "m/norm": "d_out"},
        )


def _row_norm(V: Tensor, dtype: torch.dtype) -> Tensor:
    """‖V‖ row by row, summed in `dtype`: float32 at least."""
    return torch.linalg.vector_norm(V, dim=1, dtype=dtype)


def _no_zero(norm: Tensor) -> Tensor:
    """A row of zeros has no direction: with 1 for its norm it stays zero."""
    return torch.where(norm == 0, torch.ones_like(norm), norm)


class _RowNorm(torch.autograd.Function):
    """c = ‖W0 + s B A‖ row by row, from ‖W0‖² + 2 s ⟨W0 Aᵀ, B⟩ + s² ⟨B A Aᵀ, B⟩.

    Computed in the dtype of A and B; keeps c alone.
    """

    @staticmethod
    def forward(ctx: Any, W0: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        w = _row_norm(W0, B.dtype)
        cross = ((2 * s * (W0.to(A.dtype) @ A.T) + s * s * (B @ (A @ A.T))) * B).sum(1)
        c = (w * w + cross).clamp_min(0).sqrt()
        c = _no_zero(torch.where(cross == 0, w, c))  # B = 0 gives ‖W0‖ to the bit
        ctx.save_for_backward(W0, A, B, c)
        ctx.s = s
        return c

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, Tensor, None]:
        W0, A, B, c = ctx.saved_tensors
        s, W0, k = ctx.s, W0.to(A.dtype), (g / c)[:, None]  # ∂L/∂V = k V, row by row
        dB = s * k * (W0 @ A.T + s * B @ (A @ A.T))
        dA = s * ((k * B).T @ W0 + s * ((k * B).T @ B) @ A)
        return None, dA, dB, None


class _Scaled(torch.autograd.Function):
    """γ (x W0ᵀ + s x Aᵀ Bᵀ) + b. Keeps x, x Aᵀ, the output y and γ."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W0: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        gamma: Tensor,
        s: float,
    ) -> Tensor:
        h = F.linear(x, A.to(W0.dtype))
        p = F.linear(x, W0)
        p.view(-1, p.shape[-1]).addmm_(
            h.view(-1, h.shape[-1]).to(p.dtype), B.T.to(p.dtype), alpha=s
        )
        y = (
            p * gamma.to(p.dtype)
            if bias is None
            else torch.addcmul(bias.to(p.dtype), p, gamma.to(p.dtype))
        )
        # y gives p back, p = (y − b) / γ, unless some γ is zero
        ctx.from_y = bool((gamma != 0).all())
        ctx.save_for_backward(x, W0, bias, A, B, gamma, h, y if ctx.from_y else p)
        ctx.s = s
        return y

    @staticmethod
    @no_second_derivative
    def backward(
        ctx: Any, g: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor, Tensor, Tensor, None]:
        x0, W0, bias, A0, B0, gamma0, h, y = ctx.saved_tensors
        A, B, gamma = (t.to(g.dtype) for t in (A0, B0, gamma0))
        g, x, h, y = (t.reshape(-1, t.shape[-1]).to(g.dtype) for t in (g, x0, h, y))
        dgamma = (g * y).sum(0)
        if ctx.from_y:
            dgamma = (dgamma if bias is None else dgamma - bias * g.sum(0)) / gamma
        g = g * gamma
        dh = ctx.s * (g @ B)
        dx = (
            (g @ W0.to(g.dtype)).addmm_(dh, A).view(x0.shape).to(x0.dtype)
            if ctx.needs_input_grad[0]
            else None
        )
        return (
            dx,
            None,
            None,
            (dh.T @ x).to(A0.dtype),
            (ctx.s * (g.T @ h)).to(B0.dtype),
            dgamma.to(gamma0.dtype),
            None,
        )
