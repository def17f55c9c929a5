"""PRANC: a whole change as a combination of random networks.

Nooralinejad et al., 2022.  arXiv:2206.08464

    ΔW = Σ_i c_i Θ_i    c: (m,), one for the model   Θ_i: (d_out, d_in), from a seed

The paper trains networks from nothing, with c_1 = 1; as an adapter c starts at zero,
and ΔW with it. The bases are uniform with the variance of a layer's start, 1 / (3
d_in), and drawn again in the backward pass: m dense matrices a layer, twice a step,
which is what the method costs.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra import linear
from hra.adapter import WIDE, Adapter
from hra.bases import Combination, draws
from hra.checks import check_count
from hra.law import Law


class Vector(nn.Module):
    """The coefficients c, (m,), that all sites share."""

    def __init__(self, c: nn.Parameter) -> None:
        super().__init__()
        self.c = c


class PRANC(Adapter):
    """Trains m numbers in all, shared by every site. Raises TypeError or ValueError for
    an m that is no integer above 0.
    """

    family = "seeded"

    def __init__(
        self,
        base: nn.Module,
        m: int = 1000,
        *,
        shared: tuple[nn.Module, bool] | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.m = check_count("m", m)
        vector, mine = shared or (Vector(self.new_parameter(m)), True)
        self.common = (vector,)  # in a tuple: one site only has it for a part
        if mine:
            self.vector = vector

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """The site whose name comes first holds the coefficients for all of them."""
        m, first = check_count("m", hyper["m"]), min(sites)
        W = linear.weight(sites[first])
        dtype = torch.promote_types(W.dtype, WIDE)
        c = Vector(nn.Parameter(torch.zeros(m, dtype=dtype, device=W.device)))
        return {n: dict(hyper, site=n, shared=(c, n == first)) for n in sites}

    @property
    def coefficients(self) -> Float[Tensor, " m"]:
        """c, one vector for all sites."""
        c: Any = self.common[0].c
        if hasattr(c, "full_tensor"):
            raise RuntimeError(
                "PRANC has one vector for all layers, and fully_shard has split it "
                "between processes: use DistributedDataParallel."
            )
        return c

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        seed, shape = self.generator("bases").initial_seed(), (self.d_out, self.d_in)
        return Combination.apply(
            self.coefficients, seed, shape, self.d_in**-0.5, self.W0.dtype
        )

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        return {"vector.c": (hyper["m"],)}

    def drawn(self) -> dict[str, Tensor]:
        seed, shape = self.generator("bases").initial_seed(), (self.d_out, self.d_in)
        return {"bases": next(draws(seed, 1, shape, 1.0))}

    @classmethod
    def law(cls, grad: bool, **hyper: Any) -> Law:
        return Law(
            {"c": "m"},
            {"x": "d_in"},
            {"W": "d_out*d_in"} if grad else {},
            shared=("c",),
        )
