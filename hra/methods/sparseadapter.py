"""SparseAdapter: an adapter pruned before it trains.  He et al., 2022.
arXiv:2210.04284

    y = h + W_u gelu(W_d h + b_d) + b_u,   h = x W0ᵀ + b            (as Houlsby's)
    y = x (W0 + (α / r) B A)ᵀ + b                                   (as LoRA's)

    W_d: (r, d_out), W_u: (d_out, r), or A: (r, d_in), B: (d_out, r), zero outside K of
    their entries

which are those of the largest score, where both start as Houlsby's or LoRA's: by lot
("rand"), by lot with each factor's share as the sum of its sides ("er", Erdős-Rényi),
|w| ("magnitude"), or scores that are given, such as SNIP's |w ∂L/∂w|:

    fresh = hra.attach(model, hra.Houlsby, targets=..., r=64)
    fresh(**batch).loss.backward()
    snip = {s: hra.SparseAdapter.snip(a) for s, a in fresh.adapters.items()}
    model = fresh.detach()
    tuned = hra.attach(model, hra.SparseAdapter, targets=..., r=64, scores=snip)

or GraSP's w ⊙ H g, `hra.SparseAdapter.grasp(fresh, lambda: fresh(**batch).loss)`.
"Large-sparse": c times the r at the share keep = 1 / c, for one budget. `keep` is what
the authors' code calls `sparsity`. It keeps scores above a threshold; here the count is
exact.

Of a fresh LoRA every |w| of B and every SNIP score is zero: B is, and with it the
gradient of A. Its scores are taken after some steps of training (a warm-up), from which
the mask is kept and the numbers are not: A and B start again as LoRA's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hra.law import Law
from hra.methods.houlsby import Houlsby
from hra.methods.lora import LoRA
from hra.pruned import Pruned

# the nearest whole number
K_OF_KEEP = "max(1, (4*keep*r*d_out + 1)//2)"
K_OF_BOTH = "max(1, (2*keep*r*(d_in + d_out) + 1)//2)"


class SparseAdapter(Pruned, Houlsby):
    """Trains K = `keep` · 2 r d_out weights, `values`, and the biases in full; cannot
    be merged. `index`: their places in the (2 r, d_out) matrix of W_d over W_uᵀ.

    scores: {site: (2 r, d_out)}, ranked once over all sites, or a function of (site,
    the matrix at its start); takes the place of `rule`, which ranks each site by
    itself. Raises TypeError or ValueError for keep outside (0, 1], another rule, scores
    that are all zero, and what Houlsby raises.
    """

    pair = ("W_d", "W_u")

    def __init__(
        self,
        base: nn.Module,
        r: int = 32,
        keep: float = 0.25,
        rule: str = "rand",
        scores: Any = None,
        *,
        shared: Tensor | None = None,
        counts: tuple[int, int] | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, seed=seed, site=site)
        self.prune(keep, rule, scores, shared, counts)

    @classmethod
    def sides(cls, r: int, d_out: int, d_in: int) -> tuple[int, int]:
        return d_out, d_out

    def weights(
        self,
    ) -> tuple[Float[Tensor, "r {self.d_out}"], Float[Tensor, "{self.d_out} r"]]:
        return self.pruned()

    @classmethod
    def law(cls, grad: bool, adapter: Any = None, **hyper: Any) -> Law:
        whole = super().law(grad, **hyper)
        trained = {k: whole.trained[k] for k in ("b_d", "b_u")}
        return replace(
            whole,
            trained={"values": "K"} | trained,
            once={"W_d, W_u": "2*r*d_out"},
            int64={"index": "K"},
            cast={},
            sizes={"K": K_OF_KEEP if adapter is None else len(adapter.index)},
        )

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        own = {"values": (None,), "mask_hash": (8,)}
        return own | {"b_d": (hyper["r"],), "b_u": (shape[0],)}


class SparseAdapterLoRA(Pruned, LoRA):
    """Trains K = `keep` · r (d_in + d_out) numbers, `values`; `index`: their places in
    the (r, d_in + d_out) matrix of A beside Bᵀ.

    scores: {site: (r, d_in + d_out)} from a LoRA of the same r after a warm-up
    (`SparseAdapterLoRA.snip`, `.grasp`), ranked once over all sites, or a function of
    (site, the matrix at its start). rule: "rand" or "er". Raises TypeError or
    ValueError for keep outside (0, 1], a mask that leaves nothing of a factor, as
    "magnitude" and the scores of a fresh LoRA do, and what LoRA raises.
    """

    pair, axis = ("A", "B"), 1

    def __init__(
        self,
        base: nn.Module,
        r: int = 32,
        alpha: float = 16.0,
        dropout: float = 0.0,
        keep: float = 0.25,
        rule: str = "rand",
        scores: Any = None,
        *,
        shared: Tensor | None = None,
        counts: tuple[int, int] | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, alpha, dropout, seed=seed, site=site)
        if rule == "magnitude" and scores is None and shared is None:
            raise ValueError(
                "rule='magnitude' ranks nothing of B, which starts at zero: |w| of a "
                "fresh LoRA keeps entries of A alone, and ΔW = B A stays zero. Pass "
                "scores of a LoRA after a warm-up."
            )
        self.prune(keep, rule, scores, shared, counts)

    @classmethod
    def sides(cls, r: int, d_out: int, d_in: int) -> tuple[int, int]:
        return d_in, d_out

    def check_kept(self, index: Tensor) -> None:
        of_A = index % (self.d_in + self.d_out) < self.d_in
        if of_A.all() or not of_A.any():
            left, other = "BA" if of_A.all() else "AB"
            raise ValueError(
                f"the mask of {self.site or 'the layer'} keeps entries of {other} "
                f"alone and nothing of {left}: ΔW = B A would stay zero. Of a fresh "
                "LoRA every |w| of B is zero, and every w ∂L/∂w: take scores after a "
                "warm-up."
            )

    def factors(
        self,
    ) -> tuple[Float[Tensor, "r {self.d_in}"], Float[Tensor, "{self.d_out} r"]]:
        return self.pruned()

    @classmethod
    def law(cls, dropout: float, grad: bool, adapter: Any = None, **hyper: Any) -> Law:
        return replace(
            super().law(dropout, grad, **hyper),
            trained={"values": "K"},
            once={"A, B": "r*(d_in + d_out)"},
            int64={"index": "K"},
            cast={},
            sizes={"K": K_OF_BOTH if adapter is None else len(adapter.index)},
        )

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        return {"values": (None,), "mask_hash": (8,)}
