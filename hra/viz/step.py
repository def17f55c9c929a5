"""How far the first step moves an output: rank, scale, density and optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import traitlets

from hra.analysis import bounds
from hra.viz.static import StaticWidget

RULES = ("α/r", "α/√r")
OPTIMIZERS = ("SGD", "Adam")
MOST = 8  # the largest rank is 2 to this


class StepSize(StaticWidget):
    """The first step of LoRA under both rules and of a sparse adapter, as a share of
    full fine-tuning's at the same rate (`bounds.step_ratio`), for n inputs.

    measured: {(rule, optimizer): [(r, share), …]}, points to be drawn beside the law.
    alpha: LoRA's. Raises ValueError for a value that no slider has.
    """

    _js_path = Path(__file__).with_name("step.js")
    n = traitlets.Int(192).tag(sync=True)
    alpha = traitlets.Float(16.0).tag(sync=True)
    measured: Any = traitlets.List().tag(sync=True)  # [rule, optimizer, [[r, share]]]
    rule = traitlets.Unicode(RULES[0]).tag(sync=True)
    optimizer = traitlets.Unicode(OPTIMIZERS[0]).tag(sync=True)
    r = traitlets.Int(8).tag(sync=True)
    thousandths = traitlets.Int(14).tag(sync=True)  # of the entries

    def __init__(
        self,
        measured: Mapping[tuple[str, str], Sequence[tuple[int, float]]] | None = None,
        **kwargs: Any,
    ) -> None:
        points = [
            [*key, [[r, float(f"{y:.4g}")] for r, y in found]]
            for key, found in (measured or {}).items()
        ]
        kwargs.setdefault("title", "The first step")
        kwargs.setdefault("alt", "The first step's size against the rank")
        super().__init__(measured=points, **kwargs)

    @traitlets.validate("rule", "optimizer")
    def _check_choice(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        there = RULES if name == "rule" else OPTIMIZERS
        if value not in there:
            raise ValueError(f"{name}={value!r} is not among {', '.join(there)}.")
        return value

    @traitlets.validate("r", "thousandths")
    def _check(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        most = 2**MOST if name == "r" else 1000
        if not 1 <= value <= most:
            raise ValueError(f"{name}={value} is out of range: 1 to {most}.")
        return value

    def share(self, r: int, rule: str) -> float:
        """LoRA's first step, of full fine-tuning's."""
        scale = self.alpha / (r if rule == RULES[0] else r**0.5)
        adam = self.optimizer == "Adam"
        return bounds.step_ratio(self.n, r=r, scale=scale, adam=adam)

    def facts(self) -> dict[str, float]:
        """LoRA's and the sparse adapter's share, and LoRA's at rank 1."""
        return {
            "LoRA": self.share(self.r, self.rule),
            "at rank 1": self.share(1, self.rule),
            "sparse": self.thousandths / 1000,
        }

    def summary(self) -> str:
        f = self.facts()
        return (
            f"{self.optimizer}, {self.rule}, r = {self.r}: {f['LoRA']:.2g} of full "
            f"fine-tuning's step, {f['LoRA'] / f['at rank 1']:.2g} times that of rank 1"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import figure, label_lines, look

        fig, ax = figure(6.5, 3, caption=self.caption or self.alt, alt=self.summary())
        ranks = [2**k for k in range(MOST + 1)]
        for i, rule in enumerate(RULES):
            shares = [self.share(r, rule) for r in ranks]
            ax.plot(ranks, shares, label=rule, **look("LoRA", variant=i))
        level = [self.thousandths / 1000] * len(ranks)
        ax.plot(ranks, level, label="sparse", **look("SHiRA") | {"marker": ""})
        ax.set(xscale="log", yscale="log", xlabel="rank r", ylabel="first step")
        label_lines(ax)
        return fig
