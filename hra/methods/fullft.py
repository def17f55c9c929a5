"""Full fine-tuning, in the frame of the adapters: the baseline of every chapter.

    W = W0 + ΔW        ΔW: (d_out, d_in), every number trained

ΔW starts at zero. Adam on ΔW and Adam on W take the same steps (without weight decay).
"""
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import Adapter


class FullFT(Adapter):
    """Trains all d_out · d_in numbers of the layer's weight; the bias stays frozen."""

    delta: Float[Tensor, "d_out d_in"]

    def __init__(self, base: nn.Module, *, seed: int = 0, site: str = "") -> None:
        super().__init__(base, seed=seed, site=site)
        self.delta = nn.Parameter(torch.zeros_like(self.W0, memory_format=torch.contiguous_format))

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        return self.delta
