"""Checks of arguments, each written once, and the undoing of what was half done."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.autograd.function import once_differentiable

T = TypeVar("T")


def check_seed(seed: Any) -> int:
    """`seed` if it is an integer; TypeError if not."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} must be an integer.")
    return seed


def check_bool(name: str, value: Any) -> bool:
    """`value` if it is True or False; TypeError if not."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False.")
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`; ValueError if not."""
    if value not in choices:
        there = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name}={value!r} does not exist; there are {there}.")
    return value


def check_count(name: str, value: Any, why: str = "", low: int = 1) -> int:
    """`value` if it is an integer of at least `low`; TypeError or ValueError if not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; an integer of at least "
            f"{low} is needed{why}."
        )
    if value < low:
        raise ValueError(
            f"{name}={value} is out of range: at least {low} is needed{why}."
        )
    return value


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float,
    closed_low: bool = False,
    closed_high: bool = False,
) -> float:
    """`value` as a float if it lies in (low, high), with the ends that are closed.

    Raises TypeError or ValueError if not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; a number is needed."
        )
    inside = (
        low < value < high
        or (closed_low and value == low)
        or (closed_high and value == high)
    )
    if math.isnan(value) or not inside:
        opens, closes = "[" if closed_low else "(", "]" if closed_high else ")"
        raise ValueError(
            f"{name}={value!r} is out of range: {name} must lie in {opens}{low:g}, "
            f"{high:g}{closes}."
        )
    return float(value)


def optional(module: str, extra: str) -> Any:
    """The module `module`, which `pip install 'hra[extra]'` brings; where it is missing
    a ModuleNotFoundError says so.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"this needs {e.name}, which is not installed: pip install 'hra[{extra}]'",
            name=e.name,
        ) from e


def or_undo(work: Callable[[], T], undo: Callable[[], Any]) -> T:
    """work(); after any exception in it `undo`, and the exception again.

    `undo` must lead to the same end from wherever it starts: when it is itself
    interrupted, it runs once more. (No `with` block: an interrupt between its last line
    and its exit would pass it by.)
    """
    try:
        return work()
    except BaseException:
        try:
            undo()
        except BaseException:
            undo()
            raise
        raise


def no_second_derivative(backward: Callable[..., T]) -> Callable[..., T]:
    """For the hand-written backward pass of an autograd function that is not linear in
    its inputs: create_graph=True is refused at once.

    torch's own `once_differentiable` refuses only where the incoming gradient needs a
    graph; of a loss that is linear in the output (a gradient penalty) it would leave
    out a part of the second derivative without a word.
    """
    once = once_differentiable(backward)

    @functools.wraps(backward)
    def checked(*args: Any) -> T:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "create_graph=True: this backward pass is once_differentiable, it has "
                "no second derivative. Use a method that is computed by its "
                "definition, such as LoRA, or SHiRA with form='delta'."
            )
        return once(*args)

    return checked
