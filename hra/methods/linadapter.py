"""Adapter^L: a normalised bottleneck after the MLP.

Lin et al., 2020.  arXiv:2004.03829

    y = h + W_u relu(W_d LN(h) + b_d) + b_u,   h = x W0ᵀ + b

    W_d: (r, d_out)   W_u: (d_out, r)   b_d: (r,)   b_u: (d_out,)

Placed after the MLP only: on GPT-2, targets=r"mlp\\.c_proj". Weights start from a
normal of deviation 0.02, biases at zero, the layer norm at weight 1 and bias 0: near
the pretrained model, not on it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import Adapter
from hra.law import Law


class LinAdapter(Adapter):
    """Trains 2 r d_out + r + 3 d_out numbers; cannot be merged. Raises TypeError or
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
            draw = torch.empty(shape).normal_(0.0, 0.02, generator=self.generator(name))
            setattr(self, name, nn.Parameter(draw.to(self.W0)))
        self.b_d = nn.Parameter(self.W0.new_zeros(r))
        self.b_u = nn.Parameter(self.W0.new_zeros(self.d_out))
        self.ln_weight = nn.Parameter(self.W0.new_ones(self.d_out))
        self.ln_bias = nn.Parameter(self.W0.new_zeros(self.d_out))

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        h = self.base(x)
        z = F.layer_norm(h, (self.d_out,), self.ln_weight, self.ln_bias)
        return h + F.linear(F.relu(F.linear(z, self.W_d, self.b_d)), self.W_u, self.b_u)

    @classmethod
    def law(cls, **hyper: Any) -> Law:
        trained = {
            "W_d": "r*d_out",
            "b_d": "r",
            "W_u": "d_out*r",
            "b_u": "d_out",
            "LN": "2*d_out",
        }
        return Law(
            trained,
            {
                "y of the base": "d_out",
                "mean and deviation": "2",
                "LN": "d_out",
                "after relu": "r",
            },
        )
