"""How much two subspaces share, and how much a change amplifies what is there.  Hu et
al., 2021, §7.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def similarity(
    A: Float[Tensor, "r1 d"], B: Float[Tensor, "r2 d"], i: int, j: int
) -> float:
    """φ = ‖V_A^{iᵀ} V_B^j‖_F² / min(i, j), in [0, 1]  (§7.2, eq. 4).

    V^i: the first i right singular vectors.

    For two independent uniform subspaces of R^d its expectation is max(i, j) / d.
    Raises ValueError when i or j exceeds the number of singular vectors.
    """
    if A.shape[1] != B.shape[1]:
        raise ValueError(
            f"A has {A.shape[1]} columns, B has {B.shape[1]}: the subspaces are not "
            "of one space."
        )
    for name, k, M in (("i", i, A), ("j", j, B)):
        if not 1 <= k <= min(M.shape):
            raise ValueError(f"{name}={k} is out of range: 1 to {min(M.shape)}.")
    VA = torch.linalg.svd(A.detach().double(), full_matrices=False).Vh[:i]
    VB = torch.linalg.svd(B.detach().double(), full_matrices=False).Vh[:j]
    return float((VA @ VB.T).square().sum() / min(i, j))


def amplification(
    delta: Float[Tensor, "m n"], W: Float[Tensor, "m n"], r: int
) -> float:
    """‖ΔW‖_F / ‖Uᵀ W V‖_F, U and V the first r singular vectors of ΔW (§7.3): how much
    ΔW amplifies its own directions.
    """
    if not 1 <= r <= min(delta.shape):
        raise ValueError(f"r={r} is out of range: 1 to {min(delta.shape)}.")
    U, _, Vh = torch.linalg.svd(delta.detach().double(), full_matrices=False)
    inside = U[:, :r].T @ W.detach().double() @ Vh[:r].T
    return float(delta.detach().double().norm() / inside.norm())


def resemblance(
    W0: Float[Tensor, "m n"], W: Float[Tensor, "m n"], top: int
) -> Float[Tensor, " top"]:
    """For each of the `top` leading left singular vectors u of W, max_i |cos(u, u_i⁰)|
    over all left singular vectors u_i⁰ of W0 (those with a singular value above
    rounding), in [0, 1]: 1 means that u was there before. Where it is below a threshold
    Shuttleworth et al., 2024, arXiv:2410.21228, Definition 1, call u an intruder
    dimension.

    A basis of its own is never resembled by chance: in R^m a random direction has
    cosines near m^-½. Raises ValueError when `top` is not in 1 … min(m, n).
    """
    if W0.shape != W.shape:
        raise ValueError(f"W0 is {tuple(W0.shape)}, W is {tuple(W.shape)}.")
    if not 1 <= top <= min(W.shape):
        raise ValueError(f"top={top} is out of range: 1 to {min(W.shape)}.")
    U0, s0, _ = torch.linalg.svd(W0.detach().double(), full_matrices=False)
    U0 = U0[:, s0 > s0[0] * max(W0.shape) * torch.finfo(torch.float64).eps]
    U = torch.linalg.svd(W.detach().double(), full_matrices=False).U[:, :top]
    return (U0.T @ U).abs().amax(0)
