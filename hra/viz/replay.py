"""Recorded runs, replayed: a slider for each axis of the record, the curve of the run
that it points at, the others faint, the baseline beside. No kernel needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import traitlets

from hra.viz.static import LIMIT, StaticWidget, check
from hra.viz.style import INK, colour, family, figure

POINTS = (60, 40, 30, 20, 12, 8)
FREE = 20_000  # bytes of titles and the like are not what is reduced


def _number(value: Any) -> float | None:
    """Four digits; None for what is not finite: the run had diverged."""
    y = float(value)
    return float(f"{y:.4g}") if math.isfinite(y) else None


def _pairs(curve: Sequence[Any]) -> list[tuple[float, float | None]]:
    """(x, y) of a curve given as (x, y) or as y alone, which counts from 1."""
    if not len(curve):
        raise ValueError("a curve needs at least one point.")
    if isinstance(curve[0], (list, tuple)):
        return [(float(f"{x:.6g}"), _number(y)) for x, y in curve]
    return [(float(k), _number(y)) for k, y in enumerate(curve, 1)]


def _thin(points: list[Any], most: int) -> list[Any]:
    """At most so many of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return points
    n = len(points) - 1
    return [points[round(k * n / (most - 1))] for k in range(most)]


class Replay(StaticWidget):
    """See `replay`, which makes it."""

    _js_path = Path(__file__).with_name("replay.js")
    axes: Any = traitlets.List().tag(sync=True)  # [name, values]
    grids: Any = traitlets.List().tag(sync=True)  # the lists of x that occur
    curves: Any = traitlets.List().tag(sync=True)  # row-major: None or [grid, y]
    ends: Any = traitlets.List().tag(sync=True)  # row-major: None or a number
    baselines: Any = traitlets.List().tag(sync=True)  # {name, curve, end}
    words: Any = traitlets.Dict().tag(sync=True)  # xlabel, ylabel, end, family
    at0 = traitlets.Int(0).tag(sync=True)
    at1 = traitlets.Int(0).tag(sync=True)
    at2 = traitlets.Int(0).tag(sync=True)
    along = traitlets.Int(0).tag(sync=True)  # the axis that was moved last

    @traitlets.validate("at0", "at1", "at2", "along")
    def _check(self, proposal: Any) -> int:
        if not (n := len(self.axes)):
            return proposal["value"]
        if (name := proposal["trait"].name) == "along":
            return check(proposal, 0, n - 1)
        axis = int(name[2:])
        return check(proposal, 0, len(self.axes[axis][1]) - 1 if axis < n else 0)

    @property
    def place(self) -> int:
        """Where the chosen run stands in `curves`."""
        k = 0
        for i, (_, values) in enumerate(self.axes):
            k = k * len(values) + getattr(self, f"at{i}")
        return k

    def choice(self) -> str:
        """ "learning rate 0.01, rank r 8"."""
        return ", ".join(
            f"{name} {values[getattr(self, f'at{i}')]}"
            for i, (name, values) in enumerate(self.axes)
        )

    def facts(self) -> dict[str, Any]:
        """Of the chosen run: whether it was recorded, the first and the last point of
        its curve, its end, and how far the end is above each baseline's.
        """
        curve, end = self.curves[self.place], self.ends[self.place]
        gaps = {
            b["name"]: end - b["end"]
            for b in self.baselines
            if end is not None and b["end"] is not None
        }
        return {
            "recorded": curve is not None,
            "first": curve[1][0] if curve else None,
            "last": curve[1][-1] if curve else None,
            "end": end,
            "gaps": gaps,
        }

    def summary(self) -> str:
        f = self.facts()
        if not f["recorded"]:
            return f"{self.choice()}: not recorded"
        end = "diverged" if f["end"] is None else f"{f['end']:.2f}"
        return f"{self.choice()}: {self.words['end']} {end}"

    def fallback_figure(self) -> Any:
        fig, ax = figure(caption=self.caption or self.alt, alt=self.summary())
        of = [(self.curves[self.place], self.words["colour"], self.choice(), "-")]
        of += [(b["curve"], INK, b["name"], "--") for b in self.baselines]
        for curve, color, name, dash in of:
            if curve:
                y = [math.nan if v is None else v for v in curve[1]]
                ax.plot(self.grids[curve[0]], y, dash, color=color, label=name)
        ax.set(xlabel=self.words["xlabel"], ylabel=self.words["ylabel"])
        if any(curve for curve, *_ in of):
            ax.legend(frameon=False, fontsize=8)
        return fig


