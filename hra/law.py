"""The law of a method: what a training step holds of one adapted layer, as formulas
that the book prints and its sliders evaluate.

A formula is made of names, whole numbers, + - * / // ( ), min( , ), max( , ) and
isqrt( ), the whole part of a square root. It is read by the small parser below, and by
the same one in hra/viz/law.js; nothing in it can run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

SLICE = "x[:, X_S]"


@dataclass(frozen=True)
class Law:
    """Formulas in d_out, d_in, the hyperparameters and `sizes`. `token`: kept for every
    token; `once`: kept whatever their number.

    An activation named "x" is the layer's input: layers that read one tensor keep it
    once, as they do with its columns `SLICE`. "y" is its output: the next operation may
    keep it anyway.

    A subclass's law is its parent's with `dataclasses.replace`; see `Restart.law`.
    """

    trained: dict[str, str]
    token: dict[str, str] = field(default_factory=dict)
    once: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    # frozen too, 8 bytes each: indices, counters
    int64: dict[str, str] = field(default_factory=dict)
    # frozen, in fp32 or wider whatever the base is in: what has been learnt, watched
    wide: dict[str, str] = field(default_factory=dict)
    # trained numbers, gradients and moments in fp32 or wider, whatever the base is in;
    # kept once and as wide: `masters`, what is computed from them; kept once over a
    # half-precision base: `cast`, their copies in its dtype that a product needs
    fp32: bool = True
    masters: dict[str, str] = field(default_factory=dict)
    cast: dict[str, str] = field(default_factory=dict)
    base: bool = True  # the pretrained W0 (and the bias) stays beside what trains
    bias: bool = False  # the layer must have a bias
    # what is one tensor for all layers: names of `trained` or `frozen`
    shared: tuple[str, ...] = ()
    # names in the formulas that no hyperparameter gives; a text is evaluated in turn
    sizes: dict[str, int | str] = field(default_factory=dict)

    def values(self, **given: Any) -> dict[str, Any]:
        """Numbers for all names: the given ones and `sizes`."""
        for name, size in self.sizes.items():
            given[name] = evaluate(size, given) if isinstance(size, str) else size
        return given


def kept_input(dropout: float, grad: bool) -> dict[str, str]:
    """The input of a product whose weight trains: with dropout a copy, and a mask of
    its size if gradients flow on.
    """
    return (
        {"x": "d_in"} if not dropout else {"d(x)": "d_in"} | dropout_mask(dropout, grad)
    )


def dropout_mask(dropout: float, grad: bool) -> dict[str, str]:
    return {"dropout's mask": "d_in"} if dropout and grad else {}


# ---- the language of the formulas

LONGEST, DEEPEST, DIGITS = 1000, 50, 15  # characters, brackets, digits of a number
TOKEN = re.compile(r" *(?:([0-9]+)|([A-Za-z_][A-Za-z0-9_]*)|(//|[-+*/(),]))")
Number = int | float


def evaluate(formula: str, values: Mapping[str, Any]) -> int:
    """A formula of `Law` with numbers for its names; a fraction is cut off.

    `evaluate("r*(d_in + d_out)", {"r": 4, "d_in": 2, "d_out": 3})` is 20.

    Raises ValueError for anything but names with a value, whole numbers, + - * / // ( )
    min max isqrt, for a division by zero, for the root of a negative number, and for
    formulas that are too long or too deep.
    """
    return _Parser(formula, values).result()


@lru_cache(4096)
def _tokens(text: str) -> tuple[list[tuple[str, ...]], str]:
    """(number, name or sign) one after the other, and what could not be read."""
    tokens, position = [], 0
    while found := TOKEN.match(text, position):
        tokens.append(found.groups(""))
        position = found.end()
    return tokens, text[position:].lstrip(" ")


class _Parser:
    """Recursive descent: sum → product → atom, computed as it is read."""

    def __init__(self, formula: str, values: Mapping[str, Any]) -> None:
        self.formula, self.values, self.at, self.depth = formula, values, 0, 0
        if len(formula) > LONGEST:
            raise self.error(f"has {len(formula)} characters; {LONGEST} are allowed")
        self.tokens, rest = _tokens(formula.rstrip(" "))
        if rest:
            raise self.error(f"holds {rest[:1]!r}, which is not allowed")

    def error(self, what: str) -> ValueError:
        shown = self.formula[:60] + ("…" if len(self.formula) > 60 else "")
        return ValueError(
            f"the formula {shown!r} {what}. A formula has names, whole numbers, "
            "+ - * / // ( ), min, max and isqrt."
        )

    def peek(self) -> str:
        return "".join(self.tokens[self.at]) if self.at < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        token = self.peek()
        if token not in expected:
            where = f"{token!r}" if token else "its end"
            raise self.error(f"has {where} where {' or '.join(expected)} is needed")
        self.at += 1
        return token

    def result(self) -> int:
        try:
            total = self.sum()
            finite = math.isfinite(total)
        except ZeroDivisionError:
            raise self.error("divides by zero") from None
        except OverflowError:
            finite = False
        if not finite:
            raise self.error("goes beyond all numbers")
        if self.peek():
            raise self.error(f"has {self.peek()!r} where an operation is needed")
        return int(total)

    def sum(self) -> Number:
        total = self.product()
        while self.peek() in ("+", "-"):
            sign = self.take("+", "-")
            total = total + self.product() if sign == "+" else total - self.product()
        return total

    def product(self) -> Number:
        total = self.atom()
        while self.peek() in ("*", "/", "//"):
            sign, factor = self.take("*", "/", "//"), self.atom()
            if sign == "*":
                total = total * factor
            else:
                total = total / factor if sign == "/" else total // factor
        return total

    def atom(self) -> Number:
        if self.peek() == "(":
            return self.bracket()[0]
        if self.at == len(self.tokens):
            raise self.error("ends where a name or a number is needed")
        number, name, sign = self.tokens[self.at]
        self.at += 1
        if sign:
            raise self.error(f"has {sign!r} where a name or a number is needed")
        if number:
            if len(number) > DIGITS:
                raise self.error(f"has a number of more than {DIGITS} digits")
            return int(number)
        if name in ("min", "max"):
            several = self.bracket(several=True)
            return min(several) if name == "min" else max(several)
        if name == "isqrt":
            square = self.bracket()[0]
            if not 0 <= square < math.inf:
                raise self.error(f"takes the root of {square}")
            return math.isqrt(int(square))
        return self.value(name)

    def bracket(self, several: bool = False) -> list[Number]:
        """( sum ), or with `several` ( sum, sum, … )."""
        self.take("(")
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"is more than {DEEPEST} brackets deep")
        found = [self.sum()]
        if several:
            self.take(",")
            found.append(self.sum())
            while self.peek() == ",":
                self.take(",")
                found.append(self.sum())
        self.take(")")
        self.depth -= 1
        return found

    def value(self, name: str) -> Number:
        if name not in self.values:
            known = ", ".join(
                k
                for k, v in self.values.items()
                if isinstance(v, int | float) and not isinstance(v, bool)
            )
            raise self.error(f"names {name!r}, which has no value (there are: {known})")
        value = self.values[name]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.error(f"names {name!r}, whose value {value!r} is no number")
        return value
