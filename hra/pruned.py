"""Two factors of which K entries train: what SparseAdapter does to a bottleneck and to
LoRA's pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hra import linear, masks, sparse
from hra.adapter import Adapter
from hra.checks import check_choice, check_number

RULES = ("rand", "er", "magnitude")


class Pruned(Adapter):
    """`values`, K entries at `index` of one matrix, `joined` from both factors; the
    rest of it is zero.

    A subclass stands before a method with two factors, (r, a) and (b, r), which it
    names in `pair`; `axis`: on which side of the first the second's transpose is put.
    """

    data = ("scores",)
    pair = ("", "")
    axis = 0
    r: int
    values: Float[Tensor, " K"]
    index: Int[Tensor, " K"]

    @classmethod
    def sides(cls, r: int, d_out: int, d_in: int) -> tuple[int, int]:
        """(a, b)."""
        raise NotImplementedError

    @classmethod
    def shape_of(cls, r: int, d_out: int, d_in: int) -> tuple[int, int]:
        """Of the joined matrix."""
        a, b = cls.sides(r, d_out, d_in)
        return (2 * r, a) if cls.axis == 0 else (r, a + b)

    @classmethod
    def joined(cls, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second.T], cls.axis)

    def factors_of(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """What `joined` has joined."""
        a, b = self.sides(self.r, self.d_out, self.d_in)
        first, second = W.split([self.r] * 2 if self.axis == 0 else [a, b], self.axis)
        return first, second.T

    def pruned(self) -> tuple[Tensor, Tensor]:
        """Both factors, in the layer's dtype."""
        shape = self.shape_of(self.r, self.d_out, self.d_in)
        return self.factors_of(
            self.like_base(sparse.scatter(self.values, self.index, *shape))
        )

    def prune(
        self,
        keep: float,
        rule: str,
        scores: Any,
        shared: Tensor | None,
        counts: tuple[int, int] | None,
    ) -> None:
        """Put `values` and `index` in the place of the factors, which have started."""
        check_choice("rule", rule, RULES)
        keep = check_number("keep", keep, 0.0, 1.0, closed_high=True)
        pair = [self.get_parameter(n).detach() for n in self.pair]
        for name in self.pair:
            delattr(self, name)
        W, shape = self.joined(*pair), self.shape_of(self.r, self.d_out, self.d_in)
        if shared is None and scores is None and rule == "rand":
            K = masks.budget(*shape, keep)
            shared = masks.rand(*shape, K, self.generator("mask"))
        elif shared is None and scores is None and rule == "er":
            shared = self.drawn_by_size(
                counts or self.counts({"": self}, self.r, keep)[""]
            )
        elif shared is None:
            S = W.abs() if scores is None else self.score(scores, W, self.site)
            shared = masks.top(S, masks.budget(*shape, keep))
        self.check_kept(masks.check(shared, *shape))
        index = shared.to(W.device)
        self.register_buffer("index", index)
        self.values = self.new_parameter(len(index))
        self.values.data.copy_(W.flatten()[index])

    def check_kept(self, index: Tensor) -> None:
        """ValueError for a mask with which nothing could ever train."""

    def drawn_by_size(self, counts: tuple[int, int]) -> Tensor:
        """So many entries of each factor, by lot."""
        a, b = self.sides(self.r, self.d_out, self.d_in)
        both = []
        for name, k, shape in zip(
            self.pair, counts, ((self.r, a), (b, self.r)), strict=True
        ):
            mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
            mask[masks.rand(*shape, k, self.generator(f"mask {name}"))] = True
            both.append(mask.view(shape))
        return self.joined(*both).flatten().nonzero()[:, 0]

    @classmethod
    def counts(
        cls, sites: dict[str, Any], r: int, keep: float
    ) -> dict[str, tuple[int, int]]:
        """{site: how many entries of each factor}, after Erdős and Rényi: as its sides'
        sum, over all factors of all sites together.
        """
        shapes: dict[Any, tuple[int, int]] = {}
        total = 0
        for s, layer in sites.items():
            d_out, d_in = linear.weight(getattr(layer, "base", layer)).shape
            a, b = cls.sides(r, d_out, d_in)
            shapes |= {(s, 0): (r, a), (s, 1): (b, r)}
            total += masks.budget(*cls.shape_of(r, d_out, d_in), keep)
        found = masks.erdos_renyi(shapes, total)
        return {s: (found[s, 0], found[s, 1]) for s in sites}

    # ---- scores
    @classmethod
    def score(cls, scores: Any, W: Tensor, site: str) -> Tensor:
        """The scores of a site, as large as the joined matrix."""
        name = cls.__name__
        how = f"pass scores={{s: hra.{name}.snip(a) for s, a in …}}"
        S = masks.given(scores, W, site, f"{name} needs scores", how)
        if not S.any():
            raise ValueError(
                f"the scores of {site or 'the layer'} are all zero and rank nothing: "
                "|w ∂L/∂w| is zero where a factor starts at zero, as LoRA's B does. "
                "Take it of Houlsby's bottleneck, or after a warm-up."
            )
        return S

    @classmethod
    def snip(cls, a: Any) -> Tensor:
        """|w ∂L/∂w| of both factors of an adapter, after a backward pass; joined."""
        pair = [a.get_parameter(n) for n in cls.pair]
        for w in pair:
            if w.grad is None:
                raise ValueError(
                    f"{a.site or 'the adapter'} has no gradient: call "
                    "tuned(**batch).loss.backward() first."
                )
        return cls.joined(*((w * w.grad).abs().detach() for w in pair))

    @classmethod
    def grasp(cls, tuned: Any, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
        """{site: w ⊙ H g}, g and H the gradient and the Hessian of loss() in all
        factors: how fast ½ ‖g‖² falls when an entry is scaled down. GraSP keeps the
        largest.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        adapters = tuned.adapters
        w = [a.get_parameter(n) for a in adapters.values() for n in cls.pair]
        with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
            g = torch.autograd.grad(loss(), w, create_graph=True)
            flow = torch.stack([(x * x.detach()).sum() for x in g]).sum()
            Hg = torch.autograd.grad(flow, w)
        S = [(x * h).detach() for x, h in zip(w, Hg, strict=True)]
        both = zip(S[::2], S[1::2], strict=True)
        return {s: cls.joined(*pair) for s, pair in zip(adapters, both, strict=True)}

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        made, r, keep = super().plan(sites, **hyper), hyper["r"], hyper["keep"]
        if isinstance(hyper["scores"], dict):
            found = {}
            for s, layer in sites.items():
                W = linear.weight(layer)
                like = W.new_empty(cls.shape_of(r, *W.shape))
                found[s] = cls.score(hyper["scores"], like, s)
            for s, index in masks.top_of_all(found, keep).items():
                made[s] |= {"shared": index, "scores": None}
        elif hyper["scores"] is None and hyper["rule"] == "er":
            for s, counts in cls.counts(sites, r, keep).items():
                made[s]["counts"] = counts
        return made

    # ---- files
    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        own = {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}
        return own | sparse.mask_kept(self.index), hyper

    @torch.no_grad()
    def unpack(self, tensors: dict[str, Tensor]) -> None:
        sparse.mask_held_to(tensors, self.index, self.site)
        for name, p in self.named_parameters():
            if p.requires_grad:
                p.copy_(tensors[name])

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
            rows, cols = cls.shape_of(hyper["r"], *linear.weight(layer).shape)
            made[s]["shared"] = sparse.mask_from(tensors, s, rows * cols)
        return made

    def extra_repr(self) -> str:
        rows, cols = self.shape_of(self.r, self.d_out, self.d_in)
        return f"{super().extra_repr()}, K={len(self.index):,} of {rows} · {cols}"
