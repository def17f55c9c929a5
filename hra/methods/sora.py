"""SoRA: Sparse Low-rank Adaptation.  Ding et al., 2023.  arXiv:2311.11696

    ΔW = (α / r) B diag(g) A    A: (r, d_in)   g: (r,)   B: (d_out, r)

After every step of the optimizer each gate takes the proximal step of ξ |g|,

    g ← T_ξ(g) = sign(g) max(|g| − ξ, 0)

so that gates that the loss does not hold up go to zero, and with them a rank: each
layer keeps as many as it needs. A starts as LoRA's, B at zero, g from N(0, 1).

The released code writes T_ξ as three assignments one after the other, of which the last
also zeroes what the first two have just moved below ξ: it zeroes all of |g| < 2 ξ. It
also adds λ mean |g|, over the gates of all layers, to the loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hra.checks import check_number
from hra.law import Law
from hra.methods.lora import LoRA


class SoRA(LoRA):
    """Trains r (d_in + d_out + 1) numbers; a file holds the ranks that are left.

    xi: ξ, by which a gate shrinks in each step. lam: λ of the released code's other
    term (its scripts: 10), here 0. Raises TypeError or ValueError for ξ < 0 or λ < 0,
    and what LoRA raises.
    """

    g: Float[Tensor, " r"]
    left: Tensor  # how many gates are not zero

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        xi: float = 3e-4,
        lam: float = 0.0,
        *,
        layers: int = 1,
        live: int | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        self.xi = check_number("xi", xi, 0.0, float("inf"), closed_low=True)
        self.lam = check_number("lam", lam, 0.0, float("inf"), closed_low=True)
        self.layers = layers  # over which λ's mean is taken
        n = r if live is None else live
        self.g = self.new_parameter(n)
        if live is None:
            self.g.data.copy_(torch.randn(r, generator=self.generator("g")))
        else:  # a file is about to fill them
            self.A = self.new_parameter(n, self.d_in)
            self.B = self.new_parameter(self.d_out, n)
            self.g.data.fill_(1.0)
        self.register_buffer("left", torch.tensor(n, device=self.g.device))

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        A, B = self.factors()
        return (B * (self.scale * self.like_base(self.g))) @ A

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        A, B = self.factors()
        h = F.linear(F.dropout(x, self.dropout, self.training), A)
        h = h * (self.scale * self.like_base(self.g))
        return F.linear(x, self.frozen, self.bias) + F.linear(h, B)

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        made = super().plan(sites, **hyper)
        return {s: given | {"layers": len(sites)} for s, given in made.items()}

    def penalty(self) -> Tensor | float:
        """This layer's part of λ mean |g|; a gate that a file has left out is zero."""
        if not self.lam:
            return 0.0
        return self.lam * self.g.abs().sum() / (self.r * self.layers)

    @torch.no_grad()
    def after_step(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """The proximal step; `rank`: how many gates are left, if that has changed."""
        if hasattr(self.g, "full_tensor"):
            raise RuntimeError(
                "SoRA counts the gates of a layer, and fully_shard has split them "
                "between processes: use DistributedDataParallel."
            )
        self.g.copy_(F.softshrink(self.g, self.xi))
        before, now = int(self.left), int(self.g.count_nonzero())
        self.left.fill_(now)
        return None if now == before else {"rank": now, "pruned": before - now}

    @classmethod
    def law(cls, adapter: Any = None, **hyper: Any) -> Law:
        low = super().law(**hyper)
        return replace(
            low,
            trained=low.trained | {"g": "r"},
            token=low.token | {"g Ax": "r"},
            once={"scaled g": "r"},
            int64={"left": "1"},
            sizes={} if adapter is None else {"r": len(adapter.g)},
        )

    # ---- files: the ranks that are left
    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        return {"A": (None, shape[1]), "B": (shape[0], None), "g": (None,)}

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        left = self.g.detach() != 0
        A, B, g = self.A.detach(), self.B.detach(), self.g.detach()
        return {"A": A[left], "B": B[:, left], "g": g[left]}, hyper

    @torch.no_grad()
    def unpack(self, tensors: dict[str, Tensor]) -> None:
        if not bool((tensors["g"] != 0).all()):
            raise ValueError(f"{self.site} has a gate of zero, which no file holds.")
        for name in ("A", "B", "g"):
            self.get_parameter(name).copy_(tensors[name])

    @classmethod
    def plan_from_file(
        cls,
        sites: dict[str, nn.Module],
        hyper: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> dict[str, dict[str, Any]]:
        """As `plan`, with as many ranks as the file holds of each site."""
        made = cls.plan(sites, **hyper)
        for s in sites:
            n = tensors[f"{s}.g"].numel() if f"{s}.g" in tensors else -1
            if not 0 <= n <= hyper["r"]:
                raise ValueError(
                    f"{s} holds {max(n, 0)} gates; from 0 to r={hyper['r']} there are."
                )
            made[s]["live"] = n
        return made

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, xi={self.xi:g}, left={len(self.g)}"
