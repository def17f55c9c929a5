"""How many numbers LoRA, VeRA, NOLA and PRANC train on a public model, and how many
random ones they need for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from hra import memory
from hra.viz.static import StaticWidget

KNOBS = {  # trait: (method, its hyperparameter, the largest exponent of 2)
    "lora": ("LoRA", "r", 10),
    "vera": ("VeRA", "r", 12),
    "nola": ("NOLA", "k", 12),
    "pranc": ("PRANC", "m", 16),
}
RANK = 8  # of NOLA's factors


class CountExplorer(StaticWidget):
    """Bars on a logarithmic scale: what each method trains on every linear layer of the
    blocks of `model`, a name of `memory.PRESETS`, and what it draws at random in one
    step (NOLA and PRANC, forward and backward) or keeps frozen (VeRA, LoRA: nothing).

    lora, vera: ranks; nola: k = l at rank 8; pranc: m. Raises TraitError or ValueError
    for a value that no slider has.
    """

    _js_path = Path(__file__).with_name("count.js")
    models: Any = traitlets.Dict().tag(sync=True)  # {model: [layers, [[d_out, d_in]]]}
    model = traitlets.Unicode("GPT-2 small").tag(sync=True)
    lora = traitlets.Int(1).tag(sync=True)
    vera = traitlets.Int(256).tag(sync=True)
    nola = traitlets.Int(64).tag(sync=True)
    pranc = traitlets.Int(1024).tag(sync=True)

    def __init__(self, **kwargs: Any) -> None:
        models = {
            name: [p.layers, [list(shape) for shape in p.sites.values()]]
            for name, p in memory.PRESETS.items()
        }
        kwargs.setdefault("title", "Numbers trained, and numbers drawn for it")
        kwargs.setdefault(
            "alt", "Trained and random numbers of LoRA, VeRA, NOLA and PRANC"
        )
        super().__init__(models=models, **kwargs)

    @traitlets.validate("model")
    def _check_model(self, proposal: Any) -> str:
        if proposal["value"] not in memory.PRESETS:
            raise ValueError(
                f"model={proposal['value']!r} is not among {', '.join(memory.PRESETS)}."
            )
        return proposal["value"]

    @traitlets.validate(*KNOBS)
    def _check(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        most = 2 ** KNOBS[name][2]
        if not 1 <= value <= most:
            raise ValueError(f"{name}={value} is out of range: 1 to {most:,}.")
        return value

    def facts(self) -> dict[str, dict[str, int]]:
        """{method: trained, random, frozen}: numbers on the whole model; `random` are
        drawn in every step, `frozen` are drawn once and kept.
        """
        layers, shapes = self.models[self.model]
        ends = layers * sum(m + n for m, n in shapes)
        out = layers * sum(m for m, _ in shapes)
        dense = layers * sum(m * n for m, n in shapes)
        high, wide = max(m for m, _ in shapes), max(n for _, n in shapes)
        sites = layers * len(shapes)
        return {
            "LoRA": {"trained": self.lora * ends, "random": 0, "frozen": 0},
            "VeRA": {
                "trained": out + sites * self.vera,
                "random": 0,
                "frozen": self.vera * (high + wide),
            },
            "NOLA": {
                "trained": 2 * self.nola * sites,
                "random": 2 * self.nola * RANK * ends,
                "frozen": layers * RANK * sum(n for _, n in shapes),
            },
            "PRANC": {
                "trained": self.pranc,
                "random": 2 * self.pranc * dense,
                "frozen": 0,
            },
        }

    def summary(self) -> str:
        said = ", ".join(f"{k} {f['trained']:,}" for k, f in self.facts().items())
        return f"{self.model}: trained {said}"

    def fallback_figure(self) -> Any:
        from hra.viz.style import colour, figure

        fig, ax = figure(6.5, 2.4, caption=self.caption or self.alt, alt=self.summary())
        for name, f in self.facts().items():
            ax.barh(name, f["trained"], color=colour(name))
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlabel("numbers trained")
        return fig
