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
from hra.adapter import Method
from hra.viz.static import BASE, StaticWidget, check

PLAIN, LAYER = "ordinary fine-tuning", "one layer"


def _methods() -> dict[str, Any]:
    """{method: its laws for an input without and with a gradient, its usual numbers,
    and the one that a slider sets}, of all methods that state a law.
    """
    plain = [asdict(memory.law(None, grad)) for grad in (False, True)]
    found: dict[str, Any] = {PLAIN: {"laws": plain, "values": {}, "knob": ""}}
    for name, method in hra.METHODS.items():
        if not memory.states_law(method):
            continue
        hyper = method.hyperparameters({})
        numbers = {
            k: v
            for k, v in hyper.items()
            if isinstance(v, int | float) and not isinstance(v, bool)
        }
        found[name] = {
            "laws": [asdict(memory.law(method, grad)) for grad in (False, True)],
            "values": numbers,
            "knob": next((k for k in ("r", "density") if k in numbers), ""),
        }
    return found


def _models() -> tuple[dict[str, Any], list[Any]]:
    """({model: its sizes}, the steps of those whose operations are known)."""
    steps: list[Any] = []
    models = {}
    for name, p in memory.PRESETS.items():
        known = p.architecture and {
            part: [asdict(s) for s in getattr(p.architecture, part)]
            for part in ("begin", "block", "end")
        }
        if known and known not in steps:
            steps.append(known)
        models[name] = {
            "layers": p.layers,
            "sites": {s: [*shape, p.input(s)] for s, shape in p.sites.items()},
            "parameters": p.parameters,
            "buffers": p.buffers,
            "bias": p.bias,
            "context": p.context,
            "images": p.images,
            "letters": dict(p.letters),
            "steps": steps.index(known) if known else None,
        }
    return models, steps


BOUNDS = {  # of the page's sliders
    "d_out": (32, 2**14),
    "d_in": (32, 2**14),
    "r": (1, 512),
    "density": (0.001, 0.1),
    "tokens": (1, 2**16),
    "images": (1, 256),
}


class BillCalculator(StaticWidget):
    """Stacked bars of the chosen method and of ordinary fine-tuning; laws, and what
    the operations between the layers keep, are those of `hra.memory`.

    model: "one layer" of d_out × d_in, or a name of `memory.PRESETS`, with the method
    at every linear layer of its blocks. r: by default the method's own. density: of a
    sparse method's mask, which is taken to touch as many columns as it can. images: the
    batch of a model that reads images, in place of tokens.
    """

    _js_path = Path(__file__).with_name("bill.js")
    methods: Any = traitlets.Dict().tag(sync=True)
    plans: Any = traitlets.Dict().tag(sync=True)
    models: Any = traitlets.Dict().tag(sync=True)
    steps: Any = traitlets.List().tag(sync=True)
    model = traitlets.Unicode(LAYER).tag(sync=True)
    method = traitlets.Unicode("LoRA").tag(sync=True)
    plan = traitlets.Unicode("fp32").tag(sync=True)
    d_out = traitlets.Int(768).tag(sync=True)
    d_in = traitlets.Int(768).tag(sync=True)
    r = traitlets.Int(8).tag(sync=True)
    density = traitlets.Float(0.01).tag(sync=True)
    tokens = traitlets.Int(1024).tag(sync=True)
    images = traitlets.Int(8).tag(sync=True)

    def __init__(self, **kwargs: Any) -> None:
        methods = _methods()
        models, steps = _models()
        kwargs.setdefault(
            "alt",
            "Stacked bars: what a training step holds in bytes, for a method and for "
            "ordinary fine-tuning",
        )
        kwargs.setdefault("title", "What a training step holds")
        kwargs.setdefault(
            "caption",
            "Choose a method and drag its rank, where it has one: watch the trained "
            "numbers, their gradients and moments grow, and stop where the method is "
            "no longer cheaper than ordinary fine-tuning.",
        )
        usual = methods.get(kwargs.get("method", "LoRA"), {"values": {}})["values"]
        kwargs.setdefault("r", usual.get("r", 8))
        super().__init__(
            methods=methods,
            models=models,
            steps=steps,
            plans={n: asdict(p) for n, p in memory.PLANS.items()},
            **kwargs,
        )

    @traitlets.validate("model", "method", "plan")
    def _check_name(self, proposal: Any) -> str:
        if not self.models:
            return proposal["value"]
        known = {
            "model": (LAYER, *self.models),
            "method": tuple(self.methods)[1:],
            "plan": tuple(self.plans),
        }
        return check(proposal, known[proposal["trait"].name])

    @traitlets.validate(*BOUNDS)
    def _check_bounds(self, proposal: Any) -> Any:
        return check(proposal, *BOUNDS[proposal["trait"].name])

    @classmethod
    def script(cls) -> str:
        parts = (BASE, cls._js_path.with_name("law.js"), cls._js_path)
        return "\n".join(p.read_text(encoding="utf-8") for p in parts)

    def bill(self, method: str | None = None) -> memory.Bill:
        """The bill of the present choices, of `method` or of the chosen one.

        Raises ValueError where the method cannot be: biases that are not there.
        """
        name = method or self.method
        cls: type[Method] | None = None if name == PLAIN else hra.METHODS[name]
        knob = self.methods[name]["knob"]
        hyper: dict[str, Any] = {knob: getattr(self, knob)} if knob else {}
        if cls is not None and "mask" in cls.hyperparameters({}):
            hyper["mask"] = "weight"  # a drawn one would be another at each shape
        if self.model == LAYER:
            return memory.cost(
                cls,
                self.d_out,
                self.d_in,
                self.tokens,
                plan=self.plan,
                bias=self.methods[name]["laws"][1]["bias"],
                **hyper,
            )
        model = self.models[self.model]
        tokens = self.images * model["context"] if model["images"] else self.tokens
        return memory.preset_cost(self.model, cls, "all", tokens, self.plan, **hyper)

    def summary(self) -> str:
        knob = self.methods[self.method]["knob"]
        choice = [self.method, f"{knob} = {getattr(self, knob):g}" if knob else ""]
        what = ", ".join(filter(None, [*choice, self.model]))
        a, b = self.bill(), self.bill(PLAIN)
        if a.partial:
            return f"{what}: the activations are those of the {a.partial}; no total"
        return f"{what}: {a.peak.bytes:,} bytes held at once; {PLAIN}: {b.peak.bytes:,}"

    def fallback_figure(self) -> Any:
        return self.bill().plot(**{self.method: self.bill(), PLAIN: self.bill(PLAIN)})
