"""A slider over the rank kept of a real ΔW: the spectrum, the captured energy, the
bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets
from torch import Tensor

from hra.analysis import rank
from hra.viz.static import StaticWidget


class RankSlider(StaticWidget):
    """Keep rank r of `delta` (d_out, d_in): what share of ‖ΔW‖_F² is captured, what the
    two factors weigh in fp32.
    """

    _js_path = Path(__file__).with_name("rank.js")
    sigma: Any = traitlets.List().tag(sync=True)
    shape: Any = traitlets.List().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    r = traitlets.Int(8).tag(sync=True)

    def __init__(
        self, delta: Tensor, r: int = 8, name: str = "ΔW", **kwargs: Any
    ) -> None:
        sigma = [float(f"{s:.4g}") for s in rank.spectrum(delta)]
        if not 0 <= r <= len(sigma):
            raise ValueError(f"r={r} is out of range: 0 to {len(sigma)} for this ΔW.")
        kwargs.setdefault(
            "alt",
            f"Singular values of {name}, largest first, with the ones kept at rank "
            f"{r} marked",
        )
        super().__init__(sigma=sigma, shape=list(delta.shape), name=name, r=r, **kwargs)

    def energy(self) -> float:
        """Captured share of ‖ΔW‖_F² at the present r."""
        squares = [s * s for s in self.sigma]
        return sum(squares[: self.r]) / sum(squares) if any(squares) else 1.0

    def bytes(self) -> int:
        """Bytes of the two factors, fp32."""
        return 4 * self.r * sum(self.shape)

    def summary(self) -> str:
        return f"rank {self.r} of {len(self.sigma)}: {self.energy():.0%} of the energy"

    def fallback_figure(self) -> Any:
        from hra.viz.style import figure

        fig, ax = figure(caption=self.caption or self.alt, alt=self.summary())
        k = range(1, len(self.sigma) + 1)
        ax.semilogy(k, self.sigma, color="#888")
        ax.semilogy(k[: self.r], self.sigma[: self.r], "o", markersize=3)
        ax.set(xlabel="index i", ylabel="singular value σᵢ", title=self.summary())
        return fig
