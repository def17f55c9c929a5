"""One task after another: what is measured of a sequence of tasks.

P[i, j] is the performance on task j once the tasks 0 … i have been trained in turn,
P0[j] that of a model trained on task j alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Task(NamedTuple):
    """One task of a sequence: what trains the model on it, and what it then scores,
    more being better.
    """

    name: str
    train: Callable[[], Any]
    score: Callable[[], float]


def sequence(
    tasks: Sequence[Task],
    ahead: bool = False,
    after: Callable[[int], Any] | None = None,
) -> Float[Tensor, "N N"]:
    """P: the tasks trained in turn, and after each the scores of all so far.

        tuned = hra.attach(model, hra.LoRA, targets, r=8)
        P = sequence([Task(name, partial(hra.fit, tuned, batches, 40), score), …])

    What is carried from one task to the next is up to `train`. One adapter trained on,
    as here, keeps its count of numbers and its file; with a fresh one for each task,
    merged before the next, the numbers and the rank of the whole change grow by the
    task. ahead: score the tasks to come too, else P is NaN above the diagonal. after:
    called with each task's place once it is trained and scored. Raises ValueError for
    no task, two of one name, or a score that is NaN or Inf, naming both tasks.
    """
    names = [t.name for t in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks of different names are needed; these are {names}.")
    P = torch.full((len(names), len(names)), float("nan"), dtype=torch.float64)
    for i, task in enumerate(tasks):
        task.train()
        for j, other in enumerate(tasks if ahead else tasks[: i + 1]):
            P[i, j] = float(other.score())
            if not torch.isfinite(P[i, j]):
                raise ValueError(
                    f"the score of {other.name!r} after {task.name!r} is {P[i, j]}."
                )
        if after:
            after(i)
    return P


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
