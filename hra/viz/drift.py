"""The masks of a run, step by step: what is left of the first one, what is new, and
how much of the present one another mask has too.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra.viz.mask import GRID, reduced
from hra.viz.static import StaticWidget, check

# one letter for each pair of digits (of the mask, of what is new in it), new ≤ mask
LETTERS = string.digits + string.ascii_letters


def pairs(mask: Tensor, new: Tensor) -> str:
    """Both as MaskExplorer's digits, a letter a cell; drift.js `digits` reads it."""
    both = zip(reduced(mask), reduced(new), strict=True)
    return "".join(LETTERS[int(d) * (int(d) + 1) // 2 + int(n)] for d, n in both)


def digits(picture: str) -> tuple[list[int], list[int]]:
    """What `pairs` wrote: the digits of the mask, and of what is new in it."""
    order = [(d, n) for d in range(10) for n in range(d + 1)]
    found = [order[LETTERS.index(c)] for c in picture]
    return [d for d, _ in found], [n for _, n in found]


def _masks(masks: Iterable[tuple[str, Tensor]], shape: list[int] | None) -> list[int]:
    """The shape that all have; raises ValueError for what is no mask, or is empty."""
    for name, mask in masks:
        shape = shape or list(mask.shape)
        if mask.dtype is not torch.bool or mask.ndim != 2 or list(mask.shape) != shape:
            raise ValueError(
                f"{name} is {tuple(mask.shape)} of {mask.dtype}; all masks must be "
                f"boolean matrices of one shape, here {tuple(shape)}."
            )
        if not mask.any():
            raise ValueError(f"{name} is empty; a mask picks one entry or more.")
    if not shape:
        raise ValueError("no masks given.")
    return shape


class MaskOverTime(StaticWidget):
    """A scrubber over the steps of runs whose mask moves, beside some whose does not.

    masks: {"SpIEL, AG": [boolean (d_out, d_in), one for each of `steps`], …}; against:
    {"grad": boolean (d_out, d_in), …}, what they are compared with. parts: names of
    equal parts of the outputs, such as ("q", "k", "v"). `run`, `other`, `at` (which of
    `steps`, from 0): what is shown first. Reduced here; the page gets no matrix.
    Raises ValueError for masks of different shapes, lists of another length, no run.
    """

    _js_path = Path(__file__).with_name("drift.js")
    # run -> of each step its counts, those it shares with each of `against`, a picture
    runs: Any = traitlets.Dict().tag(sync=True)
    pictures: Any = traitlets.List().tag(sync=True)
    steps: Any = traitlets.List().tag(sync=True)
    against: Any = traitlets.Dict().tag(sync=True)  # name -> its number of entries
    shape: Any = traitlets.List().tag(sync=True)
    parts: Any = traitlets.List().tag(sync=True)
    run = traitlets.Unicode().tag(sync=True)
    other = traitlets.Unicode().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        masks: Mapping[str, Sequence[Tensor]],
        steps: Sequence[int],
        against: Mapping[str, Tensor],
        at: int = 0,
        *,
        run: str = "",
        other: str = "",
        parts: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if not masks or not against:
            raise ValueError(
                f"{len(masks)} runs and {len(against)} masks to compare with; give at "
                "least one of each."
            )
        if len(steps) < 2 or sorted(set(steps)) != list(steps):
            raise ValueError(f"steps={list(steps)}: give two or more, in their order.")
        for name, ms in masks.items():
            if len(ms) != len(steps):
                raise ValueError(f"{name}: {len(ms)} masks for {len(steps)} steps.")
        named = [
            (f"{name}, step {step}", m)
            for name, ms in masks.items()
            for step, m in zip(steps, ms, strict=True)
        ]
        shape = _masks(against.items(), _masks(named, None))
        if parts and shape[0] % len(parts):
            raise ValueError(
                f"{shape[0]} outputs cannot be cut into {len(parts)} equal parts."
            )
        pictures: dict[str, int] = {}  # each once: a fixed mask repeats
        runs: dict[str, list[dict[str, Any]]] = {}
        for name, ms in masks.items():
            runs[name] = []
            for before, m in zip((ms[0], *ms), ms, strict=False):
                new = m & ~before
                runs[name].append(
                    {
                        "K": int(m.sum()),
                        "kept": int((m & ms[0]).sum()),
                        "changed": int(new.sum()),
                        "shared": [int((m & a).sum()) for a in against.values()],
                        "picture": pictures.setdefault(pairs(m, new), len(pictures)),
                    }
                )
        kwargs.setdefault("title", "A mask over the steps of a run")
        kwargs.setdefault(
            "caption",
            "Drag the step: the stronger the colour of a cell, the more of its entries "
            "the mask picks; the squares in it are what is new since the step before. "
            "Then change the run.",
        )
        kwargs.setdefault(
            "alt",
            "A coarse picture of a sparse mask beside the share of the first mask that "
            "is left and the share that another mask has too",
        )
        super().__init__(
            runs=runs,
            pictures=list(pictures),
            steps=[int(s) for s in steps],
            against={name: int(m.sum()) for name, m in against.items()},
            shape=shape,
            parts=list(parts),
            run=run or next(iter(runs)),
            other=other or next(iter(against)),
            at=at,
            **kwargs,
        )
        self.refuse_over_limit(
            f"{len(runs)} runs of {len(steps)} steps are ", "; leave out some steps"
        )

    @traitlets.validate("at")
    def _check_at(self, proposal: Any) -> int:
        n = len(self.steps)
        return check(proposal, 0, n - 1) if n else proposal["value"]

    @traitlets.validate("run")
    def _check_run(self, proposal: Any) -> str:
        return check(proposal, self.runs) if self.runs else proposal["value"]

    @traitlets.validate("other")
    def _check_other(self, proposal: Any) -> str:
        return check(proposal, self.against) if self.against else proposal["value"]

    def facts(self, at: int | None = None) -> dict[str, Any]:
        """K; kept: entries of the first mask that are left; changed: those that are new
        since the step before; shared: those that `other` has too; chance: how many that
        would be of a mask drawn by lot.
        """
        one = self.runs[self.run][self.at if at is None else at]
        return {
            **{k: one[k] for k in ("K", "kept", "changed")},
            "shared": one["shared"][list(self.against).index(self.other)],
            "chance": one["K"] * self.against[self.other] / self._entries(),
        }

    def _entries(self) -> int:
        return int(self.shape[0] * self.shape[1])

    def summary(self) -> str:
        f, first, at = self.facts(), self.runs[self.run][0]["K"], self.at
        left = f"the first {first:,} entries"
        if at:
            left = (
                f"{f['kept']:,} of {left} are left; {f['changed']:,} are new since "
                f"step {self.steps[at - 1]:,}"
            )
        by_lot = f"{f['chance']:.{'2g' if f['chance'] < 10 else '0f'}}"
        return (
            f"{self.run}, step {self.steps[at]:,}: {left}; {f['shared']:,} of "
            f"{f['K']:,} are among those of {self.other}, by chance {by_lot}"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, (left, right) = figure(
            7.5, 3.2, 2, caption=self.caption or self.alt, alt=self.summary()
        )
        drawn = [digits(p) for p in self.pictures]
        most = max(max(mask) for mask, _ in drawn)
        mask, new = drawn[self.runs[self.run][self.at]["picture"]]
        d_out, d_in = self.shape
        left.imshow(
            torch.tensor(mask).reshape(GRID, GRID),
            cmap="Oranges",
            vmin=0,
            vmax=most,
            aspect="auto",
            extent=(0, d_in, d_out, 0),
        )
        spots = [(i, n) for i, n in enumerate(new) if n]
        left.scatter(
            [(i % GRID + 0.5) * d_in / GRID for i, _ in spots],
            [(i // GRID + 0.5) * d_out / GRID for i, _ in spots],
            [20 * n / most for _, n in spots],
            color=FAMILIES["low rank"],
            marker="s",
        )
        left.grid(False)
        for i in range(1, len(self.parts)):
            left.axhline(i * d_out / len(self.parts), color=INK, linewidth=1)
        left.set(
            xlabel="input j", ylabel="output i", title=f"step {self.steps[self.at]}"
        )
        of = [self.facts(i) for i in range(len(self.steps))]
        kept = [f["kept"] / of[0]["K"] for f in of]
        shared = [f["shared"] / f["K"] for f in of]
        chance = self.against[self.other] / self._entries()
        for y, colour, dash, label in (
            (kept, FAMILIES["sparse"], "-", "left of the first"),
            (shared, INK, "--", f"in {self.other}"),
        ):
            right.plot(self.steps, y, dash, color=colour, label=label)
            right.plot(self.steps[self.at], y[self.at], "o", color=colour)
        right.axhline(chance, color=INK, linestyle=":", label="by chance")
        right.set(xlabel="step", ylabel="share", ylim=(-0.02, 1.05))
        right.legend(frameon=False)
        return fig
