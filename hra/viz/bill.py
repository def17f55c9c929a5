"""The bill calculator: a layer or a public model, a method, and what a training step
holds. No kernel needed.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import traitlets

import hra
from hra import memory
from hra.viz.static import StaticWidget

METHODS = (
    "FullFT",
    "LoRA",
    "LoRAFA",
    "DoRA",
    "VeRA",
    "AsyLoRA",
    "NOLA",
    "BitFit",
    "Houlsby",
    "LinAdapter",
)
PLAIN, LAYER = "ordinary fine-tuning", "one layer"
EXTRA = {"k": 64, "l": 64}  # NOLA's defaults


class BillCalculator(StaticWidget):
    """Stacked bars of the chosen method and of ordinary fine-tuning; the laws are those
    of `hra.memory`.
    """

    _js_path = Path(__file__).with_name("bill.js")
    laws: Any = traitlets.Dict().tag(sync=True)
    plans: Any = traitlets.Dict().tag(sync=True)
    models: Any = traitlets.Dict().tag(sync=True)
    extra: Any = traitlets.Dict(EXTRA).tag(sync=True)
    model = traitlets.Unicode(LAYER).tag(sync=True)
    method = traitlets.Unicode("LoRA").tag(sync=True)
    plan = traitlets.Unicode("fp32").tag(sync=True)
    d_out = traitlets.Int(768).tag(sync=True)
    d_in = traitlets.Int(768).tag(sync=True)
    r = traitlets.Int(8).tag(sync=True)
    tokens = traitlets.Int(1024).tag(sync=True)

    def __init__(self, **kwargs: Any) -> None:
        laws = {PLAIN: asdict(memory.law(None))} | {
            m: asdict(memory.law(hra.METHODS[m])) for m in METHODS if m in hra.METHODS
        }
        models = {
            n: {
                "layers": p.layers,
                "sites": {s: [*shape, p.input(s)] for s, shape in p.sites.items()},
                "parameters": p.parameters,
            }
            for n, p in memory.PRESETS.items()
        }
        kwargs.setdefault(
            "alt",
            "Stacked bars: what a training step holds in bytes, for a method and for "
            "ordinary fine-tuning",
        )
        kwargs.setdefault("title", "What a training step holds")
        kwargs.setdefault(
            "caption",
            "Drag r: watch the trained numbers, their gradients and moments grow, and "
            "stop where the method is no longer cheaper than ordinary fine-tuning.",
        )
        super().__init__(
            laws=laws,
            models=models,
            plans={n: asdict(p) for n, p in memory.PLANS.items()},
            **kwargs,
        )

    def bill(self, method: str | None = None) -> memory.Bill:
        """The bill of the present choices, of `method` or of the chosen one."""
        name = method or self.method
        cls = None if name == PLAIN else hra.METHODS[name]
        hyper: dict[str, Any] = (
            {"r": self.r} if cls is not None and "r" in cls.hyperparameters({}) else {}
        )
        if self.model == LAYER:
            return memory.cost(
                cls, self.d_out, self.d_in, self.tokens, plan=self.plan, **hyper
            )
        return memory.preset_cost(
            self.model, cls, "all", self.tokens, self.plan, **hyper
        )

    def summary(self) -> str:
        a, b = self.bill().peak.bytes, self.bill(PLAIN).peak.bytes
        what = f"{self.method}, r = {self.r}, {self.model}"
        return f"{what}: {a:,} bytes held at once; {PLAIN}: {b:,}"

    def fallback_figure(self) -> Any:
        return self.bill().plot(**{self.method: self.bill(), PLAIN: self.bill(PLAIN)})
