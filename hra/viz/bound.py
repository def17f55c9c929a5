"""How far the outputs are apart after a step of SGD on a subnet and one on all entries,
beside the two bounds: a slider over p, and four ways to choose the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra import localise
from hra.methods.losia import sides
from hra.viz.static import StaticWidget, check

ORDERS = ("rows first", "columns first", "refined", "random")
PARTS, SIDE = 32, 40  # p = at / PARTS; the page decomposes a matrix itself
LABELS = {
    "apart": "true distance",
    "spectral": "spectral bound",
    "frobenius": "Frobenius bound",
}


class BoundExplorer(StaticWidget):
    """`cases`: {name: (gradient (m, n), inputs (M, n))}. Keep the block of ⌊p m⌋ rows
    and ⌊p n⌋ columns that an order of choosing finds in the squared gradient, p = `at`
    / 32: the true distance of the outputs, and `bounds.losia`'s spectral and Frobenius
    bound, as shares of the Frobenius bound with nothing kept.

    The page gets the gradient and the inputs' second moments, rounded.
    """

    _js_path = Path(__file__).with_name("bound.js")
    # name -> grad and second moments, row by row, shape, rows and columns at random
    matrices: Any = traitlets.Dict().tag(sync=True)
    case = traitlets.Unicode().tag(sync=True)
    order = traitlets.Unicode("refined").tag(sync=True)
    at = traitlets.Int(4).tag(sync=True)

    def __init__(
        self,
        cases: Mapping[str, tuple[Tensor, Tensor]],
        case: str = "",
        *,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not cases:
            raise ValueError("give at least one case: {name: (gradient, inputs)}.")
        for name, (G, x) in cases.items():
            if G.ndim != 2 or not 1 <= min(G.shape) <= max(G.shape) <= SIDE:
                raise ValueError(
                    f"the gradient of {name} is {tuple(G.shape)}; a matrix of 1 to "
                    f"{SIDE} rows and columns is needed."
                )
            if x.ndim != 2 or x.shape[1] != G.shape[1]:
                raise ValueError(
                    f"the inputs of {name} are {tuple(x.shape)}; they need a row each "
                    f"and {G.shape[1]} columns."
                )
            if not (torch.isfinite(G).all() and G.any() and torch.isfinite(x).all()):
                raise ValueError(f"{name} holds NaN or Inf, or a gradient of zero.")
        kwargs.setdefault("title", "The distance and its bounds")
        kwargs.setdefault(
            "caption",
            "Drag p and change how the block is chosen: watch the bars, and how much "
            "of the Frobenius bound the true distance is.",
        )
        kwargs.setdefault(
            "alt",
            "A gradient with the kept block marked; bars: the true distance of the "
            "outputs, the spectral bound, the Frobenius bound",
        )
        super().__init__(
            matrices={k: _packed(G, x, seed) for k, (G, x) in cases.items()},
            case=case or next(iter(cases)),
            **kwargs,
        )

    @traitlets.validate("case")
    def _check_case(self, proposal: Any) -> str:
        return check(proposal, self.matrices) if self.matrices else proposal["value"]

    @traitlets.validate("order")
    def _check_order(self, proposal: Any) -> str:
        return check(proposal, ORDERS)

    @traitlets.validate("at")
    def _check_at(self, proposal: Any) -> int:
        return check(proposal, 0, PARTS)

    def grad(self) -> Tensor:
        one = self.matrices[self.case]
        return torch.tensor(one["grad"], dtype=torch.float64).view(one["shape"])

    def block(self) -> tuple[list[int], list[int]]:
        """Its rows and columns."""
        G, one = self.grad(), self.matrices[self.case]
        m, n = sides(self.at / PARTS, *G.shape) if self.at else (0, 0)
        if not (m and n):
            return [], []
        if self.order == "random":
            return sorted(one["rows"][:m]), sorted(one["cols"][:n])
        score = G.square()
        if self.order == "refined":
            rows, cols = localise.best(score, m, n)
        else:
            rows, cols = localise.greedy(score, m, n, self.order.split()[0])
        return rows.tolist(), cols.tolist()

    def facts(self) -> dict[str, Any]:
        """The block; the share of ‖G‖² in it; the three numbers."""
        G, one = self.grad(), self.matrices[self.case]
        rows, cols = self.block()
        kept = torch.zeros(G.shape, dtype=torch.bool)
        kept[torch.tensor(rows, dtype=torch.long)[:, None], cols] = True
        A, C = torch.where(kept, 0.0, G), torch.tensor(one["second"]).double()
        C = C.view(G.shape[1], -1)
        energy = float(G.square().sum())
        unit = energy * float(C.trace())  # the Frobenius bound with nothing kept
        left = float(A.square().sum())
        return {
            "rows": rows,
            "cols": cols,
            "kept": 1 - left / energy,
            "apart": float(((A @ C) * A).sum()) / unit,
            "spectral": float(torch.linalg.matrix_norm(A, 2)) ** 2 / energy,
            "frobenius": left / energy,
        }

    def summary(self) -> str:
        f = self.facts()
        of = f"{f['apart'] / f['frobenius']:.0%}" if f["frobenius"] else "nothing"
        return (
            f"{self.case}, {self.order}: {len(f['rows'])} rows and {len(f['cols'])} "
            f"columns hold {f['kept']:.0%} of the squared gradient; the distance is "
            f"{of} of the Frobenius bound"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, figure

        f, G = self.facts(), self.grad()
        fig, (left, right) = figure(
            8.0, 3.0, 2, caption=self.caption or self.alt, alt=self.summary()
        )
        kept = torch.zeros_like(G)
        kept[torch.tensor(f["rows"], dtype=torch.long)[:, None], f["cols"]] = 1
        left.imshow(G.abs(), cmap="Greys", vmax=float(G.abs().quantile(0.98)))
        left.imshow(kept, cmap="Purples", vmin=0, vmax=1, alpha=0.6 * kept)
        left.grid(False)
        left.set(xlabel="input j", ylabel="output i", title="|G|, the block in purple")
        names = list(LABELS)[::-1]
        right.barh(
            [LABELS[k] for k in names], [f[k] for k in names], color=FAMILIES["subnet"]
        )
        right.set(xlim=(0, 1), xlabel="share of the Frobenius bound, nothing kept")
        return fig


def _packed(G: Tensor, x: Tensor, seed: int) -> dict[str, Any]:
    G, x = G.detach().cpu().double(), x.detach().cpu().double()
    C, g = x.T @ x / len(x), torch.Generator().manual_seed(seed)
    short = lambda M: [float(f"{v:.5g}") for v in M.flatten().tolist()]  # noqa: E731
    rows, cols = (torch.randperm(d, generator=g).tolist() for d in G.shape)
    return {
        "grad": short(G),
        "second": short(C),
        "shape": list(G.shape),
        "rows": rows,
        "cols": cols,
    }


def excerpt(G: Tensor, x: Tensor, side: int = 32) -> tuple[Tensor, Tensor]:
    """`side` evenly spaced rows and columns of a gradient, and the inputs there."""
    rows, cols = (
        torch.linspace(0, d - 1, min(side, d)).round().long() for d in G.shape
    )
    return G[rows[:, None], cols], x[:, cols]
