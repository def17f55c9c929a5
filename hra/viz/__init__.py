"""Figures and widgets: the only home of matplotlib, ipywidgets and anywidget."""

from __future__ import annotations

from typing import Any

from hra.viz.bill import BillCalculator
from hra.viz.live import Panel as live
from hra.viz.mask import MaskExplorer
from hra.viz.rank import RankSlider
from hra.viz.static import StaticWidget, prediction
from hra.viz.style import OTHERS, colour, figure
from hra.viz.switch import SwitchCost

__all__ = [
    "BillCalculator",
    "MaskExplorer",
    "RankSlider",
    "StaticWidget",
    "SwitchCost",
    "bills",
    "colour",
    "figure",
    "intervals",
    "live",
    "plot_log",
    "prediction",
]


def plot_log(log: Any, unit: str = "bits a character") -> Any:
    """The loss of each step and, where there are evaluations, their curve beside it."""
    both = bool(log.evaluations)
    fig, axes = figure(7.5 if both else 5.0, 2.8, 2 if both else 1)
    ax = axes[0] if both else axes
    ax.plot(
        [s["step"] for s in log.steps], log.losses, color=colour("LoRA"), linewidth=1
    )
    ax.set(xlabel="step", ylabel="loss (nats a token)")
    if both:
        axes[1].plot(
            [e["step"] for e in log.evaluations],
            [e["value"] for e in log.evaluations],
            "o-",
            color=colour("LoRA"),
        )
        axes[1].set(xlabel="step", ylabel=unit)
    return fig


def intervals(
    rows: dict[str, tuple[float, float]],
    xlabel: str,
    lines: dict[str, float] | None = None,
) -> Any:
    """One row a setting: mean and half-width of its interval over the seeds; `lines`
    are drawn across.
    """
    fig, ax = figure(6.5, 0.42 * len(rows) + 1.1)
    for i, (name, (mean, half)) in enumerate(rows.items()):
        ax.errorbar(
            mean, -i, xerr=half, fmt="o", capsize=4, color=colour(name.split()[0])
        )
    for name, value in (lines or {}).items():
        ax.axvline(value, color=colour(name), linestyle="--", label=name)
    ax.set_yticks([-i for i in range(len(rows))], list(rows))
    ax.set_xlabel(xlabel)
    fig.alt = f"Intervals of {xlabel}: " + "; ".join(
        f"{n} {m:.2f} plus or minus {h:.2f}" for n, (m, h) in rows.items()
    )
    if lines:
        ax.legend(frameon=False)
    return fig


def bills(named: dict[str, Any]) -> Any:
    """Stacked bars in MiB, one a bill (`hra.memory.Bill`)."""
    fig, ax = figure(7.0, 0.45 * len(named) + 1.3)
    left = [0.0] * len(named)
    for i, part in enumerate(next(iter(named.values())).parts):
        width = [b.parts[part].bytes / 2**20 for b in named.values()]
        ax.barh(
            [-k for k in range(len(named))],
            width,
            left=left,
            label=part,
            color=OTHERS[i],
            edgecolor="white",
            linewidth=0.5,
            hatch=("", "//", "", "..", "")[i],
        )
        left = [a + b for a, b in zip(left, width, strict=True)]
    ax.set_yticks([-k for k in range(len(named))], list(named))
    ax.set_xlabel("held at once (MiB)")
    ax.legend(
        frameon=False,
        ncols=5,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        fontsize=8,
    )
    fig.alt = "Bytes held at once: " + "; ".join(
        f"{n}: "
        + ", ".join(f"{k} {a.bytes / 2**20:.2f} MiB" for k, a in b.parts.items())
        for n, b in named.items()
    )
    return fig
