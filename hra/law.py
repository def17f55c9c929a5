"""The law of a method: what a training step holds of one adapted layer, as formulas
that the book prints and its sliders evaluate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Law:
    """Formulas in d_out, d_in, the hyperparameters and `sizes`. `token`: kept for every
    token; `once`: kept whatever their number.

    An activation named "x" is the layer's input: layers that read one tensor keep it
    once. "y" is its output: the next operation may keep it anyway.
    """

    trained: dict[str, str]
    token: dict[str, str] = field(default_factory=dict)
    once: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    wide: dict[str, str] = field(default_factory=dict)  # frozen, 8 bytes each: indices
    full: bool = False  # what trains is in fp32 whatever the base is in
    base: bool = True  # the pretrained W0 (and the bias) stays beside what trains
    shared: bool = False  # `frozen` is one tensor for all layers
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # names in the formulas that no hyperparameter gives


def kept_input(dropout: float, grad: bool) -> dict[str, str]:
    """The input of a product whose weight trains: with dropout a copy, and a mask of
    its size if gradients flow on.
    """
    return (
        {"x": "d_in"} if not dropout else {"d(x)": "d_in"} | dropout_mask(dropout, grad)
    )


def dropout_mask(dropout: float, grad: bool) -> dict[str, str]:
    return {"dropout's mask": "d_in"} if dropout and grad else {}


def evaluate(formula: str, values: Mapping[str, Any]) -> int:
    """A formula of `Law` with numbers for its names."""
    return int(
        eval(formula, {"__builtins__": {}, "min": min, "max": max}, dict(values))
    )
