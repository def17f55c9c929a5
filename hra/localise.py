"""Where a subnet lies: the m rows and n columns of a matrix of scores whose block has
the largest sum.

The exact problem is NP-hard. Ties go to the smaller index: the same scores give the
same subnet everywhere.
"""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hra import masks
from hra.checks import check_choice

ORDERS = ("independent", "rows", "columns")
MOST = 10**6  # subsets of lines that `exact` tries

Subnet = tuple[Int[Tensor, " m"], Int[Tensor, " n"]]


def captured(
    score: Float[Tensor, "d_out d_in"], rows: Int[Tensor, " m"], cols: Int[Tensor, " n"]
) -> float:
    """The sum of the block."""
    return float(score[rows[:, None], cols].sum(dtype=torch.float64))


def greedy(score: Float[Tensor, "d_out d_in"], m: int, n: int, order: str) -> Subnet:
    """(rows, columns), each sorted, of the largest sums.

    order: "independent": both by their sums over the whole matrix; "rows": rows first,
    then columns by their sums over these rows; "columns": the other way round.
    """
    check_choice("order", order, ORDERS)
    if order == "columns":
        cols, rows = greedy(score.T, n, m, "rows")
        return rows, cols
    rows = masks.top(score.sum(1), m)
    inside = score[rows] if order == "rows" else score
    return rows, masks.top(inside.sum(0), n)


def refine(
    score: Float[Tensor, "d_out d_in"], rows: Int[Tensor, " m"], cols: Int[Tensor, " n"]
) -> Subnet:
    """The best columns for the rows, the best rows for those, and so on while the block
    gains.
    """
    m, n, most = len(rows), len(cols), captured(score, rows, cols)
    while True:
        new_cols = masks.top(score[rows].sum(0), n)
        new_rows = masks.top(score[:, new_cols].sum(1), m)
        now = captured(score, new_rows, new_cols)
        if not now > most:
            return rows, cols
        rows, cols, most = new_rows, new_cols, now


def best(score: Float[Tensor, "d_out d_in"], m: int, n: int) -> Subnet:
    """The best of the three greedy orders, refined. Raises ValueError for scores that
    are not finite, or more lines than there are.
    """
    found = [greedy(score, m, n, order) for order in ORDERS]
    return refine(score, *max(found, key=lambda s: captured(score, *s)))


def together(scores: list[Tensor], m: list[int], n: int) -> tuple[list[Tensor], Tensor]:
    """(rows of each, columns of all) for layers that read one input: columns of the
    largest sum over all layers, rows as `best` has them for these columns; greedy in
    both orders, the better one refined.
    """

    def rows_for(cols: Tensor) -> list[Tensor]:
        return [masks.top(S[:, cols].sum(1), k) for S, k in zip(scores, m, strict=True)]

    def cols_for(rows: list[Tensor]) -> Tensor:
        inside = [S[r].sum(0) for S, r in zip(scores, rows, strict=True)]
        return masks.top(torch.stack(inside).sum(0), n)

    def sum_of(found: tuple[list[Tensor], Tensor]) -> float:
        each = zip(scores, found[0], strict=True)
        return sum(captured(S, rows, found[1]) for S, rows in each)

    rows = [masks.top(S.sum(1), k) for S, k in zip(scores, m, strict=True)]
    cols = cols_for([torch.arange(len(S), device=S.device) for S in scores])
    found = max((rows, cols_for(rows)), (rows_for(cols), cols), key=sum_of)
    while True:
        cols = cols_for(found[0])
        now = rows_for(cols), cols
        if not sum_of(now) > sum_of(found):
            return found
        found = now


def exact(score: Float[Tensor, "d_out d_in"], m: int, n: int) -> Subnet:
    """The best of all, by trying every choice of the shorter side's lines. ValueError
    if there are more than a million.
    """
    if math.comb(score.shape[1], n) < math.comb(score.shape[0], m):
        cols, rows = exact(score.T, n, m)
        return rows, cols
    tries = math.comb(score.shape[0], m)
    if tries > MOST:
        raise ValueError(
            f"{tries:,} choices of {m} of {score.shape[0]} lines: exact tries up to "
            f"{MOST:,}. Use best."
        )
    most, found = -math.inf, None
    for chosen in itertools.combinations(range(score.shape[0]), m):
        rows = torch.tensor(chosen, device=score.device)
        cols = masks.top(score[rows].sum(0), n)
        now = captured(score, rows, cols)
        if now > most:
            most, found = now, (rows, cols)
    if found is None:
        raise ValueError(f"there are no {m} of {score.shape[0]} lines.")
    return found


def ceiling(score: Float[Tensor, "d_out d_in"], m: int, n: int) -> float:
    """No m × n block holds more, for scores of 0 or more: the m rows whose own n
    largest entries sum to most, or the same by columns, whichever is less.
    """

    def most(S: Tensor, m: int, n: int) -> float:
        own = S.double().topk(n, dim=1).values.sum(1)
        return float(own.topk(m).values.sum())

    return min(most(score, m, n), most(score.T, n, m))
