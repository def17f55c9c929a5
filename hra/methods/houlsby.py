"""Adapter^H: a bottleneck after the layer.  Houlsby et al., 2019.  arXiv:1902.00751

    y = h + W_u gelu(W_d h + b_d) + b_u,   h = x W0ᵀ + b

    W_d: (r, d_out)   W_u: (d_out, r)   b_d: (r,)   b_u: (d_out,)

Placed after attention and after the MLP: on GPT-2,
targets=r"attn\\.c_proj|mlp\\.c_proj". Weights start from a normal of deviation 10⁻² cut
at two deviations, biases at zero: near the pretrained model, not on it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import Adapter
from hra.law import Law


class Houlsby(Adapter):
    """Trains 2 r d_out + r + d_out numbers; cannot be merged. Raises TypeError or
    ValueError for a bad r, as LoRA does.
    """

    family = "before LoRA"
    no_delta = (
        "it puts a nonlinear bottleneck behind the layer, which no weight can hold"
    )
    W_d: Float[Tensor, "r d_out"]
    b_d: Float[Tensor, " r"]
    W_u: Float[Tensor, "d_out r"]
    b_u: Float[Tensor, " d_out"]

    def __init__(
        self, base: nn.Module, r: int = 8, *, seed: int = 0, site: str = ""
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.r = self.check_rank(r)
        for name, shape in (("W_d", (r, self.d_out)), ("W_u", (self.d_out, r))):
            draw = nn.init.trunc_normal_(
                torch.empty(shape),
                std=1e-2,
                a=-2e-2,
                b=2e-2,
                generator=self.generator(name),
            )
            setattr(self, name, nn.Parameter(draw.to(self.W0)))
        self.b_d = nn.Parameter(self.W0.new_zeros(r))
        self.b_u = nn.Parameter(self.W0.new_zeros(self.d_out))

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        h = self.base(x)
        return h + F.linear(F.gelu(F.linear(h, self.W_d, self.b_d)), self.W_u, self.b_u)

    @classmethod
    def law(cls, **hyper: Any) -> Law:
        trained = {"W_d": "r*d_out", "b_d": "r", "W_u": "d_out*r", "b_u": "d_out"}
        return Law(
            trained, {"y of the base": "d_out", "before gelu": "r", "after gelu": "r"}
        )
