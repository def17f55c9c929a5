"""MoRA's operators: which chunk of the input reaches which chunk of the output, and
where one number of M then stands in ΔW.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from hra.methods.mora import OPERATORS, side
from hra.viz.static import StaticWidget

LAYERS = {  # (d_out, d_in)
    "4 × 4, by hand": (4, 4),
    "24 × 24": (24, 24),
    "16 × 40, wide": (16, 40),
    "40 × 16, tall": (40, 16),
    "GPT-2 tiny, c_attn": (576, 192),
    "GPT-2, attention's c_proj": (768, 768),
    "GPT-2, the MLP's c_proj": (768, 3072),
    "LLaMA-2 7B, q": (4096, 4096),
}


class OperatorExplorer(StaticWidget):
    """The chunks of `layer`, a name of `LAYERS`, under an operator of MoRA; `r` is the
    rank of the LoRA that it matches (no more than min(d_out, d_in) counts).

    Raises TraitError or ValueError for another layer or operator, r outside 1 … 256.
    """

    _js_path = Path(__file__).with_name("operator.js")
    layers: Any = traitlets.Dict().tag(sync=True)
    layer = traitlets.Unicode("4 × 4, by hand").tag(sync=True)
    operator = traitlets.Enum(OPERATORS, "sharing").tag(sync=True)
    r = traitlets.Int(1).tag(sync=True)
    fold = traitlets.Bool(False).tag(sync=True)

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("title", "Where the numbers of M go")
        kwargs.setdefault("alt", "The chunks of ΔW that hold a copy of M")
        super().__init__(layers={k: list(v) for k, v in LAYERS.items()}, **kwargs)

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Any) -> str:
        if proposal["value"] not in LAYERS:
            raise ValueError(
                f"layer={proposal['value']!r} is not among {', '.join(LAYERS)}."
            )
        return proposal["value"]

    @traitlets.validate("r")
    def _check_r(self, proposal: Any) -> int:
        if not 1 <= proposal["value"] <= 256:
            raise ValueError(f"r={proposal['value']} is out of range: 1 to 256.")
        return proposal["value"]

    def facts(self) -> dict[str, Any]:
        """r̂; what MoRA and LoRA train; the shape of K and its ones; the rank of ΔW for
        an M of full rank; the share of the inputs that reach the output. None where r̂
        is too large for truncation or too small for rotation.
        """
        d_out, d_in = LAYERS[self.layer]
        r = min(self.r, d_out, d_in)
        n = side(self.operator, "floor", r=r, d_out=d_out, d_in=d_in)
        found: dict[str, Any] = {"r": r, "r_hat": n, "lora": r * (d_out + d_in)}
        least = min(d_out, d_in)
        if n < 1 or (self.operator == "truncation" and n > least):
            return found | {"trained": None}
        outs, ins = -(-d_out // n), -(-d_in // n)
        chunks = self.operator in ("decoupling", "rotation")
        ones = {"truncation": 1, "sharing": outs * ins}.get(self.operator)
        cut = chunks and outs < ins and not self.fold
        reach = min(1.0, outs * n / d_in) if cut else 1.0
        return found | {
            "trained": n * n,
            "n_out": outs,
            "n_in": ins,
            "ones": ones or (outs if cut else max(outs, ins)),
            "rank": least if chunks else min(n, least),
            "reach": n / d_in if self.operator == "truncation" else reach,
        }

    def summary(self) -> str:
        f = self.facts()
        if f["trained"] is None:
            return f"{self.operator} is not possible at {self.layer}, r = {f['r']}"
        return (
            f"{self.operator}, {self.layer}, r = {f['r']}: M of {f['r_hat']} × "
            f"{f['r_hat']}, rank {f['rank']}, {f['reach']:.0%} of the inputs"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import colour, figure

        fig, ax = figure(6.5, 2.4, caption=self.caption or self.alt, alt=self.summary())
        f = self.facts()
        ax.barh("LoRA", f["r"], color=colour("LoRA"))
        ax.barh("MoRA", f.get("rank", 0), color=colour("MoRA"))
        ax.set_xlabel("rank of ΔW at equal numbers")
        return fig
