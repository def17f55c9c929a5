"""hra: High-Rank Adapters (not PEFT's HRAConfig, which is Householder Reflection
Adaptation).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

from hra import io, schedules
from hra.adapter import Adapter, Method
from hra.entries import Entries
from hra.methods import METHODS
from hra.model import Adapted, attach, load
from hra.probe import Probe, fisher, probe
from hra.switch import Switch, fuse
from hra.train import Log, fit

_LAZY = (
    "analysis",
    "continual",
    "data",
    "memory",
    "studies",
    "testing",
    "viz",
    "zoo",
)  # they bring transformers, matplotlib and widgets: only when used

__all__ = [
    "METHODS",
    "Adapted",
    "Adapter",
    "Entries",
    "Log",
    "Method",
    "Probe",
    "Switch",
    "attach",
    "fisher",
    "fit",
    "fuse",
    "io",
    "load",
    "probe",
    "schedules",
    *_LAZY,
    *METHODS,
]


def __getattr__(name: str) -> Any:
    if name in METHODS:
        return METHODS[name]
    if name in _LAZY:
        return import_module(f"hra.{name}")
    raise AttributeError(
        f"hra has no attribute {name!r}. Methods: {', '.join(METHODS)}."
    )


def __dir__() -> list[str]:
    return sorted(__all__)
