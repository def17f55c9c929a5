"""Frozen random bases that a seed gives back: drawn in fp32 on the CPU, so that every
device and dtype has the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def draws(
    seed: int, count: int, shape: tuple[int, int], bound: float
) -> Iterator[Tensor]:
    """`count` matrices of `shape`, uniform in ±bound, one at a time: never more than
    one is alive.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        draw = torch.empty(shape, dtype=torch.float32)
        yield draw.uniform_(-bound, bound, generator=generator)


class Combination(torch.autograd.Function):
    """Σ_i c_i Θ_i over seeded bases Θ_i, c: (count,), in `dtype` or c's own.

    ∂L/∂c_i = ⟨∂L/∂sum, Θ_i⟩, the bases drawn again. Keeps nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        c: Tensor,
        seed: int,
        shape: tuple[int, int],
        bound: float,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        ctx.bases, ctx.like = (seed, len(c), shape, bound), (c.dtype, c.device)
        total = c.new_zeros(shape)
        for weight, basis in zip(c, draws(*ctx.bases), strict=True):
            total += weight * basis.to(c)
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        dtype, device = ctx.like
        g = g.to(dtype)
        parts = [(g * basis.to(g)).sum() for basis in draws(*ctx.bases)]
        return torch.stack(parts).to(device), None, None, None, None
