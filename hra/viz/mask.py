"""Which entries each rule picks: pattern, counts, the rank that the support allows, the
spectrum, and what two masks share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra.analysis import rank
from hra.viz.static import StaticWidget

GRID, POINTS = 24, 24


def _reduce(mask: Tensor) -> str:
    """The mask as GRID × GRID digits: 0 for an empty cell, 9 for the fullest; rows of
    cells one after the other.
    """
    cells = torch.nn.functional.adaptive_avg_pool2d(mask.float()[None], GRID)[0]
    return "".join(
        str(int(d)) for d in (cells / cells.max().clamp(min=1e-12) * 9).ceil().flatten()
    )


def _spectrum(mask: Tensor) -> list[float]:
    """POINTS singular values, largest first, σ₁ = 1, of the mask with random normal
    values on it.
    """
    values = torch.randn(
        mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sigma = rank.spectrum(values * mask.cpu())
    at = torch.linspace(0, len(sigma) - 1, POINTS).round().long()
    return [round(float(s), 4) for s in sigma[at] / sigma[0].clamp(min=1e-300)]


class MaskExplorer(StaticWidget):
    """`masks`: for each rule, one boolean (d_out, d_in) mask for each of `densities`.
    Reduced here; the page gets no matrix.
    """

    _js_path = Path(__file__).with_name("mask.js")
    table: Any = traitlets.Dict().tag(sync=True)  # rule -> one entry a density
    shared: Any = traitlets.List().tag(
        sync=True
    )  # a density -> entries in common of every two rules
    densities: Any = traitlets.List().tag(sync=True)
    shape: Any = traitlets.List().tag(sync=True)
    rule = traitlets.Unicode().tag(sync=True)
    other = traitlets.Unicode().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        masks: dict[str, list[Tensor]],
        densities: list[float],
        at: int = 0,
        **kwargs: Any,
    ) -> None:
        if len(masks) < 2 or any(len(m) != len(densities) for m in masks.values()):
            raise ValueError(
                f"give at least two rules, each with {len(densities)} masks, one a "
                "density."
            )
        if not 0 <= at < len(densities):
            raise ValueError(f"at={at} is out of range: 0 to {len(densities) - 1}.")
        rules = list(masks)
        first = masks[rules[0]][0]
        table = {
            name: [
                {
                    "K": int(m.sum()),
                    "structural": rank.structural_rank(m),
                    "rows": int(m.any(1).sum()),
                    "mask_rank": int(torch.linalg.matrix_rank(m.double())),
                    "cells": _reduce(m),
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
        kwargs.setdefault(
            "alt",
            "A coarse picture of a sparse mask beside the singular values that random "
            "values on it have",
        )
        super().__init__(
            table=table,
            shared=shared,
            densities=[float(p) for p in densities],
            shape=list(first.shape),
            rule=rules[0],
            other=rules[1],
            at=at,
            **kwargs,
        )

    def facts(self) -> dict[str, int | float]:
        """Of the present choice: K, density, ranks, rows touched, entries in common
        with the other rule and by chance.
        """
        one, two = self.table[self.rule][self.at], self.table[self.other][self.at]
        total, rules = self.shape[0] * self.shape[1], list(self.table)
        return {
            "K": one["K"],
            "density": one["K"] / total,
            "structural": one["structural"],
            "mask_rank": one["mask_rank"],
            "rows": one["rows"],
            "shared": self.shared[self.at][rules.index(self.rule)][
                rules.index(self.other)
            ],
            "chance": one["K"] * two["K"] / total,
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
        from hra.viz.style import figure

        fig, (left, right) = figure(
            7.0, 3.0, 2, caption=self.caption or self.alt, alt=self.summary()
        )
        one = self.table[self.rule][self.at]
        left.imshow(
            torch.tensor([int(c) for c in one["cells"]]).reshape(GRID, GRID),
            cmap="Greys",
            aspect="auto",
            extent=(0, self.shape[1], self.shape[0], 0),
        )
        left.grid(False)
        left.set(
            xlabel="input j",
            ylabel="output i",
            title=f"{self.rule}, {self.densities[self.at]:.2%}",
        )
        right.plot(
            torch.linspace(1, min(self.shape), POINTS).tolist(),
            one["sigma"],
            "o-",
            markersize=3,
        )
        right.set(
            xlabel="index i",
            ylabel="σᵢ / σ₁",
            title=f"rank at most {one['structural']}",
        )
        return fig
