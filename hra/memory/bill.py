"""The bill, its kinds of numbers, and the bill of one layer from its law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hra.adapter import Adapter, Method
from hra.law import Law, evaluate


@dataclass(frozen=True)
class Amount:
    """So many numbers in so many bytes."""

    numbers: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.numbers + other.numbers, self.bytes + other.bytes)


@dataclass(frozen=True)
class Bill:
    """What a step holds. `kept` names the activations: {name: numbers}; two bills are
    equal if their five parts are. `partial` says which activations are counted, if not
    all are; such a bill has no peak.
    """

    weights: Amount = Amount()
    trained: Amount = Amount()
    gradients: Amount = Amount()
    moments: Amount = Amount()
    activations: Amount = Amount()
    kept: Mapping[str, int] = field(default_factory=dict, compare=False)
    partial: str = ""

    @property
    def parts(self) -> dict[str, Amount]:
        return {
            f.name: getattr(self, f.name) for f in fields(self) if f.type == "Amount"
        }

    @property
    def peak(self) -> Amount:
        """Everything that is held at once: the sum of the five parts. ValueError for a
        bill that is partial.
        """
        if self.partial:
            raise ValueError(
                f"the activations of this bill are those of the {self.partial}: it has "
                "no peak. Its parts are in .parts."
            )
        return sum(self.parts.values(), Amount())

    def __str__(self) -> str:
        rows = dict(self.parts) if self.partial else {**self.parts, "peak": self.peak}
        lines = [f"{'':<12}{'numbers':>16}{'bytes':>18}"]
        lines += [f"{k:<12}{a.numbers:>16,}{a.bytes:>18,}" for k, a in rows.items()]
        if self.partial:
            lines.append(f"activations: {self.partial}; no total")
        return "\n".join(lines)

    __repr__ = __str__

    def plot(self, **others: Bill) -> Any:
        """Stacked bars in MiB: this bill, or the named ones beside each other."""
        from hra import viz

        return viz.bills(others or {"": self})


@dataclass(frozen=True)
class Plan:
    """Bytes that a number takes: frozen weight, trained weight, gradient, both moments'
    share, activation.
    """

    frozen: int
    trained: int
    gradient: int
    moment: int
    activation: int

    def under(self, law: Law) -> Plan:
        """This plan where trained numbers are in fp32 or wider (`Law.fp32`): they,
        their gradients and their moments have one size.
        """
        if not law.fp32:
            return self
        wide = max(4, self.activation)
        return Plan(self.frozen, wide, wide, wide, self.activation)


PLANS = {
    "fp64": Plan(8, 8, 8, 8, 8),
    "fp32": Plan(4, 4, 4, 4, 4),
    "bf16": Plan(2, 2, 2, 2, 2),
    # ordinary mixed precision: a trained number twice, moments in fp32: 16 bytes in all
    "bf16, fp32 masters": Plan(2, 2 + 4, 2, 4, 2),
}

# ordinary fine-tuning of the layer itself
PLAIN = Law({"W": "d_out*d_in"}, {"x": "d_in"}, base=False, fp32=False)


def law(
    method: type[Method] | None, grad: bool = True, phase: str = "", **given: Any
) -> Law:
    """The formulas of a method; of ordinary fine-tuning of the layer itself for
    `method=None`.

    grad: whether x needs a gradient. phase: one of `method.phases`. given:
    hyperparameters, and d_out, d_in, site and adapter where the formulas depend on
    them. Raises ValueError for an unknown phase or a method without a law.
    """
    phases = ("",) if method is None else method.phases
    if phase not in phases:
        raise ValueError(
            f"phase={phase!r} does not exist. "
            f"{'Ordinary fine-tuning' if method is None else method.__name__} has "
            f"{', '.join(map(repr, phases))}."
        )
    if method is None:
        return PLAIN
    return method.law(grad=grad, phase=phase, **{**method.hyperparameters({}), **given})


def states_law(method: type[Method]) -> bool:
    """Whether the bill of this method can be derived: one that stands at linear layers
    and says what it keeps.
    """
    try:
        law(method)
    except ValueError:
        return False
    return True


def kept(
    rule: Law, values: Mapping[str, Any], tokens: int, bytes: int
) -> dict[str, Amount]:
    """{activation: its amount} of a law for so many tokens, in a model of so many bytes
    a number.
    """
    cast = rule.cast if rule.fp32 and bytes < 4 else {}
    found = {}
    for part, times, each in (
        (rule.token, tokens, bytes),
        (rule.once, 1, bytes),
        (rule.masters, 1, max(4, bytes)),
        ({f"{k}, cast": f for k, f in cast.items()}, 1, bytes),
    ):
        for name, formula in part.items():
            if numbers := times * evaluate(formula, values):
                found[name] = Amount(numbers, numbers * each)
    return found


def total(formulas: Mapping[str, str], values: Mapping[str, Any]) -> int:
    return sum(evaluate(f, values) for f in formulas.values())


def plan_named(name: str) -> Plan:
    if name not in PLANS:
        raise ValueError(
            f"plan={name!r} does not exist. The plans are {', '.join(PLANS)}."
        )
    return PLANS[name]


def check_sizes(**sizes: Any) -> None:
    """Integers of at least 1; tokens may be 0."""
    for name, value in sizes.items():
        least = int(name != "tokens")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"{name}={value!r} must be an integer of at least {least}."
            )


def cost(
    method: type[Method] | None,
    d_out: int,
    d_in: int,
    tokens: int,
    *,
    plan: str = "fp32",
    bias: bool = False,
    input_grad: bool = True,
    phase: str = "",
    site: str = "",
    adapter: Adapter | None = None,
    **hyper: Any,
) -> Bill:
    """The bill of one adapted d_out × d_in layer for a batch of `tokens` tokens, from
    the formulas alone.

    `cost(hra.LoRA, 768, 768, tokens=1024, r=8).activations.numbers` is 1024 (768 + 8).

    method: a class of `hra.METHODS`, or None for ordinary fine-tuning of the layer's
    own weight. plan: bytes a number, a key of `PLANS`. bias: whether the layer has one.
    input_grad: whether gradients flow on to the layer's input (false for a model's
    first layer). phase: what the method is doing, one of `method.phases`. site: the
    layer's name, where a draw depends on it (SHiRA's random masks). adapter: take the
    sizes of a mask that the weights decide from this one; without it such a mask is
    taken to touch as many columns as it can. Further keywords are the method's
    hyperparameters.

    Raises ValueError for sizes below 1, an unknown plan or phase, TypeError for an
    unknown hyperparameter.
    """
    check_sizes(d_out=d_out, d_in=d_in, tokens=tokens)
    hyper = {} if method is None else method.hyperparameters(hyper)
    rule = law(
        method,
        input_grad,
        phase,
        d_out=d_out,
        d_in=d_in,
        site=site,
        adapter=adapter,
        **hyper,
    )
    p = plan_named(plan).under(rule)
    values = rule.values(d_out=d_out, d_in=d_in, **hyper)
    trained, int64 = total(rule.trained, values), total(rule.int64, values)
    wide = total(rule.wide, values)
    frozen = total(rule.frozen, values) + d_out * bias + d_out * d_in * rule.base
    found = kept(rule, values, tokens, p.activation)
    return Bill(
        Amount(
            frozen + int64 + wide,
            frozen * p.frozen + int64 * 8 + wide * max(4, p.activation),
        ),
        Amount(trained, trained * p.trained),
        Amount(trained, trained * p.gradient),
        Amount(2 * trained, 2 * trained * p.moment),
        sum(found.values(), Amount()),
        {k: a.numbers for k, a in found.items()},
    )
