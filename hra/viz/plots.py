"""The plots that several chapters draw: a run, intervals over seeds, bills."""

from __future__ import annotations

import math
from typing import Any

from hra.viz.style import INK, PARTS, Picture, colour, figure, look


def plot_log(
    log: Any,
    unit: str = "bits per character",
    *,
    method: str = "LoRA",
    caption: str = "",
) -> Picture:
    """The loss of each step and, where there are evaluations, their curve beside it."""
    both = bool(log.evaluations)
    steps = len(log.steps)
    alt = "No step was taken."
    if steps:
        first, last = _words(log.losses[0]), _words(log.losses[-1])
        alt = f"Loss of {steps} steps, from {first} to {last} nats per token."
    if both:
        first, end = (_words(log.evaluations[i]["value"]) for i in (0, -1))
        alt += f" Beside it {unit}: {first} at first, {end} at the end."
    fig, axes = figure(
        7.5 if both else 5.0,
        2.8,
        2 if both else 1,
        caption=caption
        or f"The loss of each training step{' and ' * both}{unit * both}.",
        alt=alt,
    )
    ax = axes[0] if both else axes
    ax.plot(
        [s["step"] for s in log.steps], log.losses, color=colour(method), linewidth=1
    )
    ax.set(xlabel="step", ylabel="loss (nats per token)")
    if both:
        axes[1].plot(
            [e["step"] for e in log.evaluations],
            [e["value"] for e in log.evaluations],
            "o-",
            color=colour(method),
        )
        axes[1].set(xlabel="step", ylabel=unit)
    return fig


def _words(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "not finite"


def intervals(
    rows: dict[str, tuple[float, float]],
    xlabel: str,
    lines: dict[str, float] | None = None,
    *,
    method: str | None = None,
    caption: str = "",
) -> Picture:
    """One row a setting: mean and half-width of its interval over the seeds; `lines`
    are drawn across.

    A row's first word is its method ("LoRA r=8"), unless `method` says that all rows
    are of one.
    """
    said = "; ".join(f"{n} {m:.2f} plus or minus {h:.2f}" for n, (m, h) in rows.items())
    for name, value in (lines or {}).items():
        said += f"; {name} {value:.2f}"
    fig, ax = figure(
        6.5,
        0.42 * len(rows) + 1.1,
        caption=caption or f"{xlabel[:1].upper()}{xlabel[1:]}.",
        alt=f"Intervals of {xlabel}: {said}",
    )
    for i, (name, (mean, half)) in enumerate(rows.items()):
        of = look(method or name.split()[0])
        ax.errorbar(
            mean, -i, xerr=half, fmt=of["marker"] or "|", capsize=4, color=of["color"]
        )
    for name, value in (lines or {}).items():
        ax.axvline(value, **look(name) | {"marker": ""})
        ax.annotate(
            name,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            annotation_clip=False,
        )
    ax.set_yticks([-i for i in range(len(rows))], list(rows))
    ax.set_xlabel(xlabel)
    return fig


def bills(named: dict[str, Any], *, caption: str = "") -> Picture:
    """Stacked bars in MiB, one a bill (`hra.memory.Bill`)."""
    alt = "Bytes held at once: " + "; ".join(
        f"{n}: "
        + ", ".join(f"{k} {a.bytes / 2**20:.2f} MiB" for k, a in b.parts.items())
        for n, b in named.items()
    )
    fig, ax = figure(
        7.0,
        0.45 * len(named) + 1.3,
        caption=caption or "What a training step holds at once, by its five parts.",
        alt=alt,
    )
    left = [0.0] * len(named)
    for i, part in enumerate(next(iter(named.values())).parts):
        width = [b.parts[part].bytes / 2**20 for b in named.values()]
        ax.barh(
            [-k for k in range(len(named))],
            width,
            left=left,
            label=part,
            color=PARTS[part],
            edgecolor=INK,
            linewidth=0.4,
            hatch=("", "//", "", "\\\\", "")[i],
        )
        left = [a + b for a, b in zip(left, width, strict=True)]
    ax.set_yticks([-k for k in range(len(named))], list(named))
    ax.set_xlabel("held at once (MiB)")
    ax.grid(visible=False, axis="y")
    ax.legend(
        frameon=False,
        ncols=5,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        fontsize=8,
    )
    return fig
