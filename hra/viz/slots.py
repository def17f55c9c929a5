"""LoSiA's slots: which block watches, re-warms and trains in each step of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from hra.viz.static import StaticWidget, check

MOST = {"period": 100, "layers": 33, "steps": 3000}


class SlotTimeline(StaticWidget):
    """Blocks × steps: slots, and the T steps after each move in which the block's rate
    rises again. `at`, counted from 1, is the step that the sentence speaks of.

    period: T; layers: L blocks; steps: N. schedule: "async", one block's slot after the
    other's, or "sync", all in the first of each L slots. warmup: as `LoSiA`'s, the
    share of the run within which a move is not re-warmed. Raises ValueError for a value
    that no slider has.
    """

    _js_path = Path(__file__).with_name("slots.js")
    most: Any = traitlets.Dict(MOST).tag(sync=True)
    period = traitlets.Int(5).tag(sync=True)
    layers = traitlets.Int(3).tag(sync=True)
    steps = traitlets.Int(30).tag(sync=True)
    at = traitlets.Int(1).tag(sync=True)
    schedule = traitlets.Unicode("async").tag(sync=True)
    warmup = traitlets.Float(0.1).tag(sync=True)

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("title", "Slots of a run")
        kwargs.setdefault("alt", "Which block watches and re-warms in each step")
        super().__init__(**kwargs)

    @traitlets.validate("period", "layers", "steps")
    def _check(self, proposal: Any) -> int:
        return check(proposal, 1, MOST[proposal["trait"].name])

    @traitlets.validate("at")
    def _check_at(self, proposal: Any) -> int:
        return check(proposal, 1, MOST["steps"])

    @traitlets.validate("schedule")
    def _check_schedule(self, proposal: Any) -> str:
        return check(proposal, ("async", "sync"))

    @traitlets.validate("warmup")
    def _check_warmup(self, proposal: Any) -> float:
        return check(proposal, 0.0, 1.0)

    def slots(self, block: int) -> list[int]:
        """The steps, from 0, with which the block's slots begin."""
        T, first = self.period, block * self.period * (self.schedule == "async")
        return list(range(first, self.steps, T * self.layers))

    def moves(self, block: int) -> list[int]:
        """How many steps are done when the block moves; a slot cut off is no move."""
        return [
            b + self.period for b in self.slots(block) if b + self.period <= self.steps
        ]

    def rate(self, block: int, step: int) -> float:
        """What multiplies the block's rate in a step, from 0."""
        for e in self.moves(block):
            if e >= self.warmup * self.steps and 0 <= step - e < self.period:
                return (step - e + 1) / (self.period + 1)
        return 1.0

    def facts(self) -> dict[str, Any]:
        """moves: of each block; never: the blocks, from 1, without any; enough: steps
        after which all have moved; and in step `at` (the last, if that is earlier) the
        blocks that watch and, with their rates, those that re-warm.
        """
        blocks, step = range(self.layers), min(self.at, self.steps) - 1
        count = [len(self.moves(b)) for b in blocks]
        one = self.schedule == "sync"
        rates = {b: self.rate(b, step) for b in blocks}
        return {
            "moves": count,
            "never": [b + 1 for b in blocks if not count[b]],
            "enough": self.period * (1 if one else self.layers),
            "watching": [
                b + 1
                for b in blocks
                if any(0 <= step - s < self.period for s in self.slots(b))
            ],
            "warming": [[b + 1, round(r, 4)] for b, r in rates.items() if r < 1],
        }

    def summary(self) -> str:
        f = self.facts()
        return (
            f"T {self.period}, {self.layers} blocks, {self.steps} steps: "
            f"{sum(f['moves'])} moves, {len(f['never'])} blocks never localised"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, ax = figure(caption=self.caption or self.alt, alt=self.summary())
        T, purple = self.period, FAMILIES["subnet"]
        for b in range(self.layers):
            ax.plot([0, self.steps], [b + 1, b + 1], color=INK, linewidth=0.8)
            watched = [(s, min(T, self.steps - s)) for s in self.slots(b)]
            ax.broken_barh(watched, (b + 0.7, 0.6), color=purple)
            warm = [
                (e, min(T, self.steps - e))
                for e in self.moves(b)
                if self.warmup * self.steps <= e < self.steps
            ]
            ax.broken_barh(warm, (b + 0.8, 0.4), facecolor="none", edgecolor=purple)
        ax.invert_yaxis()
        ax.set(xlabel="step", ylabel="block", title=self.summary())
        return fig
