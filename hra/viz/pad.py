"""Two adapters on a pad: the reader sets both strengths, the page's ViT answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import traitlets

from hra.data import digits
from hra.viz import packed
from hra.viz.draw import HIGH, LOW, DrawDigit
from hra.viz.static import HERE, check

STEP = 0.5  # between two strengths at which the stored digits are counted


class AdapterPad(DrawDigit):
    """W0 + α₁ ΔW₁ + α₂ ΔW₂ of a ViT: how many stored digits of each task it gets right
    over the plane of strengths, and what it says to a digit that the reader draws.

    adapters, model: as `DrawDigit` takes them, of both tasks and with the same kinds
    for each. one, two: α₁ and α₂, -1 to 2; kind: which adapters.

    The 100 stored digits of each task are counted here, on a grid of strengths half a
    unit apart; the page does what is drawn. Raises ValueError for one task alone, for
    kinds that only one of them has, and what `DrawDigit` raises.
    """

    _js_path = HERE / "pad.js"
    strengths: Any = traitlets.List().tag(sync=True)
    counts: Any = traitlets.Dict().tag(sync=True)  # kind -> [n₁, n₂], α₁ slowest
    one = traitlets.Float(1.0).tag(sync=True)
    two = traitlets.Float(1.0).tag(sync=True)

    def __init__(
        self,
        adapters: Mapping[str, Mapping[str, str | os.PathLike[str]]],
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        named = {task: list(of) for task, of in adapters.items()}
        if len(named) != 2 or len({tuple(kinds) for kinds in named.values()}) != 1:
            raise ValueError(
                "a pad is for two tasks with the same kinds of adapters; given "
                f"{named}."
            )
        first, second = named
        kwargs.setdefault("title", "Two adapters on a pad")
        kwargs.setdefault(
            "presets",
            {
                f"{first} alone": {"one": 1.0, "two": 0.0},
                f"{second} alone": {"one": 0.0, "two": 1.0},
                "both": {"one": 1.0, "two": 1.0},
                "half of each": {"one": 0.5, "two": 0.5},
            },
        )
        kwargs.setdefault(
            "caption",
            "Drag the ring on either map, or move it with the arrow keys: α₁ to the "
            "right, α₂ upwards, both adapters in the same weights. The maps say how "
            "many of 100 stored digits are right; your own digit is answered for the "
            "very point.",
        )
        kwargs.setdefault(
            "alt",
            "Two maps over the strengths of two adapters: stored digits of each task "
            "that the model gets right",
        )
        super().__init__(adapters, model, **kwargs)
        n = round((HIGH - LOW) / STEP) + 1
        self.strengths = [LOW + STEP * i for i in range(n)]
        self._shifted = {task: self.shift(task, self._x) for task in named}
        self.counts = {
            kind: [
                self.both(one, two, kind)
                for one in self.strengths
                for two in self.strengths
            ]
            for kind in named[first]
        }

    @traitlets.validate("one", "two")
    def _check_strength(self, proposal: Any) -> float:
        return check(proposal, LOW, HIGH)

    @torch.no_grad()
    def both(self, one: float, two: float, kind: str | None = None) -> list[int]:
        """How many of 100 stored digits of each task are right, with the weights that
        the page has at these strengths.
        """
        changes = [
            (self._data[self.files[f"{task} {kind or self.kind}"]], alpha, 8)
            for task, alpha in zip(self.kinds, (one, two), strict=True)
        ]
        W = packed.adapted(self._data[self.files["model"]], changes)
        W = {n: W[n].view_as(p) for n, p in self._vit.named_parameters()}
        x = torch.cat(list(self._shifted.values()))
        said = torch.func.functional_call(
            self._vit, W, kwargs={"pixel_values": digits.pixel_values(x)}
        ).logits.argmax(1)
        return [int((part == self._y).sum()) for part in said.chunk(2)]

    def facts(self) -> dict[str, Any]:
        """At the grid point nearest to the present strengths (`at`): how many are
        `right` of each task; how many with each adapter `alone`, and `before`.
        """
        n, low = len(self.strengths), self.strengths[0]

        def near(alpha: float) -> int:
            return min(n - 1, max(0, int((alpha - low) / STEP + 0.5)))

        i, j, zero, unit = (near(a) for a in (self.one, self.two, 0.0, 1.0))
        of = self.counts[self.kind]
        return {
            "at": [self.strengths[i], self.strengths[j]],
            "right": of[i * n + j],
            "alone": [of[unit * n + zero][0], of[zero * n + unit][1]],
            "before": of[zero * n + zero],
        }

    def summary(self) -> str:
        f, tasks = self.facts(), list(self.kinds)
        each = " and ".join(
            f"{f['right'][k]} of 100 {task} digits right (alone {f['alone'][k]})"
            for k, task in enumerate(tasks)
        )
        return f"{self.kind}, α₁ = {f['at'][0]:g}, α₂ = {f['at'][1]:g}: {each}"

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        n, tasks = len(self.strengths), list(self.kinds)
        fig, axes = figure(8.0, 3.6, 2, caption=self.caption, alt=self.summary())
        colour = FAMILIES[self.kinds[tasks[0]][self.kind]["family"]]
        for k, (ax, task) in enumerate(zip(axes, tasks, strict=True)):
            table = torch.tensor(self.counts[self.kind]).view(n, n, 2)[:, :, k].T
            ax.imshow(
                torch.zeros(n, n, 4),
                origin="lower",
                extent=(LOW - STEP / 2, HIGH + STEP / 2) * 2,
            )
            for j, two in enumerate(self.strengths):
                for i, one in enumerate(self.strengths):
                    count = int(table[j, i])
                    ax.text(one, two, str(count), ha="center", va="center", fontsize=8)
                    ax.axvspan(
                        one - STEP / 2,
                        one + STEP / 2,
                        j / n,
                        (j + 1) / n,
                        color=colour,
                        alpha=0.6 * (count / 100) ** 2,
                        linewidth=0,
                    )
            ax.plot(self.one, self.two, "o", ms=18, mfc="none", mec=INK, mew=2)
            ax.grid(False)
            ax.set(
                xlabel=f"α₁, {tasks[0]}",
                ylabel=f"α₂, {tasks[1]}",
                title=f"{task} digits right, of 100",
            )
        return fig
