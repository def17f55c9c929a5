"""Which rows and columns of a matrix of scores an order of choosing takes, what their
block holds, and what the best one holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra import localise
from hra.viz.static import StaticWidget, check

SIDE, MOST, SCALE = 48, 12_870, 9999  # of a matrix; choices that exact tries; whole
ORDERS = {
    "independent": "rows and columns each by itself",
    "rows": "rows first",
    "columns": "columns first",
    "refined": "the best of the three, refined",
    "exact": "the best of all",
}


class SubnetExplorer(StaticWidget):
    """The block that an order picks of a matrix of scores, m of d rows and n of k
    columns; m = ⌊p d⌋ and n = ⌊p k⌋, 1 at least, and p = `sixteenths` / 16.

    scores: {name: matrix}, entries of 0 or more, up to 48 × 48; whole numbers to 9999
    are kept, others scaled to that. order: a name of `ORDERS`; "exact" stays unsaid
    where it would try more than 12,870 choices. Raises ValueError for other matrices,
    and for names and numbers that there are not.
    """

    _js_path = Path(__file__).with_name("subnet.js")
    scores: Any = traitlets.Dict().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    order = traitlets.Unicode("refined").tag(sync=True)
    sixteenths = traitlets.Int(2).tag(sync=True)

    def __init__(self, scores: Mapping[str, Tensor], **kwargs: Any) -> None:
        whole = {name: _whole(name, S) for name, S in scores.items()}
        if not whole:
            raise ValueError("give at least one matrix of scores.")
        kwargs.setdefault("title", "Which subnet holds most of the score")
        kwargs.setdefault(
            "caption",
            "Choose an order and drag p. Question: which order comes nearest to the "
            "best, and how far is each from what as many random entries hold?",
        )
        kwargs.setdefault("alt", "A matrix of scores with the chosen block marked")
        kwargs.setdefault("name", next(iter(whole)))
        super().__init__(scores=whole, **kwargs)

    @traitlets.validate("name")
    def _check_name(self, proposal: Any) -> str:
        return check(proposal, self.scores) if self.scores else proposal["value"]

    @traitlets.validate("order")
    def _check_order(self, proposal: Any) -> str:
        return check(proposal, ORDERS)

    @traitlets.validate("sixteenths")
    def _check_sixteenths(self, proposal: Any) -> int:
        return check(proposal, 1, 16)

    def facts(self) -> dict[str, Any]:
        """m and n; `rows` and `cols` of the order that is shown; of every order the
        share of the score that its block `holds` (exact: None where it is not tried);
        no block holds more than the `ceiling`; `chance`, what mn random entries hold.
        """
        S = torch.tensor(self.scores[self.name], dtype=torch.float64)
        d, k = S.shape
        m, n = (max(1, self.sixteenths * side // 16) for side in (d, k))
        found: dict[str, Any] = {
            o: localise.greedy(S, m, n, o) for o in list(ORDERS)[:3]
        }
        found["refined"] = localise.best(S, m, n)
        tries = min(math.comb(d, m), math.comb(k, n))
        found["exact"] = localise.exact(S, m, n) if tries <= MOST else None
        total = float(S.sum())
        holds = {o: f and localise.captured(S, *f) / total for o, f in found.items()}
        rows, cols = found[self.order] or found["refined"]
        return {
            "m": m,
            "n": n,
            "rows": rows.tolist(),
            "cols": cols.tolist(),
            "holds": holds,
            "ceiling": localise.ceiling(S, m, n) / total,
            "chance": m * n / (d * k),
        }

    def summary(self) -> str:
        f = self.facts()
        order = self.order if f["holds"][self.order] is not None else "refined"
        return (
            f"{self.name}, {f['m']} × {f['n']}, {ORDERS[order]}: "
            f"{f['holds'][order]:.1%} of the score, by chance {f['chance']:.1%}"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        f = self.facts()
        fig, (left, right) = figure(
            7.5, 3.2, 2, caption=self.caption or self.alt, alt=self.summary()
        )
        S = torch.tensor(self.scores[self.name], dtype=torch.float64)
        chosen = torch.zeros_like(S)
        chosen[torch.tensor(f["rows"])[:, None], torch.tensor(f["cols"])] = 1
        left.imshow(S.sqrt(), cmap="Greys", aspect="auto")
        left.imshow(
            S.sqrt(), cmap="Purples", alpha=chosen.numpy(), aspect="auto", vmin=0
        )
        left.grid(False)
        left.set(xlabel="input", ylabel="output", title=f"{f['m']} × {f['n']} chosen")
        held = {o: v for o, v in f["holds"].items() if v is not None}
        right.barh(list(held), list(held.values()), color=FAMILIES["subnet"])
        right.axvline(f["chance"], color=INK, linestyle=":")
        right.invert_yaxis()
        right.set(xlabel="share of the score; dotted: by chance")
        return fig


def _whole(name: str, S: Tensor) -> list[list[int]]:
    S = S.detach().cpu().double()
    if S.ndim != 2 or not 2 <= min(S.shape) <= max(S.shape) <= SIDE:
        raise ValueError(
            f"{name}: {tuple(S.shape)}; a matrix of 2 × 2 to {SIDE} × {SIDE} is needed."
        )
    if not (torch.isfinite(S).all() and (S >= 0).all() and S.any()):
        raise ValueError(f"{name}: scores are finite, 0 or more, and not all 0.")
    if S.max() > SCALE or not torch.equal(S, S.round()):
        S = (S * (SCALE / S.max())).round()
    return [[int(v) for v in row] for row in S]