def replay(
    axes: Sequence[str] | Mapping[str, Sequence[Any]],
    curves: Mapping[Any, Sequence[Any]],
    *,
    ylabel: str,
    xlabel: str = "step",
    baseline: Mapping[str, Any] | None = None,
    ends: Mapping[Any, float] | None = None,
    end: str = "",
    method: str = "LoRA",
    start: Mapping[str, Any] | None = None,
    marks: Mapping[str, Mapping[str, Any]] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    **kwargs: Any,
) -> Replay:
    """Sliders over recorded curves.

    axes      names of one to three axes, or {name: its values in order}
    curves    {values of the axes: curve}; a curve is a list of y, or of (x, y); what is
              not among them was not recorded, and the page says so
    baseline  {name: curve, or a number to end at, or (curve, number)}
    ends      {values of the axes: the number the run is judged by}, and `end`, what it
              is ("bits per character, test"); without them the curve's last value
    start, marks, presets   name the axes: start={"rank r": 8},
              presets={"too fast": {"learning rate": 0.03}}

    Curves are thinned until the page's state is under 50 KB; the points kept are
    recorded ones.
    """
    names = list(axes)
    if not 1 <= len(names) <= 3:
        raise ValueError(f"one to three axes are needed, given {len(names)}: {names}.")
    keyed = {k if isinstance(k, tuple) else (k,): v for k, v in curves.items()}
    if not keyed:
        raise ValueError("there is no curve to replay.")
    for key in keyed:
        if len(key) != len(names):
            raise ValueError(f"the curve of {key} needs a value for each of {names}.")
    values = _values(names, axes, keyed)
    judged = {k if isinstance(k, tuple) else (k,): v for k, v in (ends or {}).items()}
    if judged and (missing := keyed.keys() - judged.keys()):
        raise ValueError(f"ends has no number for the curve of {sorted(missing)[0]}.")

    def axis(name: str) -> str:
        if name not in values:
            raise ValueError(f"{name!r} is no axis; there are {', '.join(values)}.")
        return f"at{names.index(name)}"

    def index(name: str, value: Any) -> int:
        if value not in values[name]:
            raise ValueError(f"{name} has no {value!r}; there are {values[name]}.")
        return values[name].index(value)

    def place(of: Mapping[str, Any]) -> dict[str, int]:
        return {axis(name): index(name, value) for name, value in of.items()}

    runs = {key: _pairs(curve) for key, curve in keyed.items()}
    base = {}
    for name, given in (baseline or {}).items():
        both = isinstance(given, tuple) and len(given) == 2
        curve, number = given if both else (given, None)
        if isinstance(curve, (int, float)):
            curve, number = None, curve
        base[name] = (_pairs(curve) if curve is not None else None, number)
    chosen = dict(zip(names, next(iter(keyed)), strict=True)) | dict(start or {})
    first = place(chosen)
    order = list(product(*values.values()))
    for most in POINTS:
        grids: list[list[float]] = []

        def thin(
            points: Any, most: int = most, grids: list[list[float]] = grids
        ) -> list[Any] | None:
            if points is None:
                return None
            x, y = map(list, zip(*_thin(points, most), strict=True))
            if x not in grids:
                grids.append(x)
            return [grids.index(x), y]

        reduced = [thin(runs.get(key)) for key in order]
        last = [run[-1][1] if (run := runs.get(key)) else None for key in order]
        state = {
            "axes": [[n, list(v)] for n, v in values.items()],
            "curves": reduced,
            "ends": [
                _number(judged[k]) if k in judged else None if judged else end_
                for k, end_ in zip(order, last, strict=True)
            ],
            "baselines": [
                {
                    "name": name,
                    "curve": thin(points),
                    "end": _number(number)
                    if number is not None
                    else points[-1][1]
                    if points and not judged
                    else None,
                }
                for name, (points, number) in base.items()
            ],
            "grids": grids,
        }
        if len(json.dumps(state)) < LIMIT - FREE or most == POINTS[-1]:
            break
    kwargs.setdefault("title", "Recorded runs")
    kwargs.setdefault(
        "caption",
        f"Move {' and '.join(names)}: the curve is the recorded run, the others are "
        "faint, the baseline is dashed; at the right, where runs end along the axis "
        "that was moved last.",
    )
    kwargs.setdefault("alt", f"{ylabel} of recorded runs against {xlabel}")
    widget = Replay(
        **state,
        **first,
        words={
            "xlabel": xlabel,
            "ylabel": ylabel,
            "end": end or (f"{ylabel} at the end" if not judged else "end"),
            "family": family(method),
            "colour": colour(method),
        },
        marks={
            axis(name): {mark: index(name, v) for mark, v in of.items()}
            for name, of in (marks or {}).items()
        },
        presets={name: place(of) for name, of in (presets or {}).items()},
        **kwargs,
    )
    if len(json.dumps(widget.public_state())) > LIMIT:
        raise ValueError(
            f"{len(order)} runs are over {LIMIT:,} bytes even with {POINTS[-1]} points "
            "each; leave out an axis, or some of its values."
        )
    return widget


def _values(
    names: list[str], axes: Any, keyed: Mapping[tuple[Any, ...], Any]
) -> dict[str, list[Any]]:
    """The values of each axis: as given, else those that occur, numbers sorted."""
    values = {}
    for i, name in enumerate(names):
        seen = list(dict.fromkeys(key[i] for key in keyed))
        if isinstance(axes, Mapping):
            values[name] = list(axes[name])
            if extra := [v for v in seen if v not in values[name]]:
                raise ValueError(
                    f"a curve has {name} {extra[0]!r}; there are {values[name]}."
                )
        else:
            number = all(isinstance(v, (int, float)) for v in seen)
            values[name] = sorted(seen) if number else seen
    return values
