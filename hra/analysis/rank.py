"""Singular values and what is left of a matrix when few of them are kept."""

import torch
from jaxtyping import Float
from torch import Tensor

from hra.checks import optional


def spectrum(S: Float[Tensor, "m n"]) -> Float[Tensor, " k"]:
    """The singular values σ₁ ≥ σ₂ ≥ …, k = min(m, n), computed in float64."""
    return torch.linalg.svdvals(S.detach().double())


def truncate(S: Float[Tensor, "m n"], r: int) -> Float[Tensor, "m n"]:
    """The best approximation of rank at most r in every unitarily invariant norm
    (Eckart & Young, 1936).
    """
    top = min(S.shape)
    if not 0 <= r <= top:
        raise ValueError(f"r={r} is out of range: 0 to min(m, n) = {top}.")
    U, s, Vh = torch.linalg.svd(S.detach().double(), full_matrices=False)
    return ((U[:, :r] * s[:r]) @ Vh[:r]).to(S.dtype)


def captured(S: Float[Tensor, "m n"]) -> Float[Tensor, " k"]:
    """Share of ‖S‖_F² that the best rank-r approximation holds, r = 1 … min(m, n)."""
    energy = spectrum(S).square().cumsum(0)
    return energy / energy[-1] if energy[-1] > 0 else torch.ones_like(energy)


def count_above(S: Float[Tensor, "m n"], threshold: float) -> int:
    """How many singular values exceed `threshold`."""
    return int((spectrum(S) > threshold).sum())


def structural_rank(mask: Tensor) -> int:
    """The largest rank that a matrix (m, n) with this support can have: a maximum
    matching of rows and columns.

    Values drawn from any density reach it with probability 1. `mask` is boolean, or any
    matrix whose non-zeros are the support. Needs scipy (hra[viz]).
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask is a matrix, not of shape {tuple(mask.shape)}.")
    sparse = optional("scipy.sparse", "viz")
    graph = optional("scipy.sparse.csgraph", "viz")
    support = sparse.csr_matrix((mask.detach() != 0).cpu().numpy())
    return int(graph.structural_rank(support))
