"""Figures, tables and widgets: the only home of matplotlib, ipywidgets and anywidget.

What a chapter calls. All of it is right in light and dark, at 390 px, from a file, and
says itself in words; nothing needs a kernel but `live`.

A figure: `caption` and `alt` are required; `look` gives a method its colour, marker and
dash; labels stand at the lines' ends, no legend; the figure ends the cell.

    fig, ax = viz.figure(6, 3, caption="Both fall; LoRA later.", alt="Loss: …")
    ax.plot(steps, losses, label="LoRA, r = 8", **viz.look("LoRA"))
    ax.set(xlabel="step", ylabel="loss (nats per token)"); viz.label_lines(ax); fig

`fig, (left, right) = viz.figure(7, 3, 2, ...)` for two; `fig.caption = ...` later.
`viz.look("SHiRA", variant=1)` tells variants of one method apart (five masks);
"before", "chance" and "random" are baselines, dotted in the page's ink. An unknown
method is an error. `viz.FAMILIES` and `viz.PARTS` are the colours, `viz.INK` the text.

A table: the first cell of a row names it; a pair is mean ± half-width; the verdict is a
sentence that the cell writes from the numbers. Its plain text is rounded, so a cell
tagged `nbval-check-output` may end with it.

    viz.table([["LoRA, r = 8", 147_456, (2.04, 0.01)], ["before", 0, 2.39]],
              {"setting": None, "trained": ",", "bits per character": ".2f"},
              caption="After 60 steps", verdict=f"LoRA gains {gain:.2f} bits.")

Plots ready made: `viz.intervals(rows, xlabel, lines, method=)`, `viz.bills(named)`,
`viz.plot_log(log)`.

A replay of recorded runs, a slider for each axis, the baseline beside; a curve is a
list of values, or of (x, y). `viz.live(..., recorded)` takes a replay (or a log) too:
what a page without a kernel shows in the place of the panel.

    viz.replay(["learning rate", "rank r"],
               {(r["lr"], r["r"]): r["losses"] for r in runs}, ylabel="loss (nats)",
               baseline={"full fine-tuning": losses}, ends={(lr, rank): bits, …})

The widgets; each takes title=, caption=, marks=, presets= and predict=:

    viz.RankSlider(delta, r=8, marks={"r": {"LoRA's 8": 8, "full rank": 192}})
    viz.MaskExplorer({"rand": masks, "grad": masks}, densities, parts=("q", "k", "v"))
    viz.SwitchCost(record["milliseconds"]["1"], d=4096)
    viz.BillCalculator(method="LoRA", presets={"GPT-2": {"model": "GPT-2"}})
    viz.MaskPainter()
    viz.StepSize({("α/r", "SGD"): [(1, 0.4), (8, 0.05)]}, n=192)
    viz.CrossTerms()
    viz.AdapterPad({"rotated": {"LoRA": file}, "inverted": {"LoRA": file}})
    viz.CountExplorer(model="LLaMA-2 7B", vera=256)
    viz.SparseRank(W0[:64, :64], full_change[:64, :64], mask="rand", r=4)
    viz.OperatorExplorer(layer="24 × 24", operator="rotation")
    viz.SubnetExplorer({"8 × 8": score}, order="rows", sixteenths=2)
    viz.RestartExplorer({"cycle": spectra, "permute": spectra}, restarts=3)
    viz.BoundExplorer({"c_attn": (gradient, inputs)}, order="refined", at=4)
    viz.ForgettingMatrix(names, {"LoRA": P, "FullFT": P}, {"LoRA": P0, "FullFT": P0})
    viz.SlotTimeline(period=20, layers=6, steps=240)
    viz.MaskOverTime({"SpIEL, AG": masks}, steps, {"grad": mask}, parts=("q", "k", "v"))
    viz.FamilyTable(rows, {"method": None, "mask": None, "bits": ".3f"}, ["mask"])

A prediction: the reader commits to a number or a choice, then sees the widget with the
guess beside the answer. Once a chapter.

    ask = viz.prediction("How many of 192 directions hold half of the energy?",
                         answer, low=1, high=192, unit="directions")
    viz.RankSlider(delta, predict=ask)

A widget of one's own: subclass `StaticWidget`; `static.py` says how.
"""

from __future__ import annotations

from hra.checks import optional

for _needed in ("matplotlib", "anywidget"):
    optional(_needed, "viz")

# ruff: noqa: E402
from hra.viz.bill import BillCalculator
from hra.viz.bound import BoundExplorer
from hra.viz.count import CountExplorer
from hra.viz.cross import CrossTerms
from hra.viz.draw import DrawDigit
from hra.viz.drift import MaskOverTime
from hra.viz.family import FamilyTable
from hra.viz.forgetting import ForgettingMatrix
from hra.viz.live import Panel as live
from hra.viz.mask import MaskExplorer
from hra.viz.operator import OperatorExplorer
from hra.viz.pad import AdapterPad
from hra.viz.paint import MaskPainter
from hra.viz.plots import bills, intervals, plot_log
from hra.viz.rank import RankSlider
from hra.viz.replay import Replay, replay
from hra.viz.restart import RestartExplorer
from hra.viz.slots import SlotTimeline
from hra.viz.sparserank import SparseRank
from hra.viz.static import StaticWidget, prediction
from hra.viz.step import StepSize
from hra.viz.style import FAMILIES, INK, PARTS, colour, figure, label_lines, look
from hra.viz.subnet import SubnetExplorer
from hra.viz.switch import SwitchCost
from hra.viz.table import table

__all__ = [
    "FAMILIES",
    "INK",
    "PARTS",
    "AdapterPad",
    "BillCalculator",
    "BoundExplorer",
    "CountExplorer",
    "CrossTerms",
    "DrawDigit",
    "FamilyTable",
    "ForgettingMatrix",
    "MaskExplorer",
    "MaskOverTime",
    "MaskPainter",
    "OperatorExplorer",
    "RankSlider",
    "Replay",
    "RestartExplorer",
    "SlotTimeline",
    "SparseRank",
    "StaticWidget",
    "StepSize",
    "SubnetExplorer",
    "SwitchCost",
    "bills",
    "colour",
    "figure",
    "intervals",
    "label_lines",
    "live",
    "look",
    "plot_log",
    "prediction",
    "replay",
    "table",
]
