"""A slider over the rank kept of a real ΔW: the spectrum beside that of a random matrix
of the same shape and norm, the captured energy, the bytes, the matrix getting sharper.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra.analysis import rank
from hra.viz.static import StaticWidget, check

SIDE, BYTES, DIRECTIONS = 40, 24_000, 768  # of the picture


class RankSlider(StaticWidget):
    """Keep rank r of `delta` (d_out, d_in): what share of ‖ΔW‖_F² is captured, what the
    two factors weigh in fp32.

    Beside it what the same rank captures of a random matrix (normal entries, scaled to
    ‖ΔW‖_F). The picture has every so-and-so-many-th row and column of ΔW; above 768
    singular values there is none.
    """

    _js_path = Path(__file__).with_name("rank.js")
    sigma: Any = traitlets.List().tag(sync=True)
    random: Any = traitlets.List().tag(sync=True)  # σ of the random matrix
    shape: Any = traitlets.List().tag(sync=True)
    # int8 rows of U and V as base64, and what one unit of their product is
    picture: Any = traitlets.Dict().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    r = traitlets.Int(8).tag(sync=True)

    def __init__(
        self, delta: Tensor, r: int | None = None, name: str = "ΔW", **kwargs: Any
    ) -> None:
        if delta.ndim != 2:
            raise ValueError(f"delta is {tuple(delta.shape)}; a matrix is needed.")
        r = min(8, *delta.shape) if r is None else r
        matrix = delta.detach().cpu().double()
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        noise = torch.randn(
            matrix.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double
        )
        random = rank.spectrum(noise) * (matrix.norm() / noise.norm())
        kwargs.setdefault("title", f"What rank r keeps of {name}")
        kwargs.setdefault(
            "caption",
            "Drag r: watch the matrix get sharper and the kept share of the energy "
            "grow; stop where it passes one half, and compare with the dashed line, a "
            "random matrix of the same shape and norm.",
        )
        kwargs.setdefault(
            "alt",
            f"Singular values of {name}, largest first, with the ones kept at rank "
            f"{r} marked, beside those of a random matrix",
        )
        super().__init__(
            sigma=[float(f"{s:.4g}") for s in S],
            random=[float(f"{s:.4g}") for s in random],
            shape=list(delta.shape),
            picture=_picture(U, Vh) if len(S) <= DIRECTIONS else {},
            name=name,
            r=r,
            **kwargs,
        )

    @traitlets.validate("r")
    def _check_r(self, proposal: Any) -> int:
        n = len(self.sigma)
        return check(proposal, 0, n) if n else proposal["value"]

    def energy(self, sigma: list[float] | None = None) -> float:
        """Captured share of ‖ΔW‖_F² at the present r, or of another spectrum's."""
        squares = [s * s for s in (self.sigma if sigma is None else sigma)]
        return sum(squares[: self.r]) / sum(squares) if any(squares) else 1.0

    def bytes(self) -> int:
        """Bytes of the two factors, fp32."""
        return 4 * self.r * sum(self.shape)

    def summary(self) -> str:
        return (
            f"rank {self.r} of {len(self.sigma)}: {self.energy():.0%} of the energy, "
            f"of a random matrix {self.energy(self.random):.0%}"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, ax = figure(caption=self.caption or self.alt, alt=self.summary())
        k, blue = range(1, len(self.sigma) + 1), FAMILIES["low rank"]
        ax.semilogy(k, self.sigma, color=blue, alpha=0.5)
        ax.semilogy(k, self.random, "--", color=INK, linewidth=1)
        ax.semilogy(k[: self.r], self.sigma[: self.r], "o", color=blue, markersize=3)
        ax.annotate("random", (k[-1], self.random[-1]), ha="right", va="bottom")
        ax.set(xlabel="index i", ylabel="singular value σᵢ", title=self.summary())
        return fig


def _picture(U: Tensor, Vh: Tensor) -> dict[str, Any]:
    """Evenly spaced rows of U and V in 8 bits, as many as BYTES allow."""
    side = max(2, min(SIDE, BYTES // (2 * U.shape[1])))
    out: dict[str, Any] = {"unit": 1.0}
    for name, vectors in (("left", U), ("right", Vh.T)):
        at = torch.linspace(0, len(vectors) - 1, min(side, len(vectors))).round().long()
        rows = vectors[at]
        unit = float(f"{rows.abs().max() / 127:.6g}")
        whole = (rows / unit).round().clamp(-127, 127).to(torch.int8)
        out[name] = base64.b64encode(whole.numpy().tobytes()).decode()
        out["unit"] *= unit
        out[f"{name}_rows"] = at.tolist()
    return out
