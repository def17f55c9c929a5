"""The house style: readable in grey, by the colour-blind, on light and dark pages; a
method always in one colour.
"""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "before": "#6b6b6b",
    "FullFT": "#0b0b0b",
    "LoRA": "#2a78d6",
    "RsLoRA": "#1b9e77",
}
OTHERS = ("#2a78d6", "#d1661f", "#1b9e77", "#7b4fb8", "#b8860b")


class Picture(Figure):
    """A figure that a notebook shows, with a text for those who do not see it."""

    alt = ""

    def png(self) -> bytes:
        """The same bytes in every run."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return buffer.getvalue()

    def words(self) -> str:
        """`alt`, or what the axes say of themselves."""
        axes = [
            f"{ax.get_title()} {ax.get_ylabel()} against {ax.get_xlabel()}".strip()
            for ax in self.axes
            if ax.get_xlabel()
        ]
        return self.alt or "Plot: " + "; ".join(axes)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        png = base64.b64encode(self.png()).decode()
        alt = html.escape(self.words(), quote=True)
        src = f"data:image/png;base64,{png}"
        image = f'<img class="hra-figure" alt="{alt}" src="{src}"/>'
        return {"text/html": image, "image/png": png, "text/plain": self.words()}


def figure(
    width: float = 6.0, height: float = 3.2, columns: int = 1
) -> tuple[Picture, Any]:
    """A figure on white (so that it reads on a dark page too) and its axes."""
    fig = Picture(figsize=(width, height), facecolor="white", layout="constrained")
    axes = fig.subplots(1, columns)
    for ax in axes if columns > 1 else [axes]:
        dress(ax)
    return fig, axes


def dress(ax: Axes) -> None:
    """Thin spines and a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_prop_cycle(color=list(OTHERS))


def colour(method: str) -> str:
    """The colour that `method` has on every page."""
    return COLOURS.get(method, OTHERS[1])
