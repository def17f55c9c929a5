"""One task after another: what is measured of a sequence of tasks.

P[i, j] is the performance on task j once the tasks 0 … i have been trained in turn,
P0[j] that of a model trained on task j alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Metrics(NamedTuple):
    """AP, FWT and BWT; see `metrics`."""

    AP: float
    FWT: float
    BWT: float


def metrics(P: Float[Tensor, "N N"], P0: Float[Tensor, " N"]) -> Metrics:
    """Of N tasks, more being better:

        AP   1/N Σ_i P[N−1, i]                       average performance at the end
        FWT  1/N Σ_i (P[i, i] − P0[i])               forward transfer
        BWT  1/(N−1) Σ_{i<N−1} (P[N−1, i] − P[i, i])   backward transfer

    as LoSiA's paper has them (Wang et al., 2025, arXiv:2507.04487), tasks counted from
    0. Forward transfer is above 0 where earlier tasks help a later one; backward
    transfer is below 0 where later ones make it forget. What lies above the diagonal, a
    task before it is trained, is not used and may be NaN. Raises ValueError for fewer
    than two tasks, for shapes that are not (N, N) and (N,), for NaN or Inf.
    """
    N = len(P0)
    if P0.shape != (N,) or P.shape != (N, N) or N < 2:
        raise ValueError(
            f"P is {tuple(P.shape)} and P0 {tuple(P0.shape)}: (N, N) and (N,) are "
            "needed, for at least two tasks."
        )
    P, P0 = P.double(), P0.double()
    own, last = P.diagonal(), P[-1]
    if not torch.isfinite(torch.cat([own, last, P0])).all():
        raise ValueError("the performances hold NaN or Inf.")
    return Metrics(
        float(last.mean()), float((own - P0).mean()), float((last - own)[:-1].mean())
    )
