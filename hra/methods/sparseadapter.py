"""SparseAdapter: a bottleneck pruned before it trains.  He et al., 2022.
arXiv:2210.04284

    y = h + W_u gelu(W_d h + b_d) + b_u,   h = x W0ᵀ + b            (as Houlsby's)

    W_d: (r, d_out) and W_u: (d_out, r), zero outside K of their 2 r d_out entries

Kept are the entries of the largest score at the start, where W_d and W_u are Houlsby's:
by lot ("rand"), |w| ("magnitude"), or scores that are given, such as SNIP's |w ∂L/∂w|:

    fresh = hra.attach(model, hra.Houlsby, targets=..., r=64)
    fresh(**batch).loss.backward()
    snip = {s: hra.SparseAdapter.snip(a) for s, a in fresh.adapters.items()}
    model = fresh.detach()
    tuned = hra.attach(model, hra.SparseAdapter, targets=..., r=64, scores=snip)

"Large-sparse": c times the r at the share keep = 1 / c, for one budget. `keep` is what
the authors' code calls `sparsity`. It keeps scores above a threshold; here the count is
exact. Of a fresh LoRA every |w| of B and every SNIP score is zero: B is, and with it
the gradient of A.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hra import linear, masks, sparse
from hra.checks import check_choice, check_number
from hra.entries import digest
from hra.law import Law
from hra.methods.houlsby import Houlsby

K_OF_KEEP = "max(1, (4*keep*r*d_out + 1)//2)"  # the nearest whole number


class SparseAdapter(Houlsby):
    """Trains K = `keep` · 2 r d_out weights, `values`, and the biases in full; cannot
    be merged. `index`: their places in the (2 r, d_out) matrix of W_d over W_uᵀ.

    scores: {site: (2 r, d_out)}, ranked once over all sites, or a function of (site,
    the matrix at its start); takes the place of `rule`, which ranks each site by
    itself. Raises TypeError or ValueError for keep outside (0, 1], another rule, scores
    that are all zero, and what Houlsby raises.
    """

    data = ("scores",)
    values: Float[Tensor, " K"]
    index: Int[Tensor, " K"]

    def __init__(
        self,
        base: nn.Module,
        r: int = 32,
        keep: float = 0.25,
        rule: str = "rand",
        scores: Any = None,
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, r, seed=seed, site=site)
        check_choice("rule", rule, ("rand", "magnitude"))
        keep = check_number("keep", keep, 0.0, 1.0, closed_high=True)
        K = masks.budget(2 * r, self.d_out, keep)
        W = torch.cat([self.W_d.detach(), self.W_u.detach().T])
        del self.W_d, self.W_u
        if shared is None and scores is None and rule == "rand":
            shared = masks.rand(2 * r, self.d_out, K, self.generator("mask"))
        elif shared is None:
            S = W.abs() if scores is None else self.score(scores, W, site)
            shared = masks.top(S, K)
        index = masks.check(shared, 2 * r, self.d_out).to(W.device)
        self.register_buffer("index", index)
        self.values = self.new_parameter(len(index))
        self.values.data.copy_(W.flatten()[index])

    @classmethod
    def score(cls, scores: Any, W: Tensor, site: str) -> Tensor:
        """|scores| of a site, (2 r, d_out)."""
        how = "pass scores={s: hra.SparseAdapter.snip(a) for s, a in …}"
        S = masks.given(scores, W, site, "SparseAdapter needs scores", how).abs()
        if not S.any():
            raise ValueError(
                f"the scores of {site or 'the layer'} are all zero and rank nothing: "
                "|w ∂L/∂w| is zero where a factor starts at zero, as LoRA's B does. "
                "Take it of Houlsby's bottleneck, or after a warm-up."
            )
        return S

    @staticmethod
    def snip(a: Houlsby) -> Tensor:
        """|w ∂L/∂w| of a bottleneck after a backward pass, (2 r, d_out)."""
        if a.W_d.grad is None or a.W_u.grad is None:
            raise ValueError(
                f"{a.site or 'the adapter'} has no gradient: call "
                "tuned(**batch).loss.backward() first."
            )
        return torch.cat([a.W_d * a.W_d.grad, (a.W_u * a.W_u.grad).T]).abs().detach()

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        made, r = super().plan(sites, **hyper), hyper["r"]
        if isinstance(hyper["scores"], dict):
            found = {}
            for s, layer in sites.items():
                W = linear.weight(layer)
                like = W.new_empty(2 * r, W.shape[0])
                found[s] = cls.score(hyper["scores"], like, s)
            for s, index in masks.top_of_all(found, hyper["keep"]).items():
                made[s] |= {"shared": index, "scores": None}
        return made

    def weights(
        self,
    ) -> tuple[Float[Tensor, "r {self.d_out}"], Float[Tensor, "{self.d_out} r"]]:
        W = sparse.scatter(self.values, self.index, 2 * self.r, self.d_out)
        W_d, W_uT = self.like_base(W).chunk(2)
        return W_d, W_uT.T

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

    # ---- files
    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        own = {"values": (None,), "mask_hash": (8,)}
        return own | {"b_d": (hyper["r"],), "b_u": (shape[0],)}

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {
            "values": self.values.detach(),
            "b_d": self.b_d.detach(),
            "b_u": self.b_u.detach(),
            "mask_hash": digest(self.index),
            "gaps": sparse.pack(self.index.cpu()),
        }, hyper

    @torch.no_grad()
    def unpack(self, tensors: dict[str, Tensor]) -> None:
        if not torch.equal(tensors["mask_hash"].cpu(), digest(self.index)):
            raise ValueError(f"the mask of {self.site} is not the one of its hash.")
        for name in ("values", "b_d", "b_u"):
            self.get_parameter(name).copy_(tensors[name])

    @classmethod
    def plan_from_file(
        cls,
        sites: dict[str, nn.Module],
        hyper: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> dict[str, dict[str, Any]]:
        """As `plan`, with the entries that the file holds."""
        made = cls.plan(sites, **hyper)
        for s, layer in sites.items():
            if f"{s}.gaps" not in tensors or f"{s}.values" not in tensors:
                raise ValueError(f"the mask of {s} is missing.")
            K = tensors[f"{s}.values"].numel()
            total = 2 * hyper["r"] * linear.weight(layer).shape[0]
            made[s]["shared"] = sparse.unpack(tensors[f"{s}.gaps"], K, total)
        return made

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, K={len(self.index):,} of 2 · {self.r} · d_out"
