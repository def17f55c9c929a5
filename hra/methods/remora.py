"""ReMoRA: MoRA, restarted, each time with other groups.  Jiang et al., 2024.
arXiv:2405.12130, appendix B

    W ← W + P_out M P_inᵀ  every `every` steps; then M = 0 and P_out, P_in change

The published groups are every r̂-th number or r̂ blocks of adjacent ones, in two or
four combinations: P_out and P_in then come from two matrices each, and however many
restarts there are rank ΔW < 2 r̂. Random groups (`regroup="permute"`, ours) have no
such ceiling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hra.checks import check_choice
from hra.law import Law
from hra.methods.mora import MoRA
from hra.restart import Restart

# (of the outputs, of the inputs); the released code counts them 1, 2, 3, 4
FOUR = (("stride",) * 2, ("block",) * 2, ("stride", "block"), ("block", "stride"))
REGROUP = ("cycle", "cycle4", "permute")


class ReMoRA(Restart, MoRA):  # type: ignore[misc]
    """Trains r̂² numbers at a time. regroup="cycle": stride and block in turn;
    "cycle4": the four combinations, the released default; both are for sharing.
    "permute": inputs and outputs are put in another random order at each restart, for
    any operator.

    Raises what MoRA raises, ValueError for a bad `every`, `reset`, `prune`, `rewarm`,
    `regroup`, for a cycle of another operator than sharing.
    """

    def __init__(self, *args: Any, regroup: str = "cycle", **hyper: Any) -> None:
        super().__init__(*args, **hyper)
        self.regroup = check_choice("regroup", regroup, REGROUP)
        if regroup != "permute" and self.operator != "sharing":
            raise ValueError(
                f"regroup={regroup!r} is a cycle of sharing's patterns; "
                f'{self.operator} has none: use regroup="permute".'
            )
        if regroup == "permute":
            for name, d in (("order_out", self.d_out), ("order_in", self.d_in)):
                order = torch.arange(d, device=self.W0.device)
                self.register_buffer(name, order)

    @torch.no_grad()
    def start(self) -> None:
        """M = 0, and where groups are random, others."""
        self.M.zero_()
        for name, order in self.named_buffers():
            if name in ("order_out", "order_in"):
                order.copy_(torch.randperm(len(order), generator=self.generator(name)))

    def groups(self) -> tuple[str, str]:
        if self.regroup == "permute":
            return super().groups()
        cycle = FOUR if self.regroup == "cycle4" else FOUR[:2]
        return cycle[(int(self.rounds) + (self.pattern == "block")) % len(cycle)]

    def orders(self) -> tuple[Tensor | None, Tensor | None]:
        return self._buffers.get("order_out"), self._buffers.get("order_in")

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        for name in ("order_out", "order_in") if self.regroup == "permute" else ():
            order = self.get_buffer(name)
            if not torch.equal(tensors[name].sort().values, torch.arange(len(order))):
                raise ValueError(f"{name} is no permutation of 0 … {len(order) - 1}.")
        super().unpack(tensors)

    @classmethod
    def law(cls, regroup: str = "cycle", **hyper: Any) -> Law:
        own = super().law(**hyper)
        orders = {"order_out": "d_out", "order_in": "d_in"}
        own.int64.update(orders if regroup == "permute" else {})
        return own
