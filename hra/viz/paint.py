"""Paint a mask: the rank that its entries allow, the matching and the cover that prove
it, and the singular values of random numbers on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra.analysis import rank
from hra.viz.static import StaticWidget

TASKS = ((12, 12), (3, 30))  # rank, entries


class MaskPainter(StaticWidget):
    """An n × n grid; a click, or arrows and the space bar, paint an entry.

    A largest matching (entries no two of which share a row or a column) and a smallest
    cover (rows and columns that hold all entries) light up; by König's theorem they are
    equally many, the structural rank. `mask`: what is painted first, by default a 4 × 4
    example whose 10 entries allow rank 3; `tasks`: (rank, entries) to be painted;
    `seed`: of the values and of the order in which the slider paints.

    Raises ValueError for a mask that is no square of at most 16 rows.
    """

    _js_path = Path(__file__).with_name("paint.js")
    cells = traitlets.Unicode().tag(sync=True)  # row by row, "1" where painted
    values: Any = traitlets.List().tag(sync=True)
    order: Any = traitlets.List().tag(sync=True)
    tasks: Any = traitlets.List().tag(sync=True)

    def __init__(
        self,
        mask: Tensor | None = None,
        *,
        tasks: Sequence[tuple[int, int]] = TASKS,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if mask is None:
            mask = torch.zeros(12, 12, dtype=torch.bool)
            mask[:4, 1] = mask[0, :4] = mask[2, :4] = True
        n = len(mask)
        if mask.shape != (n, n) or not 1 <= n <= 16:
            raise ValueError(
                f"the mask is {tuple(mask.shape)}; a square of 1 to 16 rows is needed."
            )
        g = torch.Generator().manual_seed(seed)
        values = torch.randn(n * n, generator=g, dtype=torch.double)
        blank, row, block = (torch.zeros(n, n) for _ in range(3))
        row[n // 2] = block[:4, :4] = 1
        kwargs.setdefault("title", "Paint a mask")
        kwargs.setdefault(
            "presets",
            {
                name: {"cells": _cells(m)}
                for name, m in (
                    ("Clear", blank),
                    ("One row", row),
                    ("A 4 × 4 block", block),
                    ("All", torch.ones(n, n)),
                )
            },
        )
        kwargs.setdefault(
            "caption",
            "Paint entries with the mouse, or with arrows and the space bar. Watch: "
            "dots are a largest matching, tinted rows and columns a smallest cover of "
            "all entries. They are equally many, and that is the rank that random "
            "numbers on the entries have.",
        )
        kwargs.setdefault(
            "alt",
            "A grid of entries with its matching and cover, beside the singular values "
            "of random numbers on it",
        )
        super().__init__(
            cells=_cells(mask),
            values=[float(f"{v:.3f}") for v in values],
            order=torch.randperm(n * n, generator=g).tolist(),
            tasks=[list(t) for t in tasks],
            **kwargs,
        )

    @traitlets.validate("cells")
    def _check_cells(self, proposal: Any) -> str:
        cells = proposal["value"]
        n = len(self.values)
        if n and (len(cells) != n or set(cells) - {"0", "1"}):
            raise ValueError(f"cells has {n} digits 0 or 1, given {cells!r}.")
        return cells

    def mask(self) -> Tensor:
        """(n, n), True where painted."""
        n = round(len(self.cells) ** 0.5)
        return torch.tensor([c == "1" for c in self.cells]).reshape(n, n)

    def facts(self) -> dict[str, Any]:
        """Entries, structural rank, singular values of the values on the mask."""
        mask = self.mask()
        matrix = torch.tensor(self.values, dtype=torch.double).reshape_as(mask) * mask
        return {
            "K": int(mask.sum()),
            "rank": rank.structural_rank(mask),
            "sigma": rank.spectrum(matrix).tolist(),
        }

    def summary(self) -> str:
        f = self.facts()
        return f"{f['K']} entries, rank at most {f['rank']}"

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, (left, right) = figure(
            7, 3, 2, caption=self.caption or self.alt, alt=self.summary()
        )
        n = len(self.mask())
        left.imshow(self.mask(), cmap="Oranges", vmin=0, vmax=1.4)
        left.set_xticks(torch.arange(n + 1) - 0.5, [])
        left.set_yticks(torch.arange(n + 1) - 0.5, [])
        left.grid(color=INK, linewidth=0.4)
        left.set(xlabel="column", ylabel="row", title=self.summary())
        right.bar(range(1, n + 1), self.facts()["sigma"], color=FAMILIES["sparse"])
        right.set(xlabel="index i", ylabel="σᵢ of random values")
        return fig


def _cells(mask: Tensor) -> str:
    return "".join("1" if v else "0" for v in mask.flatten().tolist())
