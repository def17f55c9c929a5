"""BitFit: train the biases alone.  Ben Zaken et al., 2021.  arXiv:2106.10199

    y = x W0ᵀ + b0 + Δb        Δb: (d_out,), starts at zero

No weight changes: ΔW = 0. The backward pass needs nothing of the forward pass.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra import linear
from hra.adapter import Adapter
from hra.law import Law


class BitFit(Adapter):
    """Trains the layer's d_out biases. Raises ValueError for a layer without a bias."""

    family = "before LoRA"
    needs_bias = True
    delta_b: Float[Tensor, " d_out"]

    def __init__(self, base: nn.Module, *, seed: int = 0, site: str = "") -> None:
        b = linear.bias(base)
        if linear.is_linear(base) and b is None:
            raise ValueError(
                f"BitFit trains biases, and the layer {site or type(base).__name__} "
                "has none: choose targets "
                "that have one."
            )
        super().__init__(base, seed=seed, site=site)
        self.delta_b = self.new_parameter(self.d_out)

    @property
    def bias(self) -> Tensor:
        """b0 + Δb."""
        b: Any = self.base.bias
        return b + self.like_base(self.delta_b)

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        return torch.zeros_like(self.W0)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        return self.base(x) + self.like_base(self.delta_b)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A plain layer with the bias b0 + Δb."""
        return linear.with_weight(self.base, self.W0, self.bias)

    def entries(self) -> tuple[Tensor | None, Tensor]:
        raise TypeError(
            "BitFit changes the bias and no weight: there is no ΔW to add up. "
            "Merge it, or switch to its file."
        )

    @classmethod
    def law(cls, **hyper: Any) -> Law:
        return Law({"delta_b": "d_out"}, bias=True)
