"""The matrix of a sequence of tasks, task by task: what is known of each so far, and
AP, FWT and BWT up to there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra import continual
from hra.viz.static import StaticWidget, check


class ForgettingMatrix(StaticWidget):
    """P[i, j], the performance on task j after task i, for one method beside others.

    tasks: their names, in turn. P: {"LoRA": (N, N), …}, NaN where nothing was measured
    above the diagonal; P0: {"LoRA": (N,), …}, each task trained alone. name: the method
    that is shown; after: how many tasks have been trained. Raises ValueError for shapes
    that do not fit, NaN on or below the diagonal, a method that P does not have.
    """

    _js_path = Path(__file__).with_name("forgetting.js")
    tasks: Any = traitlets.List().tag(sync=True)
    P: Any = traitlets.Dict().tag(sync=True)
    P0: Any = traitlets.Dict().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    after = traitlets.Int(1).tag(sync=True)

    def __init__(
        self,
        tasks: Sequence[str],
        P: Mapping[str, Tensor],
        P0: Mapping[str, Tensor],
        name: str = "",
        after: int = 1,
        **kwargs: Any,
    ) -> None:
        if not P or P.keys() != P0.keys():
            raise ValueError(f"P has {', '.join(P)}, P0 has {', '.join(P0)}.")
        for k in P:
            if len(P0[k]) != len(tasks):
                raise ValueError(f"{k}: {len(P0[k])} tasks, and {len(tasks)} names.")
            continual.metrics(P[k], P0[k])  # refuses what does not fit
            if torch.isnan(P[k])[torch.ones_like(P[k]).tril() > 0].any():
                raise ValueError(f"{k}: P holds NaN on or below the diagonal.")
        kwargs.setdefault("title", "What is left of each task")
        kwargs.setdefault(
            "caption",
            "Train task after task with the slider: a column that pales is a task that "
            "is forgotten. Then change the method.",
        )
        kwargs.setdefault(
            "alt",
            "A table of the performance on each task (columns) after each task "
            f"(rows), for {', '.join(P)}",
        )
        super().__init__(
            tasks=list(tasks),
            P={k: [[_number(v) for v in row] for row in M] for k, M in P.items()},
            P0={k: [_number(v) for v in row] for k, row in P0.items()},
            name=name or next(iter(P)),
            after=after,
            **kwargs,
        )

    @traitlets.validate("name")
    def _check_name(self, proposal: Any) -> str:
        return check(proposal, self.P) if self.P else proposal["value"]

    @traitlets.validate("after")
    def _check_after(self, proposal: Any) -> int:
        n = len(self.tasks)
        return check(proposal, 1, n) if n else proposal["value"]

    def facts(self) -> dict[str, Any]:
        """Of the first `after` tasks: AP, FWT and BWT (None for one task); `lost`: what
        each has fallen by since it was trained; `others`: AP of every method.
        """
        n = self.after
        rows, alone = self.P[self.name], self.P0[self.name]
        lost = [rows[j][j] - rows[n - 1][j] for j in range(n)]
        return {
            "AP": sum(rows[n - 1][:n]) / n,
            "FWT": sum(rows[j][j] - alone[j] for j in range(n)) / n,
            "BWT": -sum(lost[:-1]) / (n - 1) if n > 1 else None,
            "lost": lost,
            "others": {k: sum(M[n - 1][:n]) / n for k, M in self.P.items()},
        }

    def summary(self) -> str:
        f, n = self.facts(), self.after
        back = "" if f["BWT"] is None else f", BWT {f['BWT']:+.2f}"
        return f"{self.name}, task {n}: AP {f['AP']:.2f}, FWT {f['FWT']:+.2f}{back}"

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, figure

        fig, ax = figure(5, 4, caption=self.caption or self.alt, alt=self.summary())
        n, rows = len(self.tasks), self.P[self.name]
        low, high = span(self.P)
        for i in range(self.after):
            for j, v in enumerate(rows[i]):
                if v is None:
                    continue
                deep = 0.5 * (v - low) / (high - low) if j <= i else 0.0
                colour = FAMILIES["low rank"]
                ax.fill_between([j, j + 1], i, i + 1, color=colour, alpha=deep, lw=0)
                ax.text(j + 0.5, i + 0.5, f"{v:.2f}", ha="center", va="center")
        at = [k + 0.5 for k in range(n)]
        ax.set_xticks(at, self.tasks, rotation=30, ha="right")
        ax.set_yticks(at, [f"after {t}" for t in self.tasks])
        ax.set(xlim=(0, n), ylim=(n, 0), title=self.summary())
        return fig


def span(P: Mapping[str, list[list[float | None]]]) -> tuple[float, float]:
    """The least and the greatest performance of all methods, for the colours."""
    all_ = [v for M in P.values() for row in M for v in row if v is not None]
    low, high = min(all_), max(all_)
    return low, high if high > low else low + 1.0


def _number(v: Any) -> float | None:
    v = float(v)
    return None if math.isnan(v) else float(f"{v:.4g}")
