"""NOLA: LoRA's factors as combinations of random bases.

Koohpayegani et al., 2023.  arXiv:2310.02556

    ΔW = (α / r) B A,   A = A0 + Σ_i α_i A_i: (r, d_in),   B = Σ_j β_j B_j: (d_out, r)

i = 1 … k, j = 1 … l. The bases are uniform in ±1/√k (±1/√l) and come from a seed; A0 is
a frozen start like LoRA's. The coefficients start at zero, so ΔW = 0; without A0 both
gradients would vanish there for ever.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import uniform
from hra.bases import Combination, draws
from hra.checks import check_count
from hra.law import Law, kept_input
from hra.methods.lora import LoRA


class NOLA(LoRA):
    """Trains k + l numbers, whatever the size of the layer. Raises what LoRA raises,
    and the same for k, l below 1.
    """

    A: Any  # made of bases, see `factors`; no parameters of their own
    B: Any
    alpha_: Float[Tensor, " k"]
    beta_: Float[Tensor, " l"]
    A0: Tensor  # (r, d_in)

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        k: int = 64,
        l: int = 64,  # noqa: E741
        alpha: float = 16.0,
        dropout: float = 0.0,
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        self.k, self.l = check_count("k", k), check_count("l", l)
        del self.A, self.B  # combinations take their place
        self.alpha_ = self.new_parameter(k)
        self.beta_ = self.new_parameter(l)
        A0 = uniform((r, self.d_in), self.d_in**-0.5, self.generator("A0"))
        self.register_buffer("A0", A0.to(self.W0), persistent=False)

    def factors(
        self,
    ) -> tuple[Float[Tensor, "r {self.d_in}"], Float[Tensor, "{self.d_out} r"]]:
        """(A, B), the bases drawn anew."""
        a, b = (self.generator(name).initial_seed() for name in ("A_i", "B_j"))
        dtype, r = self.A0.dtype, self.r
        A = Combination.apply(self.alpha_, a, (r, self.d_in), self.k**-0.5, dtype)
        B = Combination.apply(self.beta_, b, (self.d_out, r), self.l**-0.5, dtype)
        return self.A0 + A, B

    def drawn(self) -> dict[str, Tensor]:
        first = {"A_i": (self.r, self.d_in), "B_j": (self.d_out, self.r)}
        return {"A0": self.A0} | {
            n: next(draws(self.generator(n).initial_seed(), 1, shape, 1.0))
            for n, shape in first.items()
        }

    @classmethod
    def law(cls, dropout: float, grad: bool, **hyper: Any) -> Law:
        factors = {"B": "d_out*r"} | ({"A": "r*d_in"} if grad else {})
        return Law(
            {"alpha": "k", "beta": "l"},
            kept_input(dropout, grad) | {"Ax": "r"},
            factors,
            {"A0": "r*d_in"},
        )
