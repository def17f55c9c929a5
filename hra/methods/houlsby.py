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
    start_tolerance = 5e-3
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
                torch.empty(shape, dtype=torch.float32),
                std=1e-2,
                a=-2e-2,
                b=2e-2,
                generator=self.generator(name),
            )
            setattr(self, name, self.new_parameter(*shape))
            self.get_parameter(name).data.copy_(draw)
        self.b_d = self.new_parameter(r)
        self.b_u = self.new_parameter(self.d_out)

    def weights(
        self,
    ) -> tuple[Float[Tensor, "r {self.d_out}"], Float[Tensor, "{self.d_out} r"]]:
        """(W_d, W_u) in the layer's dtype."""
        return self.like_base(self.W_d), self.like_base(self.W_u)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        h, (W_d, W_u) = self.base(x), self.weights()
        b_d, b_u = self.like_base(self.b_d), self.like_base(self.b_u)
        return h + F.linear(F.gelu(F.linear(h, W_d, b_d)), W_u, b_u)

    @classmethod
    def law(cls, grad: bool, **hyper: Any) -> Law:
        trained = {"W_d": "r*d_out", "b_d": "r", "W_u": "d_out*r", "b_u": "d_out"}
        return Law(
            trained,
            {"y of the base": "d_out", "before gelu": "r", "after gelu": "r"},
            cast={"W_u": "d_out*r"} | ({"W_d": "r*d_out"} if grad else {}),
        )
