"""Restart: fold ΔW into the layer, begin the adapter afresh, forget its moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear
from hra.adapter import check_count, forget
from hra.law import Law


class Restart:
    """Mixin for an adapter that has `reset()`.  After n restarts rank(W − W0) ≤ n r.

    The layer holds W0 + Σ ΔW of the rounds that are over, `pristine` the pretrained
    weight, for `detach` and for the file.
    """

    def __init__(
        self, *args: Any, every: int = 1000, rewarm: int = 0, **hyper: Any
    ) -> None:
        super().__init__(*args, **hyper)
        self.every, self.rewarm = check_count("every", every), rewarm
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.register_buffer(
            "pristine", linear.weight(self.base).detach().clone(), persistent=False
        )

    @property
    def W0(self) -> Tensor:
        return (
            self.pristine if "pristine" in self._buffers else linear.weight(self.base)
        )

    def delta_weight(self) -> Tensor:
        return linear.weight(self.base) - self.W0 + super().delta_weight()

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if step % self.every == 0:
            with torch.no_grad():
                linear.weight(self.base).add_(super().delta_weight())
            self.rounds += 1
            self.reset()
            forget(optimizer, *self.parameters())

    def rate(self, step: int) -> float:
        since = step % self.every
        return (
            since / self.rewarm if step >= self.every and since < self.rewarm else 1.0
        )

    def generator(self, what: str = "") -> torch.Generator:
        return super().generator(
            f"{what} {int(self.rounds)}"
            if "rounds" in self._buffers and self.rounds
            else what
        )

    def release(self, model: nn.Module) -> None:
        with torch.no_grad():
            linear.weight(self.base).copy_(self.pristine)
        super().release(model)

    def own_tensors(self) -> dict[str, Tensor]:
        return super().own_tensors() | {"past": linear.weight(self.base).data}

    @classmethod
    def law(cls, *_: Any, **given: Any) -> Law:
        """The method's own, and the pretrained weight beside the one that the layer
        holds.
        """
        own = super().law(**given)
        return replace(
            own,
            frozen=own.frozen | {"pristine": "d_out*d_in"},
            int64=own.int64 | {"rounds": "1"},
        )
