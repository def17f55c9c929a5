"""LT-SFT: Lottery-Ticket Sparse Fine-Tuning.  Ansell et al., 2022.  arXiv:2110.07560

    W = W0 + S    S: (d_out, d_in), zero outside the K entries of the largest |W1 − W0|

W1: the weights after a first, full fine-tuning. Then everything is rewound to W0 and
the entries that moved farthest train alone, from zero. All layers are ranked together.

    full = hra.attach(model, hra.FullFT, targets=...)       # first run, then
    moved = {s: a.delta_weight().detach() for s, a in full.adapters.items()}
    tuned = hra.attach(full.detach(), hra.LTSFT, targets=..., scores=moved)

In n iterations, of K / n entries each: the next full run begins with what the last one
has learnt, and `before` keeps those entries, with their values, beside the new ones.

    kept = {s: a.entries() for s, a in tuned.adapters.items()}
    model = tuned.detach()                                  # W0 again
    full = hra.attach(learnt, hra.FullFT, targets=...)      # learnt: a merged copy
    tuned = hra.attach(model, hra.LTSFT, targets=..., scores=moved, before=kept)

Such changes are composed by adding them (a task's and a language's): `hra.fuse`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hra import linear, masks
from hra.entries import Ranked

Kept = tuple[Tensor, Tensor]


class LTSFT(Ranked):
    """Trains the share `density` of all entries. scores: W1 − W0. before: {site: (flat
    index, values)} of an earlier iteration, `entries()`; its entries train too.

    Raises ValueError where nothing has moved, and for a site that the ranking leaves
    bare.
    """

    data = ("scores", "before")
    needs = "the change W1 − W0 of a first, full run"
    how = "pass scores={s: a.delta_weight().detach() for s, a in full.adapters.items()}"

    def __init__(
        self,
        base: nn.Module,
        scores: Any = None,
        density: float = 0.01,
        count: int | None = None,
        before: dict[str, Kept] | None = None,
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(
            base, scores, density, count, shared=shared, seed=seed, site=site
        )
        kept = (before or {}).get(site)
        if kept is None:
            return
        if shared is None:
            S, K = self.score(scores, self.W0, site), len(self.index)
            self.hold(with_(masks.top(beside(S, kept), K), kept))
        index, values = (t.to(self.index.device) for t in kept)
        at = torch.searchsorted(self.index, index)
        self.values.data[at] = values.to(self.values)

    @classmethod
    def score(cls, scores: Any, W: Tensor, site: str) -> Tensor:
        change = super().score(scores, W, site).abs()
        if not change.is_meta and not change.any():
            raise ValueError(
                f"the first run has not moved {site or 'the layer'}: zeros have no "
                f"ranking. Train FullFT first, then {cls.how}."
            )
        return change

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        before = hyper["before"]
        if not before:
            return super().plan(sites, **hyper)
        made = {s: dict(hyper, site=s, scores=None) for s in sites}
        found = {}
        for s, layer in sites.items():
            S = cls.score(hyper["scores"], linear.weight(layer), s)
            found[s] = beside(S, before.get(s))
        ranked = masks.top_of_all(found, hyper["density"], hyper["count"])
        for s, index in ranked.items():
            made[s]["shared"] = with_(index, before.get(s))
        return made


def beside(S: Tensor, kept: Kept | None) -> Tensor:
    """The scores, those of entries that train already below all others."""
    if kept is None:
        return S
    masks.check(kept[0], *S.shape)
    S = S.clone()
    S.view(-1)[kept[0].to(S.device)] = -1.0
    return S


def with_(index: Tensor, kept: Kept | None) -> Tensor:
    """Both masks in one."""
    if kept is None:
        return index
    return torch.cat([index, kept[0].to(index)]).unique()
