"""FISH: the fixed sparse mask of the largest Fisher information.  Sung, Nair & Raffel,
2021.  arXiv:2111.09839

    W = W0 + S    S: (d_out, d_in), zero outside the K entries of the largest F̂
    F̂ = mean over x of (∂ log p(y | x) / ∂W)²    F̂: (d_out, d_in)             (eq. 6)

The squares are taken example by example, before the mean; `hra.fisher` computes F̂ with
the labels, or in expectation over the model's own. All layers are ranked together.
S starts at zero.

A classifier that is new trains in full (`also=`) and counts in the paper's budget:
lower `density` by its share.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hra.entries import Ranked


class FISH(Ranked):
    """Trains the share `density` of all entries. scores: as `hra.fisher` gives them.

    Raises ValueError for scores below zero, which are no mean of squares, and for a
    site that the ranking leaves bare.
    """

    needs = "Fisher's information"
    how = "pass scores=hra.fisher(model, batches, targets=...)"

    @classmethod
    def score(cls, scores: Any, W: Tensor, site: str) -> Tensor:
        F = super().score(scores, W, site)
        if not F.is_meta and bool((F < 0).any()):
            raise ValueError(
                f"the scores of {site or 'the layer'} go below zero: Fisher's "
                f"information is a mean of squares. If they are gradients, {cls.how}."
            )
        return F
