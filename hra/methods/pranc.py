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

from hra.adapter import Adapter, check_count
from hra.bases import Combination
from hra.law import Law


class PRANC(Adapter):
    """Trains m numbers in all, shared by every site. Raises TypeError or ValueError for
    an m that is no integer above 0.
    """

    family = "seeded"
    coefficients: Float[Tensor, " m"]

    def __init__(
        self,
        base: nn.Module,
        m: int = 1000,
        *,
        shared: nn.Parameter | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.m = check_count("m", m)
        self.coefficients = (
            nn.Parameter(self.W0.new_zeros(m)) if shared is None else shared
        )

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """One vector of coefficients for all sites."""
        some = next(iter(sites.values())).weight
        if not isinstance(some, Tensor):
            raise TypeError(f"{next(iter(sites))} has no weight tensor.")
        shared = nn.Parameter(
            torch.zeros(
                check_count("m", hyper.get("m", 1000)),
                dtype=some.dtype,
                device=some.device,
            )
        )
        return {name: dict(hyper, site=name, shared=shared) for name in sites}

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        seed = self.generator("bases").initial_seed()
        return Combination.apply(
            self.coefficients, seed, (self.d_out, self.d_in), self.d_in**-0.5
        )

    @classmethod
    def law(cls, grad: bool, **hyper: Any) -> Law:
        return Law(
            {"c": "m"},
            {"x": "d_in"},
            {"W": "d_out*d_in"} if grad else {},
            shared=("c",),
        )
