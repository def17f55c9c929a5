"""VeRA: vectors on a shared random pair.  Kopiczko et al., 2023.  arXiv:2310.11454

    ΔW = Λ_b B Λ_d A    A: (r, d_in), B: (d_out, r)   b: (d_out,)   d: (r,)     (eq. 2)

A and B are frozen, one pair for all sites.

A and B are drawn once, for the largest layer, and every site takes their first d_in
columns and d_out rows. Kaiming-uniform (variance 2 / fan-in). b starts at zero, d at
`d_init`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra import linear
from hra.adapter import Adapter, generator, uniform
from hra.checks import check_count, check_number, no_second_derivative
from hra.law import Law


class Pair(nn.Module):
    """The frozen A (r, d_in) and B (d_out, r); a module of its own, so that it moves
    once and is shared for good.
    """

    A: Tensor
    B: Tensor

    def __init__(self, r: int, d_out: int, d_in: int, seed: int, like: Tensor) -> None:
        super().__init__()
        for name, shape in (("A", (r, d_in)), ("B", (d_out, r))):
            draws = generator(seed, what=f"VeRA {name}")
            draw = uniform(shape, (6 / shape[1]) ** 0.5, draws)
            self.register_buffer(name, draw.to(like), persistent=False)


class VeRA(Adapter):
    """Trains d_out + r numbers; r may exceed d_out and d_in. Raises TypeError or
    ValueError for r below 1 or d_init = 0.
    """

    family = "low rank"
    b: Float[Tensor, " d_out"]
    d: Float[Tensor, " r"]

    def __init__(
        self,
        base: nn.Module,
        r: int = 256,
        d_init: float = 0.1,
        *,
        shared: Pair | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.r = check_count("r", r)
        check_number("d_init", d_init, float("-inf"), float("inf"))
        if d_init == 0:
            raise ValueError(
                "d_init=0 would leave both gradients at zero for ever; the paper uses "
                "0.1."
            )
        self.pair = shared or Pair(r, self.d_out, self.d_in, seed, self.W0)
        self.b = self.new_parameter(self.d_out)
        self.d = self.new_parameter(r)
        nn.init.constant_(self.d, d_init)

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """One pair for all sites, as large as the largest of them needs."""
        W = [linear.weight(layer) for layer in sites.values()]
        d_out, d_in = max(w.shape[0] for w in W), max(w.shape[1] for w in W)
        pair = Pair(check_count("r", hyper["r"]), d_out, d_in, hyper["seed"], W[0])
        return {name: dict(hyper, site=name, shared=pair) for name in sites}

    @property
    def A(self) -> Float[Tensor, "r {self.d_in}"]:
        return self.pair.A[:, : self.d_in]

    @property
    def B(self) -> Float[Tensor, "{self.d_out} r"]:
        return self.pair.B[: self.d_out]

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        b, d = self.like_base(self.b), self.like_base(self.d)
        return b[:, None] * (self.B @ (d[:, None] * self.A))

    def drawn(self) -> dict[str, Tensor]:
        return {"A": self.A, "B": self.B}

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        """Keeps x Aᵀ, r numbers a token, or x itself where that is no more; B Λ_d A x,
        d_out numbers, is never needed again.
        """
        return _Vectors.apply(
            x,
            self.base.weight,
            linear.is_conv1d(self.base),
            self.bias,
            self.A,
            self.B,
            self.b,
            self.d,
        )

    @classmethod
    def law(cls, r: int, d_in: int = 10**9, **hyper: Any) -> Law:
        """x is kept in place of x Aᵀ where it is no longer."""
        token = {"x": "d_in"} if d_in <= r else {"Ax": "min(r, d_in)"}
        return Law(
            {"b": "d_out", "d": "r"},
            token,
            frozen={"A": "r*d_in", "B": "d_out*r"},
            shared=("A", "B"),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.r}"


class _Vectors(torch.autograd.Function):
    """x W0ᵀ + b ⊙ ((d ⊙ x Aᵀ) Bᵀ) + bias. Keeps h = x Aᵀ or x. With P = gᵀ h: ∂b =
    rowsum(P Λ_d ⊙ B), ∂d = colsum(Λ_b P ⊙ B).

    One product B Λ_d A takes the place of thin ones over all tokens where it costs
    less; both cost r times what stands here:

        d_in ≤ r   keeps x, of d_in numbers    d_out·d_in < tokens·(d_out + d_in)
        d_in > r   keeps x Aᵀ, of r numbers    d_out·d_in < tokens·d_out
                   (x Aᵀ is needed anyway)
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stored: Tensor,
        transposed: bool,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        b: Tensor,
        d: Tensor,
    ) -> Tensor:
        W0 = stored.T if transposed else stored
        m, n = W0.shape
        tokens, keeps_x = x.numel() // n, n <= len(d)
        dense = m * n < tokens * (m + n * keeps_x)
        h = x if dense and keeps_x else F.linear(x, A)
        ctx.save_for_backward(stored, A, B, b, d, x if keeps_x else h)
        b, d = b.to(stored.dtype), d.to(stored.dtype)
        ctx.setting = transposed, keeps_x, x.dtype
        if dense:
            return F.linear(x, _adapted(stored, transposed, A, B, b, d), bias)
        y = F.linear(x, W0, bias)
        y.view(-1, y.shape[-1]).addmm_(
            (h * d.to(y.dtype)).view(-1, len(d)), (b[:, None] * B).T.to(y.dtype)
        )
        return y

    @staticmethod
    @no_second_derivative
    def backward(
        ctx: Any, g: Tensor
    ) -> tuple[Tensor | None, None, None, None, None, None, Tensor, Tensor]:
        kept = ctx.saved_tensors
        stored, A, B, b, d, h = (t.to(g.dtype) for t in kept)
        transposed, keeps_x, dtype = ctx.setting
        rows, h = g.reshape(-1, g.shape[-1]), h.reshape(-1, h.shape[-1])
        P = ((rows.T @ h) @ A.T if keeps_x else rows.T @ h) * B
        dx = None
        if ctx.needs_input_grad[0]:
            if B.shape[0] * A.shape[1] < len(rows) * (B.shape[0] + A.shape[1]):
                dx = rows @ _adapted(stored, transposed, A, B, b, d)
            else:
                dx = (rows @ (stored.T if transposed else stored)).addmm_(
                    (rows @ (b[:, None] * B)) * d, A
                )
            dx = dx.view(*g.shape[:-1], -1).to(dtype)
        return (
            dx,
            None,
            None,
            None,
            None,
            None,
            (P @ d).to(kept[3].dtype),
            (b @ P).to(kept[4].dtype),
        )


def _adapted(
    stored: Tensor, transposed: bool, A: Tensor, B: Tensor, b: Tensor, d: Tensor
) -> Tensor:
    """W0 + Λ_b B Λ_d A, (d_out, d_in), made in the layout in which W0 is stored."""
    left, right = b[:, None] * B, d[:, None] * A
    return (
        torch.addmm(stored, right.T, left.T).T
        if transposed
        else torch.addmm(stored, left, right)
    )
