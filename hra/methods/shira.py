"""SHiRA: Sparse High Rank Adapters.  Bhardwaj et al., 2024.  arXiv:2406.13175

    W = W0 + α S    S: (d_out, d_in), zero outside a fixed mask of K entries

S_k = δ_k is trained and starts at zero.

Masks (App. B): struct, rand, weight (largest |W0|), grad (largest |∂L/∂W|), snip
(largest |W0 ∂L/∂W|). Forms: "overwrite" writes the K current weights into the layer
itself and trains them there, with the displaced ones put aside; "hook" is the paper's
(App. D), a dense change whose gradient is masked; "delta" is the definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra import linear, masks
from hra.adapter import Adapter
from hra.checks import check_choice, check_count, check_number
from hra.entries import K_OF_DENSITY, Entries
from hra.law import Law

FORMS = ("overwrite", "hook", "delta")


class SHiRA(Entries):
    """Trains K numbers, in fp32 over a half-precision base. `values` are δ, `index`
    their places.

    Budget: `density`, or `count`; for mask="struct" `every` takes their place. offset:
    for struct the first line, for weight, grad and snip how many masks of the same size
    come before (masks of different offsets do not meet). scope="global" spends the
    sites' common budget where the scores are largest. gradients: {site: ∂L/∂W} for grad
    and snip, see `hra.probe`. Raises TypeError or ValueError naming the value and the
    range.
    """

    data = ("gradients",)

    def __init__(
        self,
        base: nn.Module,
        mask: str = "rand",
        density: float = 0.01,
        count: int | None = None,
        alpha: float = 1.0,
        scope: str = "layer",
        gradients: Any = None,
        axis: str = "row",
        every: int | None = None,
        offset: int = 0,
        diagonal: bool = True,
        form: str = "overwrite",
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        Adapter.__init__(self, base, seed=seed, site=site)
        self.mask = check_choice("mask", mask, masks.RULES)
        self.scope = check_choice("scope", scope, ("layer", "global"))
        self.form = check_choice("form", form, FORMS)
        check_choice("axis", axis, ("row", "column"))
        check_count("offset", offset, low=0)
        self.alpha = check_number("alpha", alpha, 0.0, float("inf"))
        if shared is None:
            K = masks.budget(self.d_out, self.d_in, density, count)
            if mask == "rand":
                shared = masks.rand(self.d_out, self.d_in, K, self.generator("mask"))
            elif mask == "struct":
                shared = self._struct(every, density, axis, offset, diagonal)
            else:
                shared = masks.top(
                    self.score(mask, self.W0, gradients, site), K, offset
                )
        self.hold(shared)
        if form == "hook":
            self.dense = self.new_parameter(self.d_out, self.d_in)
            del self.values

    def _struct(
        self, every: int | None, density: float, axis: str, offset: int, diagonal: bool
    ) -> Tensor:
        if every is None:
            masks.budget(self.d_out, self.d_in, density)
            every = masks.frequency(self.d_out, self.d_in, density, axis, diagonal)
        check_count("every", every)
        lines = self.d_out if axis == "row" else self.d_in
        if offset >= min(every, lines):
            raise ValueError(
                f"offset={offset} is out of range: 0 to {min(every, lines) - 1}, one "
                f"line in {every} of {lines}."
            )
        return masks.struct(self.d_out, self.d_in, every, axis, offset, diagonal)

    @staticmethod
    def score(mask: str, W: Tensor, gradients: Any, site: str = "") -> Tensor:
        """|W|, |G| or |W G|, (d_out, d_in)."""
        if mask == "weight":
            return W.detach().abs()
        G = masks.given(
            gradients,
            W,
            site,
            f"mask={mask!r} needs gradients",
            "pass gradients=hra.probe(model, batches, targets=...).mean",
        )
        return G.abs() if mask == "grad" else (W.detach() * G).abs()

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """With scope="global" one ranking over all sites, for as many entries as they
        would have had one by one.
        """
        made = super().plan(sites, **hyper)
        mask, gradients = hyper["mask"], hyper["gradients"]
        if hyper["scope"] == "global" and mask in ("weight", "grad", "snip"):
            scores = {
                s: cls.score(mask, linear.weight(layer), gradients, s)
                for s, layer in sites.items()
            }
            budget = hyper["density"], hyper["count"], hyper["offset"]
            for s, index in masks.top_of_all(scores, *budget).items():
                made[s]["shared"] = index
        return made

    # ---- the other two forms -------------------------------------------------------
    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        if self.form != "hook":
            return super().delta_weight()
        S = self.dense.view_as(self.dense)
        if S.requires_grad:
            S.register_hook(self._masked)
        return self.like_base(self.alpha * S)

    def _masked(self, G: Tensor) -> Tensor:
        """G ← M ⊙ G."""
        flat = G.reshape(-1)
        kept = torch.zeros_like(flat).index_copy(0, self.index, flat[self.index])
        return kept.view_as(G)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        if self.form == "overwrite":
            return super().forward(x)
        return Adapter.forward(self, x)

    @classmethod
    def law(
        cls,
        adapter: Any = None,
        sizes: Mapping[str, int | str] | None = None,
        form: str = "overwrite",
        mask: str = "rand",
        grad: bool = True,
        d_out: int | None = None,
        d_in: int | None = None,
        **given: Any,
    ) -> Law:
        """A mask that no one has drawn yet, because the weights decide it or the shape
        is not known, is taken to touch as many columns as it can.
        """
        density, count = given["density"], given["count"]
        K: int | str = K_OF_DENSITY if count is None else count
        if adapter is None and d_out and d_in:
            if mask in ("rand", "struct"):
                layer = torch.nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False)
                own = {k: v for k, v in given.items() if k != "phase"}
                adapter = cls(layer, mask, **own)
            else:
                K = masks.budget(d_out, d_in, density, count)
        elif adapter is None and mask == "struct":
            raise ValueError("the law of a struct mask needs d_out and d_in.")
        law = super().law(adapter, sizes or {"K": K, "columns": "min(K, d_in)"})
        if form == "overwrite":
            return law
        return replace(
            law,
            trained={"dense": "d_out*d_in"} if form == "hook" else law.trained,
            token={"x": "d_in"},
            once={"W": "d_out*d_in"} if grad else {},
        )

    # ---- files ---------------------------------------------------------------------
    def by_rule(self) -> bool:
        return self.mask in ("rand", "struct") or (
            self.mask == "weight" and self.scope == "layer"
        )

    def trained_values(self) -> Tensor:
        if self.form == "hook":
            return self.dense.detach().flatten()[self.index]
        return super().trained_values()

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        form = "overwrite" if self.form == "hook" else self.form
        return super().packed(hyper | {"form": form})

    def extra_repr(self) -> str:
        own = f"mask={self.mask}, K={len(self.index):,}, form={self.form}"
        return f"{super().extra_repr()}, {own}"
