"""LT-SFT: Lottery-Ticket Sparse Fine-Tuning.  Ansell et al., 2022.  arXiv:2110.07560

    W = W0 + S    S: (d_out, d_in), zero outside the K entries of the largest |W1 − W0|

W1: the weights after a first, full fine-tuning. Then everything is rewound to W0 and
the entries that moved farthest train alone, from zero. All layers are ranked together.

    full = hra.attach(model, hra.FullFT, targets=...)       # first run, then
    moved = {s: a.delta_weight().detach() for s, a in full.adapters.items()}
    tuned = hra.attach(full.detach(), hra.LTSFT, targets=..., scores=moved)

Such changes are composed by adding them (a task's and a language's): `hra.fuse`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hra.entries import Ranked


class LTSFT(Ranked):
    """Trains the share `density` of all entries. scores: W1 − W0.

    Raises ValueError where nothing has moved, and for a site that the ranking leaves
    bare.
    """

    needs = "the change W1 − W0 of a first, full run"
    how = "pass scores={s: a.delta_weight().detach() for s, a in full.adapters.items()}"

    @classmethod
    def score(cls, scores: Any, W: Tensor, site: str) -> Tensor:
        change = super().score(scores, W, site).abs()
        if not change.is_meta and not change.any():
            raise ValueError(
                f"the first run has not moved {site or 'the layer'}: zeros have no "
                f"ranking. Train FullFT first, then {cls.how}."
            )
        return change
