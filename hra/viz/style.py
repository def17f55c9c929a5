"""The house style: readable in grey, by the colour-blind, on light and dark pages; a method always in one colour."""
from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"before": "#6b6b6b", "FullFT": "#0b0b0b", "LoRA": "#2a78d6", "RsLoRA": "#1b9e77"}
OTHERS = ("#2a78d6", "#d1661f", "#1b9e77", "#7b4fb8", "#b8860b")


def figure(width: float = 6.0, height: float = 3.2, columns: int = 1) -> tuple[Figure, Any]:
    """A figure on white (so that it reads on a dark page too) and its axes."""
    fig = Figure(figsize=(width, height), facecolor="white", layout="constrained")
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
