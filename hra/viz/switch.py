"""What a change of adapters costs: the recorded measurement beside what memory alone
asks for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from hra.viz.static import StaticWidget

LINE, NUMBER, INDEX = 64, 4, 8  # bytes of a cache line, an fp32 number, a flat index


class SwitchCost(StaticWidget):
    """`recorded`: {dimension: {way: milliseconds}} as `benchmarks/switch.py` writes it
    for one number of threads.

    The roofline of the chosen dimension, density, rank and memory bandwidth: a sparse
    change reads an index and a value and touches a cache line (read and written) for
    each of 2 K entries; a low-rank one reads and writes the weight twice and reads its
    factors.
    """

    _js_path = Path(__file__).with_name("switch.js")
    recorded: Any = traitlets.Dict().tag(sync=True)
    sizes: Any = traitlets.List().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    thousandths = traitlets.Int(10).tag(sync=True)  # of the entries
    r = traitlets.Int(32).tag(sync=True)
    bandwidth = traitlets.Int(10).tag(sync=True)  # GB a second

    def __init__(
        self, recorded: dict[str, dict[str, float]], d: int = 4096, **kwargs: Any
    ) -> None:
        sizes = sorted(int(k) for k in recorded)
        if d not in sizes:
            raise ValueError(
                f"d={d} was not recorded; there are {', '.join(map(str, sizes))}."
            )
        kwargs.setdefault(
            "alt",
            "Milliseconds of one change of adapters: recorded, and the least that "
            "memory traffic allows",
        )
        table = {
            k: {way: round(t, 4) for way, t in row.items()}
            for k, row in recorded.items()
        }
        super().__init__(recorded=table, sizes=sizes, at=sizes.index(d), **kwargs)

    def roofline(self) -> dict[str, float]:
        """Milliseconds that the memory traffic takes at the chosen bandwidth."""
        d = self.sizes[self.at]
        entries = 2 * d * d * self.thousandths / 1000
        sparse = entries * (INDEX + NUMBER + 2 * LINE)
        dense = 2 * NUMBER * (2 * d * d + 2 * self.r * d)
        return {
            "sparse": sparse / self.bandwidth / 1e6,
            "low rank": dense / self.bandwidth / 1e6,
        }

    def summary(self) -> str:
        f = self.roofline()
        return (
            f"d = {self.sizes[self.at]:,}, {self.thousandths / 10:g} %, r = {self.r}: "
            "memory alone asks for "
            f"{f['sparse']:.2f} ms (sparse), {f['low rank']:.2f} ms (low rank)"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import figure

        fig, ax = figure(6.5, 2.6, caption=self.caption or self.alt, alt=self.summary())
        row = self.recorded[str(self.sizes[self.at])] | {
            f"roofline, {k}": t for k, t in self.roofline().items()
        }
        ax.barh(list(row), list(row.values()))
        ax.set_xscale("log")
        ax.set_xlabel("one change (ms)")
        return fig
