"""Full fine-tuning, in the frame of the adapters: the baseline of every chapter.

    W = W0 + ΔW        ΔW: (d_out, d_in), every number trained

ΔW starts at zero. Adam on ΔW and Adam on W take the same steps (without weight decay).
W0 stays beside ΔW, so that `detach` is exact: d_out · d_in numbers more than ordinary
fine-tuning holds.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import Adapter
from hra.checks import no_second_derivative
from hra.law import Law


class FullFT(Adapter):
    """Trains all d_out · d_in numbers of the layer's weight; the bias stays frozen."""

    family = "full"
    delta: Float[Tensor, "d_out d_in"]

    def __init__(self, base: nn.Module, *, seed: int = 0, site: str = "") -> None:
        super().__init__(base, seed=seed, site=site)
        self.delta = self.new_parameter(self.d_out, self.d_in)

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        return self.like_base(self.delta)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        """The definition, but W0 + ΔW is summed again in the backward pass instead of
        being kept for it.
        """
        return _Sum.apply(x, self.W0, self.delta, self.bias)

    @classmethod
    def law(cls, **hyper: Any) -> Law:
        return Law({"delta": "d_out*d_in"}, {"x": "d_in"})


class _Sum(torch.autograd.Function):
    """x (W0 + ΔW)ᵀ + b that keeps x alone; W0 and ΔW are kept by reference."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W0: Tensor, delta: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, W0, delta)
        return F.linear(x, W0 + delta.to(W0.dtype), bias)

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, Tensor, None]:
        x, W0, delta = ctx.saved_tensors
        dx = (
            (g @ (W0 + delta.to(W0.dtype)).to(g.dtype)).to(x.dtype)
            if ctx.needs_input_grad[0]
            else None
        )
        rows = g.reshape(-1, g.shape[-1])  # g may be in bf16 (autocast) where x is not
        return (
            dx,
            None,
            (rows.T @ x.reshape(-1, x.shape[-1]).to(g.dtype)).to(delta.dtype),
            None,
        )
