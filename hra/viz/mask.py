"""Which entries each rule picks: pattern, counts, the rank that the support allows, the
spectrum, and what two masks share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra.analysis import rank
from hra.viz.static import StaticWidget, check

GRID, POINTS = 24, 20


def reduced(mask: Tensor) -> str:
    """The mask as GRID × GRID digits, row by row: 0 for an empty cell, 9 for a full
    one, by the root of the share that is picked, so that 1 % is seen.
    """
    cells = torch.nn.functional.adaptive_avg_pool2d(mask.float()[None], GRID)[0]
    return "".join(str(int(d)) for d in (cells.sqrt() * 9).ceil().flatten())


def _spectrum(mask: Tensor) -> list[float]:
    """POINTS singular values, largest first, σ₁ = 1, of the mask with random normal
    values on it.
    """
    values = torch.randn(
        mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sigma = rank.spectrum(values * mask.cpu())
    at = torch.linspace(0, len(sigma) - 1, POINTS).round().long()
    return [round(float(s), 3) for s in sigma[at] / sigma[0].clamp(min=1e-300)]


class MaskExplorer(StaticWidget):
    """Two masks side by side: where their entries are, the rank that they allow, the
    singular values of random numbers on them, what they share.

    `masks`: for each rule, one boolean (d_out, d_in) mask for each of `densities`.
    `parts`: names of equal parts of the outputs, such as ("q", "k", "v") of `c_attn`.
    `rule`, `other`: what is shown first; `other` is the second rule, or "rand".
    Reduced here; the page gets no matrix.
    """

    _js_path = Path(__file__).with_name("mask.js")
    table: Any = traitlets.Dict().tag(sync=True)  # rule -> one entry a density
    # a density -> entries in common of every two rules
    shared: Any = traitlets.List().tag(sync=True)
    densities: Any = traitlets.List().tag(sync=True)
    shape: Any = traitlets.List().tag(sync=True)
    parts: Any = traitlets.List().tag(sync=True)
    rule = traitlets.Unicode().tag(sync=True)
    other = traitlets.Unicode().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        masks: dict[str, list[Tensor]],
        densities: list[float],
        at: int = 0,
        *,
        rule: str = "",
        other: str = "",
        parts: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if len(masks) < 2 or any(len(m) != len(densities) for m in masks.values()):
            raise ValueError(
                f"give at least two rules, each with {len(densities)} masks, one a "
                "density."
            )
        rules = list(masks)
        first = masks[rules[0]][0]
        if parts and len(first) % len(parts):
            raise ValueError(
                f"{len(first)} outputs cannot be cut into {len(parts)} equal parts."
            )
        table = {
            name: [
                {
                    "K": int(m.sum()),
                    "structural": rank.structural_rank(m),
                    "rows": int(m.any(1).sum()),
                    "mask_rank": int(torch.linalg.matrix_rank(m.double())),
                    "parts": [int(p.sum()) for p in m.chunk(len(parts))]
                    if parts
                    else [],
                    "cells": reduced(m),
                    "sigma": _spectrum(m),
                }
                for m in ms
            ]
            for name, ms in masks.items()
        }
        shared = [
            [[int((masks[a][i] & masks[b][i]).sum()) for b in rules] for a in rules]
            for i in range(len(densities))
        ]
        rule = rule or rules[0]
        rest = [name for name in rules if name != rule]
        kwargs.setdefault("title", "Which entries a mask picks")
        kwargs.setdefault(
            "caption",
            "Choose two masks and drag the density: watch where the entries fall, and "
            "how far down the singular values reach. The second mask is in the page's "
            "ink, its singular values dashed.",
        )
        kwargs.setdefault(
            "alt",
            "Coarse pictures of two sparse masks beside the singular values of random "
            "numbers on them",
        )
        super().__init__(
            table=table,
            shared=shared,
            densities=[float(p) for p in densities],
            shape=list(first.shape),
            parts=list(parts),
            rule=rule,
            other=other or ("rand" if "rand" in rest else rest[0]),
            at=at,
            **kwargs,
        )
        self.refuse_over_limit(
            f"{len(rules)} rules at {len(densities)} densities are ",
            "; leave out some densities",
        )

    @traitlets.validate("at")
    def _check_at(self, proposal: Any) -> int:
        n = len(self.densities)
        return check(proposal, 0, n - 1) if n else proposal["value"]

    @traitlets.validate("rule", "other")
    def _check_rule(self, proposal: Any) -> str:
        return check(proposal, self.table) if self.table else proposal["value"]

    def _of(self, rule: str) -> dict[str, Any]:
        one = self.table[rule][self.at]
        density = one["K"] / (self.shape[0] * self.shape[1])
        names = ("K", "structural", "mask_rank", "rows", "parts")
        return {k: one[k] for k in names} | {"density": density}

    def facts(self) -> dict[str, Any]:
        """Of the present choice: K, density, ranks, rows touched, entries by part; the
        same of the other rule; entries in common with it, and by chance.
        """
        one, two, rules = self._of(self.rule), self._of(self.other), list(self.table)
        shared = self.shared[self.at]
        return one | {
            "other": two,
            "shared": shared[rules.index(self.rule)][rules.index(self.other)],
            "chance": one["K"] * two["K"] / (self.shape[0] * self.shape[1]),
        }

    def summary(self) -> str:
        f = self.facts()
        return (
            f"{self.rule}: {f['K']:,} entries, {f['density']:.2%} of {self.shape[0]} "
            f"× {self.shape[1]}; "
            f"rank at most {f['structural']}; {f['shared']:,} shared with "
            f"{self.other}, {f['chance']:.0f} by chance"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, axes = figure(
            9.0, 3.0, 3, caption=self.caption or self.alt, alt=self.summary()
        )
        looks = ((FAMILIES["sparse"], "Oranges", "-"), (INK, "Greys", "--"))
        index = torch.linspace(1, min(self.shape), POINTS).tolist()
        for ax, rule, (colour, cmap, dash) in zip(
            axes, (self.rule, self.other), looks, strict=False
        ):
            one = self.table[rule][self.at]
            cells = torch.tensor([int(c) for c in one["cells"]]).reshape(GRID, GRID)
            extent = (0, self.shape[1], self.shape[0], 0)
            ax.imshow(cells, cmap=cmap, vmin=0, vmax=9, aspect="auto", extent=extent)
            ax.grid(False)
            for i in range(1, len(self.parts)):
                ax.axhline(i * self.shape[0] / len(self.parts), color=INK, linewidth=1)
            ax.set(
                xlabel="input j",
                ylabel="output i",
                title=f"{rule}, rank at most {one['structural']}",
            )
            axes[2].plot(index, one["sigma"], dash, color=colour, label=rule)
        axes[2].set(xlabel="index i", ylabel="σᵢ / σ₁")
        axes[2].legend(frameon=False)
        return fig
