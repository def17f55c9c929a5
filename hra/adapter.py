"""The central abstraction: a paper is a subclass, and what it overrides is what the
paper contributes.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra import linear
from hra.law import Law


class Adapter(nn.Module):
    """A frozen linear layer x W0ᵀ + b with a trainable change ΔW.

        y = x (W0 + ΔW)ᵀ + b    x: (..., d_in)   W0, ΔW: (d_out, d_in)   y: (..., d_out)

    Override  `delta_weight`  (always)  the paper's equation;
              `forward`       (often)   the same map, computed the cheap way;
    and, only when the paper has something to say there:
              `param_groups`, `observe`, `after_step`, `plan`.

    `seed` and `site` (the layer's dotted name) together seed whatever is drawn: two
    layers never share a draw.
    """

    no_delta = ""  # why there is no ΔW, for a method that has none
    family = ""  # of the literature: gives the method its colour (see `hra.viz`)
    whole_model = False  # whether the model itself is the layer (see `hra.whole`)
    # what a step may be, as far as the bill depends on it: `law` gets the present one
    phases: tuple[str, ...] = ("",)
    phase = ""

    def __init__(self, base: nn.Module, *, seed: int = 0, site: str = "") -> None:
        super().__init__()
        if isinstance(base, Adapter):
            raise TypeError(
                f"the layer already holds a {type(base).__name__} adapter; detach or "
                "merge it first."
            )
        if not linear.is_linear(base):
            raise TypeError(
                f"{type(self).__name__} needs a linear layer (nn.Linear or Conv1D), "
                f"got {type(base).__name__}."
            )
        check_seed(seed)
        self.seed, self.site = seed, site
        self.base = base.requires_grad_(False)
        self.d_out, self.d_in = linear.weight(base).shape
        self.training = base.training
        if type(self).observe is not Adapter.observe:
            self.register_forward_hook(_show)

    @property
    def W0(self) -> Tensor:
        """The frozen weight, (d_out, d_in) however the layer stores it."""
        return linear.weight(self.base)

    @property
    def weight(self) -> Tensor:
        """W0 + ΔW as the layer stores it, for code that reads a weight without calling
        the layer (MultiheadAttention).
        """
        W = self.W0 + self.delta_weight()
        return W.T if linear.is_conv1d(self.base) else W

    @property
    def bias(self) -> Tensor | None:
        return linear.bias(self.base)

    # ---- the map
    # -------------------------------------------------------------------------------
    def delta_weight(self) -> Tensor:
        """ΔW, (d_out, d_in), differentiable in the adapter's parameters."""
        why = self.no_delta or "it does not define delta_weight"
        raise TypeError(
            f"{type(self).__name__} has no ΔW: {why}. It cannot be merged; keep the "
            "adapter in the model, or "
            "detach it."
        )

    def forward(self, x: Tensor) -> Tensor:
        """The definition. A subclass may override it with a cheaper equal; tests hold
        the two together.
        """
        W = self.W0 + self.delta_weight()
        return F.linear(x, W, self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A plain layer, of the base's own type, that computes the same map."""
        delta = self.delta_weight()
        return linear.with_weight(self.base, self.W0 + delta)

    @torch.no_grad()
    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """{parameter of the base: (positions in its storage or None for all, the merged
        values there)}: what a switch writes.
        """
        new = dict(self.merged().named_parameters())
        return {
            n: (None, new[n].data.view(-1))
            for n, p in self.base.named_parameters()
            if not torch.equal(p, new[n])
        }

    @torch.no_grad()
    def entries(self) -> tuple[Tensor | None, Tensor]:
        """ΔW in float64 as (flat index or None for all, values): what a sum of adapters
        adds up.
        """
        return None, self.delta_weight().double()

    @torch.no_grad()
    def absorb_(self) -> None:
        """W0 ← W0 + ΔW, in place (a restart; `detach` then no longer gives the
        pretrained model back).
        """
        self.W0.add_(self.delta_weight())

    # ---- training
    # ------------------------------------------------------------------------------
    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer; `lr` is the learning rate of the method's
        ordinary parameters.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def observe(self, G: Tensor) -> None:
        """See the dense gradient ∂L/∂W, (d_out, d_in), during backward, whatever
        `forward` does; x is kept for it.
        """

    def observing(self) -> bool:
        """Whether `observe` is to see the present step (a method that looks now and
        then says so here).
        """
        return True

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Restart, relocate, drop, grow."""

    def begin(self, steps: int) -> None:
        """Training is about to start, for so many steps in all."""

    def rate(self, step: int) -> float:
        """What multiplies this adapter's learning rate after `step` steps."""
        return 1.0

    # ---- model level
    # ---------------------------------------------------------------------------
    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """Keyword arguments of each site's adapter; override to share tensors or decide
        globally.
        """
        return {name: dict(hyper, site=name) for name in sites}

    def install(self, model: nn.Module) -> None:
        """Take the layer's place in the model."""
        model.set_submodule(self.site, self)

    def release(self, model: nn.Module) -> None:
        """Put the layer back in its place, as it was."""
        self.base.train(self.training)
        model.set_submodule(self.site, self.base)

    def base_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """What of the model the adapter depends on, under the names by which a file's
        fingerprint knows it.
        """
        return {self.site: self.W0}

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, hyperparameters) as a file holds them."""
        return self.own_tensors(), hyper

    @classmethod
    def plan_from_file(
        cls,
        sites: dict[str, nn.Module],
        hyper: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> dict[str, dict[str, Any]]:
        """As `plan`, for adapters that a file's tensors are about to fill."""
        return cls.plan(sites, **hyper)

    @classmethod
    def law(cls, *_: Any, **given: Any) -> Law:
        """What a training step holds of one layer (`hra.memory`).

        `given`, all by keyword: the hyperparameters; grad, whether x needs a gradient;
        phase, one of `phases` (a method that observes now and then keeps x then); and,
        where they are known, d_out, d_in, site and the adapter itself. A subclass
        changes what `super().law(**given)` says with `dataclasses.replace`.
        """
        raise ValueError(
            f"{cls.__name__} states no law. Override `law`, or measure it: "
            "hra.memory.measure."
        )

    @classmethod
    def hyperparameters(cls, given: dict[str, Any]) -> dict[str, Any]:
        """All of the method's hyperparameters, those not `given` at their defaults.
        Keyword-only ones but `seed` are the library's.

        Raises TypeError for a name that does not exist.
        """
        known: dict[str, Any] = {}
        for c in cls.__mro__:
            if "__init__" in vars(c):
                own = inspect.signature(c.__init__).parameters
                planned = (
                    {n for n, p in own.items() if p.kind is p.KEYWORD_ONLY} - {"seed"}
                    if "seed" in own
                    else set()
                )
                known = {
                    n: p.default
                    for n, p in own.items()
                    if n not in ("self", "base")
                    and n not in planned
                    and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
                } | known
                if not any(
                    p.kind is p.VAR_KEYWORD for p in own.values()
                ):  # a mixin passes the rest on
                    break
        for name in given:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__} has no hyperparameter {name!r}. It has: "
                    f"{', '.join(known)}."
                )
        return known | given

    # ---- helpers
    # -------------------------------------------------------------------------------
    def own_tensors(self) -> dict[str, Tensor]:
        """The adapter's own state, without the base: what a file holds."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("base.")}

    def generator(self, what: str = "") -> torch.Generator:
        """A CPU generator that depends on seed, site and `what` alone: the same draw on
        every device and dtype.
        """
        return generator(self.seed, self.site, what)

    def check_rank(self, r: Any) -> int:
        """`r` if it is an integer in 1 … min(d_out, d_in)."""
        top = min(self.d_out, self.d_in)
        if isinstance(r, bool) or not isinstance(r, int):
            raise TypeError(
                f"r={r!r} is a {type(r).__name__}; the rank is an integer from 1 to "
                f"{top} for this layer."
            )
        if not 1 <= r <= top:
            raise ValueError(
                f"r={r} is out of range: 1 to min(d_out, d_in) = {top} for this "
                f"{self.d_out} × {self.d_in} "
                f"layer{f' ({self.site})' if self.site else ''}."
            )
        return r

    def extra_repr(self) -> str:
        return f"d_out={self.d_out}, d_in={self.d_in}"


def _show(adapter: Adapter, args: tuple, y: Tensor) -> None:
    if y.requires_grad and adapter.observing():
        linear.on_gradient(args[0], y, adapter.observe)


def generator(seed: int, site: str = "", what: str = "") -> torch.Generator:
    """A CPU generator for one draw; `site=""` for what a whole model shares."""
    digest = hashlib.sha256(f"{seed}\0{site}\0{what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} must be an integer.")


def check_count(name: str, value: Any, why: str = "") -> int:
    """`value` if it is an integer of at least 1; TypeError or ValueError if not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; an integer of at least 1 "
            f"is needed{why}."
        )
    if value < 1:
        raise ValueError(f"{name}={value} is out of range: at least 1 is needed{why}.")
    return value


def check_number(
    name: str, value: Any, low: float, high: float, closed_low: bool = False
) -> float:
    """`value` as a float if it lies in (low, high), or [low, high) with `closed_low`;
    TypeError or ValueError if not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; a number is needed."
        )
    inside = low <= value < high if closed_low else low < value < high
    if math.isnan(value) or not inside:
        bracket = "[" if closed_low else "("
        raise ValueError(
            f"{name}={value!r} is out of range: {name} must lie in {bracket}{low:g}, "
            f"{high:g})."
        )
    return float(value)


def forget(optimizer: torch.optim.Optimizer, *params: Tensor) -> None:
    """Drop the optimizer's moments for `params`, as if they had just been created."""
    for p in params:
        optimizer.state.pop(p, None)
