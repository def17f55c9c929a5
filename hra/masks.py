"""Which entries of a weight train: rules that turn a matrix, or its size alone, into a
sorted list of flat indices.

An index counts entries of the (d_out, d_in) matrix row by row: k = i · d_in + j. Every
rule is exact in its count, and ties between equal scores go to the smaller index, so
that the same input gives the same mask everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

RULES = ("struct", "rand", "weight", "grad", "snip")


def budget(
    d_out: int, d_in: int, density: float | None = None, count: int | None = None
) -> int:
    """K: `count` if given, else the nearest integer to density · d_out · d_in, at least
    1.
    """
    total = d_out * d_in
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(
                f"count={count!r} is a {type(count).__name__}; an integer from 1 to "
                f"{total} is needed."
            )
        if not 1 <= count <= total:
            raise ValueError(
                f"count={count} is out of range: 1 to {total} for a {d_out} × {d_in} "
                "layer."
            )
        return count
    if isinstance(density, bool) or not isinstance(density, int | float):
        raise TypeError(
            f"density={density!r} is a {type(density).__name__}; a number in (0, 1] "
            "is needed."
        )
    if not 0 < density <= 1:
        raise ValueError(f"density={density!r} is out of range: it must lie in (0, 1].")
    return max(1, round(density * total))


def like_lora(d_out: int, d_in: int, r: int) -> int:
    """The count that a LoRA of rank r trains: r (d_out + d_in)."""
    return r * (d_out + d_in)


def top(score: Tensor, count: int, offset: int = 0) -> Tensor:
    """The `count` largest entries of `score`, as a sorted index; with `offset` t, those
    of rank t count + 1 … (t + 1) count.
    """
    flat = score.detach().reshape(-1)
    if (offset + 1) * count > len(flat):
        raise ValueError(
            f"offset={offset} with {count} entries each goes beyond the {len(flat)} "
            "entries of the matrix."
        )
    if not torch.isfinite(flat).all():
        raise ValueError(
            "the scores hold NaN or Inf: the weights or gradients are not finite."
        )
    order = torch.sort(flat, descending=True, stable=True).indices[
        offset * count : (offset + 1) * count
    ]
    return order.sort().values


def top_of_all(
    scores: dict[str, Tensor],
    density: float | None = None,
    count: int | None = None,
    offset: int = 0,
) -> dict[str, Tensor]:
    """One ranking over all sites, for as many entries as they would have had one by
    one. Raises ValueError for a site left bare.
    """
    total = sum(budget(S.shape[0], S.shape[1], density, count) for S in scores.values())
    chosen = top(
        torch.cat([S.reshape(-1).float() for S in scores.values()]), total, offset
    )
    made, start = {}, 0
    for s, S in scores.items():
        made[s] = chosen[(chosen >= start) & (chosen < start + S.numel())] - start
        if not len(made[s]):
            raise ValueError(
                f"the global mask leaves {s} without an entry: raise the density, or "
                "leave that site out."
            )
        start += S.numel()
    return made


def erdos_renyi(shapes: dict[Any, tuple[int, int]], total: int) -> dict[Any, int]:
    """{name: count} for random masks of these matrices: in proportion to d_out + d_in,
    as Mocanu et al. (2018) thin a network's layers, none above d_out · d_in, `total`
    in all.
    """
    size = {n: a * b for n, (a, b) in shapes.items()}
    left, open_, share = total, dict(shapes), dict[Any, float]()
    while open_:
        each = left / sum(a + b for a, b in open_.values())
        full = [n for n, (a, b) in open_.items() if each * (a + b) >= size[n]]
        if not full:
            share |= {n: each * (a + b) for n, (a, b) in open_.items()}
            break
        for n in full:  # as many as it has; the others share what is left
            share[n], left = size[n], left - size[n]
            del open_[n]
    count = {n: int(s) for n, s in share.items()}
    rest = sorted(share, key=lambda n: count[n] - share[n])  # the largest fractions
    for n in rest[: total - sum(count.values())]:
        count[n] += 1
    return count


def given(scores: Any, W: Tensor, site: str, needs: str, how: str) -> Tensor:
    """A site's own of `scores`, (d_out, d_in): of a dict {site: scores}, of a function
    of (site, W), or the tensor itself for one layer. ValueError, in the words `needs`
    and `how`, for anything else.
    """
    found = scores
    if isinstance(scores, dict):
        found = scores.get(site)
    elif callable(scores):
        found = scores(site, W)
    if isinstance(found, Tensor) and found.shape == W.shape:
        return found.detach().to(W.device)
    got = tuple(found.shape) if isinstance(found, Tensor) else found
    raise ValueError(
        f"{needs} of shape {tuple(W.shape)} for {site or 'the layer'}, got "
        f"{'none' if isinstance(scores, dict) and found is None else got}: {how}."
    )


def rand(d_out: int, d_in: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` entries drawn without replacement."""
    return torch.randperm(d_out * d_in, generator=generator)[:count].sort().values


def bernoulli(
    d_out: int, d_in: int, density: float, generator: torch.Generator
) -> Tensor:
    """Every entry by itself with probability `density`, as the paper writes it; the
    count varies.
    """
    return (torch.rand(d_out * d_in, generator=generator) < density).nonzero()[:, 0]


def struct(
    d_out: int,
    d_in: int,
    every: int,
    axis: str = "row",
    offset: int = 0,
    diagonal: bool = True,
) -> Tensor:
    """Rows (or columns) offset, offset + every, …, and the main diagonal (Bhardwaj et
    al., 2024, App. B.1).
    """
    mask = torch.zeros(d_out, d_in, dtype=torch.bool)
    (mask if axis == "row" else mask.T)[offset::every] = True
    if diagonal:
        mask.fill_diagonal_(True)
    return mask.flatten().nonzero()[:, 0]


def frequency(
    d_out: int, d_in: int, density: float, axis: str = "row", diagonal: bool = True
) -> int:
    """The `every` of `struct` whose count comes nearest to the density from below, if
    any does.
    """
    lines, length = (d_out, d_in) if axis == "row" else (d_in, d_out)
    kept = (
        density * d_out * d_in - (min(d_out, d_in) if diagonal else 0)
    ) / length  # how many whole lines fit
    return min(lines, math.ceil(lines / max(1.0, kept)))


def check(index: Tensor, d_out: int, d_in: int, count: int | None = None) -> Tensor:
    """`index` if it is sorted, without repetition and within the matrix; ValueError if
    not.
    """
    if index.ndim != 1 or index.dtype != torch.int64 or not len(index):
        raise ValueError(
            f"an index is a non-empty vector of int64, not {tuple(index.shape)} of "
            f"{index.dtype}."
        )
    if count is not None and len(index) != count:
        raise ValueError(f"the index has {len(index)} entries instead of {count}.")
    if (
        index[0] < 0
        or index[-1] >= d_out * d_in
        or bool((index[1:] <= index[:-1]).any())
    ):
        raise ValueError(
            f"the index is not sorted, repeats an entry, or leaves the {d_out} × "
            f"{d_in} matrix."
        )
    return index
