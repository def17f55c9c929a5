"""What a change of adapters costs: the recorded measurement beside what memory alone
asks for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from hra.viz.static import StaticWidget, check

# bytes of a cache line, an fp32 number, a flat index
LINE, NUMBER, INDEX = 64, 4, 8
COPY = "dense copy_"  # the row of the record that gives the bandwidth
MOST = 200  # GB a second, thousandths


class SwitchCost(StaticWidget):
    """`recorded`: {dimension: {way: milliseconds}} as `benchmarks/switch.py` writes it
    for one number of threads.

    The traffic of a change, counted in one way for all: a line of the weight that is
    written is fetched and written back (128 bytes), what is only read is fetched.
    With density p, K = p d² and L = d²/16 · (1 − (1 − p)¹⁶) lines that K entries drawn
    at random touch on the average (16 numbers a line),
      sparse     2 (128 L + 12 K)    restore the one, write the other; masks disjoint
      low rank   2 (8 d² + 8 r d)    unmerge the one, merge the other
      copy       12 d²               write a dense weight that is kept ready
    `bandwidth` (GB a second) is at first that of the recorded `dense copy_`; it follows
    the dimension. Raises ValueError for a dimension that was not recorded.
    """

    _js_path = Path(__file__).with_name("switch.js")
    recorded: Any = traitlets.Dict().tag(sync=True)
    sizes: Any = traitlets.List().tag(sync=True)
    measured: Any = traitlets.List().tag(sync=True)  # GB a second, one a dimension
    at = traitlets.Int(0).tag(sync=True)
    thousandths = traitlets.Int(10).tag(sync=True)  # of the entries
    r = traitlets.Int(32).tag(sync=True)
    bandwidth = traitlets.Int(1).tag(sync=True)

    def __init__(
        self,
        recorded: dict[str, dict[str, float]],
        d: int = 4096,
        *,
        bandwidth: int | None = None,
        **kwargs: Any,
    ) -> None:
        sizes = sorted(int(k) for k in recorded)
        if d not in sizes:
            raise ValueError(
                f"d={d} was not recorded; there are {', '.join(map(str, sizes))}."
            )
        if bandwidth is None and any(COPY not in row for row in recorded.values()):
            raise ValueError(
                f"the record has no {COPY!r} to take the bandwidth from; give "
                "bandwidth= in GB a second, or record again: python -m "
                "benchmarks.switch"
            )
        measured = [
            bandwidth or round(3 * NUMBER * n * n / recorded[str(n)][COPY] / 1e6)
            for n in sizes
        ]
        kwargs.setdefault("title", "What a change of adapters costs")
        kwargs.setdefault("marks", {"thousandths": {"1 %": 10, "10 %": 100}})
        kwargs.setdefault(
            "caption",
            "Drag the density: watch the sparse change grow, and stop where it is no "
            "longer cheaper than copying a whole weight. Full bars were measured, at "
            "1 % and r = 32; hollow ones are the bytes to be moved at the bandwidth "
            "that the measured copy had.",
        )
        kwargs.setdefault(
            "alt",
            "Milliseconds of one change of adapters: recorded, and what the memory "
            "traffic takes",
        )
        table = {
            k: {way: round(t, 4) for way, t in row.items()}
            for k, row in recorded.items()
        }
        at = sizes.index(d)
        super().__init__(
            recorded=table,
            sizes=sizes,
            measured=measured,
            at=at,
            bandwidth=measured[at],
            **kwargs,
        )

    @traitlets.observe("at")
    def _follow(self, change: Any) -> None:
        if self.measured:
            self.bandwidth = self.measured[self.at]

    @traitlets.validate("at", "thousandths", "r", "bandwidth")
    def _check(self, proposal: Any) -> int:
        if not self.sizes:
            return proposal["value"]
        if (name := proposal["trait"].name) == "at":
            return check(proposal, 0, len(self.sizes) - 1)
        return check(proposal, 1, 256 if name == "r" else MOST)

    def bytes(self, density: float | None = None) -> dict[str, float]:
        """Bytes to be moved at the present choices, or at another density."""
        n = self.sizes[self.at] ** 2
        p = self.thousandths / 1000 if density is None else density
        lines = n * NUMBER / LINE * (1 - (1 - p) ** (LINE // NUMBER))
        factors = 2 * NUMBER * self.r * self.sizes[self.at]
        return {
            "sparse": 2 * (2 * LINE * lines + (INDEX + NUMBER) * p * n),
            "low rank": 2 * (2 * NUMBER * n + factors),
            "copy": 3 * NUMBER * n,
        }

    def roofline(self) -> dict[str, float]:
        """Milliseconds that the memory traffic takes at the chosen bandwidth."""
        return {k: b / self.bandwidth / 1e6 for k, b in self.bytes().items()}

    def crossing(self, other: str) -> float:
        """The density from which a sparse change moves no fewer bytes than `other`,
        "low rank" or "copy"; 1 where it always moves fewer.
        """
        low, high = 0.0, 1.0
        for _ in range(50):  # the sparse traffic grows with the density
            mid = (low + high) / 2
            moved = self.bytes(mid)
            low, high = (mid, high) if moved["sparse"] < moved[other] else (low, mid)
        return high

    def facts(self) -> dict[str, float]:
        return self.roofline() | {
            "from copy": self.crossing("copy"),
            "from low rank": self.crossing("low rank"),
        }

    def summary(self) -> str:
        f = self.roofline()
        return (
            f"d = {self.sizes[self.at]:,}, {self.thousandths / 10:g} %, r = {self.r}: "
            f"memory alone asks for {f['sparse']:.2f} ms (sparse), "
            f"{f['low rank']:.2f} ms (low rank), {f['copy']:.2f} ms (copy)"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import INK, figure

        fig, ax = figure(6.5, 3, caption=self.caption or self.alt, alt=self.summary())
        row = self.recorded[str(self.sizes[self.at])]
        ax.barh(list(row), list(row.values()), color="#808080")
        memory = {f"memory alone, {k}": t for k, t in self.roofline().items()}
        ax.barh(list(memory), list(memory.values()), color="none", edgecolor=INK)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlabel("one change (ms)")
        return fig
