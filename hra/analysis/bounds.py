"""What the best approximation of low rank must leave out (Eckart & Young, 1936; Mirsky,
1960), how far the first step of a method moves an output, and how far the step of a
subnet falls short of a full one.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hra.analysis.rank import spectrum


def eckart_young(S: Float[Tensor, "m n"], r: int) -> tuple[float, float]:
    """(spectral, Frobenius) norm of S − X for the best X of rank at most r: σ_{r+1} and
    (Σ_{i>r} σ_i²)^½.

    Both are attained by `rank.truncate(S, r)`. Raises ValueError when r is not in 0 …
    min(m, n).
    """
    sigma = spectrum(S)
    if not 0 <= r <= len(sigma):
        raise ValueError(f"r={r} is out of range: 0 to min(m, n) = {len(sigma)}.")
    rest = sigma[r:]
    return (float(rest[0]), float(rest.norm())) if len(rest) else (0.0, 0.0)


def one_step(
    g: Float[Tensor, " m"],
    x: Float[Tensor, " n"],
    lr: float,
    *,
    A: Float[Tensor, "r n"] | None = None,
    scale: float = 1.0,
    mask: Bool[Tensor, "m n"] | None = None,
    adam: bool = False,
) -> Float[Tensor, " m"]:
    """Δy, the change of a layer's output for the input x by the first step on x alone;
    g = ∂L/∂y, so that ∂L/∂W = g xᵀ.

        LoRA, B = 0     SGD  −lr s² ‖A x‖² g           Adam  −lr s ‖A x‖₁ sign g
        sparse          SGD  −lr (M x²) ⊙ g            Adam  −lr (M |x|) ⊙ sign g
        all trained     SGD  −lr ‖x‖² g                Adam  −lr ‖x‖₁ sign g

    A: LoRA's, with its scale s; mask: M, the trained entries; neither: all of them.
    Adam's first step is the sign of the gradient (its ε is left out). The SGD row of
    LoRA is the argument of Kalajdzievski, 2023 (arXiv:2312.03732). Raises ValueError
    for both A and mask.
    """
    if A is not None and mask is not None:
        raise ValueError("give A (LoRA) or mask (a sparse adapter), not both.")
    seen = x.abs() if adam else x.square()
    if A is not None:
        h = A @ x
        reach = scale * h.abs().sum() if adam else scale**2 * h.square().sum()
    else:
        reach = seen.sum() if mask is None else mask.to(x) @ seen
    return -lr * reach * (g.sign() if adam else g)


def step_ratio(
    n: int,
    *,
    r: int | None = None,
    scale: float = 1.0,
    density: float = 1.0,
    adam: bool = False,
) -> float:
    """The first step of a method by that of full fine-tuning at the same rate, on the
    average over LoRA's start (variance 1 / 3n) or over random masks, for n inputs.

        LoRA     SGD  s² r / 3n      Adam  s r / (√3 n), for normal inputs and large n
        sparse   density, with both

    r: LoRA's rank; None: a sparse adapter of `density`. Raises ValueError for an n, r
    or density that no layer has.
    """
    if n < 1 or (r is not None and r < 1) or not 0 < density <= 1:
        raise ValueError(
            f"n={n}, r={r}, density={density}: n and r count from 1, and a density is "
            "above 0 and at most 1."
        )
    if r is None:
        return density
    return scale * r / (3**0.5 * n) if adam else scale**2 * r / (3 * n)


def losia(
    grad: Float[Tensor, "m n"],
    x: Float[Tensor, "M n"],
    kept: Bool[Tensor, "m n"],
    lr: float,
) -> tuple[float, float, float]:
    """How far a layer's outputs are apart after a step of SGD on all entries and one on
    the `kept` entries alone, from the same weight, at M inputs: with A the gradient on
    the entries that are not kept,

        1/M Σ ‖lr A x‖²  ≤  lr²/M ‖A‖₂² ‖x‖_F²  ≤  lr²/M ‖A‖_F² ‖x‖_F²

    as three numbers. The bound of LoSiA (Wang et al., 2025, arXiv:2507.04487) is the
    last one; the first ≤ is an = where every input is a leading right singular vector
    of A, the second where A has rank 1. One layer, one step, plain SGD, the same x.
    """
    A = torch.where(kept, 0.0, grad)
    scale, norm = lr**2 / len(x), float(x.square().sum())
    apart = scale * float((x @ A.T).square().sum())
    spectral = float(torch.linalg.matrix_norm(A, 2)) ** 2
    return apart, scale * spectral * norm, scale * float(A.square().sum()) * norm
