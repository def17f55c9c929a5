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
    start_tolerance = 0.05
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
            draw = torch.empty(shape, dtype=torch.float32).normal_(
                0.0, 0.02, generator=self.generator(name)
            )
            setattr(self, name, self.new_parameter(*shape))
            self.get_parameter(name).data.copy_(draw)
        self.b_d = self.new_parameter(r)
        self.b_u = self.new_parameter(self.d_out)
        self.ln_weight = self.new_parameter(self.d_out)
        nn.init.ones_(self.ln_weight)
        self.ln_bias = self.new_parameter(self.d_out)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        h = self.base(x)
        W_d, b_d, W_u, b_u = map(
            self.like_base, (self.W_d, self.b_d, self.W_u, self.b_u)
        )
        norm = self.like_base(self.ln_weight), self.like_base(self.ln_bias)
        z = F.layer_norm(h, (self.d_out,), *norm)
        return h + F.linear(F.relu(F.linear(z, W_d, b_d)), W_u, b_u)

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
            cast={"LN": "2*d_out", "W_d": "r*d_out", "W_u": "d_out*r"},
        )
