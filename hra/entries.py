"""A change on K entries of the weight: what SHiRA and its relatives share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hra import linear, masks, sparse
from hra.adapter import Adapter
from hra.checks import no_second_derivative
from hra.law import Law

K_OF_DENSITY = "max(1, (2*density*d_out*d_in + 1)//2)"  # the nearest whole number
# `copies_columns` below, as text: 1 if true, else 0
COPIED = "min(1, max(0, (15 + 4*min(1, max(0, d_in - d_out)))*d_in - 20*columns))"


class Entries(Adapter):
    """W = W0 + α S, S zero outside `index`: K numbers `values`, which start at zero.

    `index`: K flat positions, sorted, in row-major order of (d_out, d_in). `forward`
    writes the K current weights into the layer itself and puts the displaced ones
    (`stash`) aside: no dense matrix is ever made. `state_dict` shows the pretrained
    weight all the same, and `load_state_dict` puts the displaced ones right.
    """

    family = "sparse"
    values: Float[Tensor, " K"]
    index: Int[Tensor, " K"]
    stash: Float[Tensor, " K"]
    columns: Int[Tensor, " columns"]
    alpha = 1.0
    overwritten = False  # whether the layer holds the values

    def __init__(
        self,
        base: nn.Module,
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        if shared is None:  # as hra.fuse makes it; `hold` then says which entries
            shared = torch.zeros(1, dtype=torch.int64)
        self.hold(shared)

    def hold(self, index: Tensor) -> None:
        """Take the entries `index`, with values of zero."""
        index = masks.check(index, self.d_out, self.d_in)
        self.put_back()
        if not self._load_state_dict_post_hooks:
            self.register_load_state_dict_post_hook(_loaded)
        self.register_buffer("index", index.to(linear.weight(self.base).device))
        self.values = self.new_parameter(len(index))
        self.set_aside()

    def set_aside(self) -> None:
        """Note what the pretrained weight has at `index`, and which columns it meets.

        Not persistent: the weight and the index give both back.
        """
        W = linear.weight(self.base).detach()
        rows, cols = self.index // self.d_in, self.index % self.d_in
        self.register_buffer("stash", W[rows, cols], persistent=False)
        self.register_buffer("columns", cols.unique(), persistent=False)

    # ---- the pretrained weight and the overwritten one -----------------------------
    @property
    def W0(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        """The pretrained weight; while the layer is overwritten, a copy with the
        displaced values put back.
        """
        W = linear.weight(self.base)
        if not self.overwritten or linear.is_sharded(self.base):
            return W
        W = W.detach().clone()
        W[self.index // self.d_in, self.index % self.d_in] = self.stash
        return W

    @property
    def position(self) -> Tensor:
        """`index` in the order of the layer's own storage."""
        transposed = linear.is_conv1d(self.base)
        return sparse.storage_index(self.index, self.d_out, self.d_in, transposed)

    @torch.no_grad()
    def put_back(self) -> None:
        """The displaced values back into the layer, bit for bit."""
        if self.overwritten:
            if not linear.is_sharded(self.base):  # then only a gathered copy was
                W = self.base.get_parameter("weight")
                sparse.overwrite_(W, self.position, self.stash)
            self.overwritten = False

    def release(self, model: nn.Module) -> None:
        self.put_back()
        super().release(model)

    def trained_values(self) -> Tensor:
        return self.values.detach()

    # ---- what torch sees of it -----------------------------------------------------
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's, with the pretrained weight where the layer is overwritten."""
        out = super().state_dict(*args, **kwargs)
        if self.overwritten and not linear.is_sharded(self.base):
            name = f"{kwargs.get('prefix', '')}base.weight"
            out[name] = self.W0.T if linear.is_conv1d(self.base) else self.W0
        return out

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        """First the layer is made plain; when it has its weight, `_loaded` follows."""
        self.put_back()
        index = state.get(f"{prefix}index")
        if isinstance(index, Tensor) and index.shape == self.index.shape:
            masks.check(index, self.d_out, self.d_in)
        super()._load_from_state_dict(state, prefix, *rest)

    def set_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.put_back()
        masks.check(tensors["index"], self.d_out, self.d_in)
        super().set_own_tensors(tensors)
        self.set_aside()

    # ---- the map -------------------------------------------------------------------
    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        S = sparse.scatter(self.values, self.index, self.d_out, self.d_in)
        return self.like_base(self.alpha * S)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        W = linear.own(self.base, "use SHiRA with form='delta'")
        place = W, self.position, self.stash
        self.overwritten = True  # before the first entry is written
        new = _now(self.stash, self.values, self.alpha)
        sparse.overwrite_(place[0], place[1], new)
        if not torch.is_grad_enabled():
            return F.linear(x, linear.weight(self.base), self.bias)
        return _Overwritten.apply(
            x,
            *place,
            linear.is_conv1d(self.base),
            self.bias,
            self.values,
            self.index,
            self.columns,
            self.alpha,
        )

    @torch.no_grad()
    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        new = _now(self.stash, self.trained_values(), self.alpha)
        return {"weight": (self.position, new)}

    def entries(self) -> tuple[Tensor, Tensor]:
        return self.index, self.alpha * self.trained_values().double()

    @classmethod
    def law(
        cls,
        adapter: Any = None,
        sizes: Mapping[str, int | str] | None = None,
        **given: Any,
    ) -> Law:
        """K entries that touch `columns` columns; x is copied only if `copied`."""
        if adapter is not None:
            sizes = {"K": len(adapter.index), "columns": len(adapter.columns)}
        if sizes is None:
            raise ValueError(
                f"the entries of {cls.__name__} follow from no rule: give adapter=, or "
                "measure it: hra.memory.measure."
            )
        return Law(
            {"values": "K"},
            {"columns of x": "copied*columns", "x": "(1 - copied)*d_in"},
            frozen={"displaced": "K"},
            int64={"index": "K", "columns touched": "columns"},
            sizes={**sizes, "copied": COPIED},
        )

    # ---- files ---------------------------------------------------------------------
    def by_rule(self) -> bool:
        """Whether the entries follow from the seed, the shape or the base, so that a
        file need not hold them.
        """
        return False

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        return {"values": (None,), "mask_hash": (8,)}

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The values, a hash of the index, and, where no rule gives the index back, its
        gaps.
        """
        mask = sparse.mask_kept(self.index, self.by_rule())
        return {"values": self.trained_values(), **mask}, hyper

    @torch.no_grad()
    def unpack(self, tensors: dict[str, Tensor]) -> None:
        sparse.mask_held_to(tensors, self.index, self.site)
        self.values.copy_(tensors["values"])

    @classmethod
    def plan_from_file(
        cls,
        sites: dict[str, nn.Module],
        hyper: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> dict[str, dict[str, Any]]:
        """As `plan`, with the entries that the file holds."""
        if not any(k.endswith(".gaps") for k in tensors):
            return cls.plan(sites, **hyper)
        made = {}
        for s, layer in sites.items():
            index = sparse.mask_from(tensors, s, linear.weight(layer).numel())
            made[s] = dict(hyper, site=s, shared=index)
        return made


class Ranked(Entries):
    """The K entries of the largest scores, ranked once over all sites.

    scores: {site: (d_out, d_in)}, a function of (site, W), or for one bare layer the
    matrix itself. Budget: the share `density` of all entries, or `count` times the
    number of sites. Raises TypeError or ValueError naming the value and the range.
    """

    data: tuple[str, ...] = ("scores",)
    needs = ""  # in words, what the scores are
    how = ""  # and where they come from

    def __init__(
        self,
        base: nn.Module,
        scores: Any = None,
        density: float = 0.01,
        count: int | None = None,
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        Adapter.__init__(self, base, seed=seed, site=site)
        if shared is None:
            K = masks.budget(self.d_out, self.d_in, density, count)
            shared = masks.top(self.score(scores, self.W0, site), K)
        self.hold(shared)

    @classmethod
    def score(cls, scores: Any, W: Tensor, site: str) -> Tensor:
        """What is ranked, (d_out, d_in)."""
        return masks.given(
            scores, W, site, f"{cls.__name__} needs {cls.needs}", cls.how
        )

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        made, scores = super().plan(sites, **hyper), hyper["scores"]
        ranked = masks.top_of_all(
            {s: cls.score(scores, linear.weight(m), s) for s, m in sites.items()},
            hyper["density"],
            hyper["count"],
        )
        for s, index in ranked.items():
            made[s] |= {"shared": index, "scores": None}
        return made

    @classmethod
    def law(
        cls,
        adapter: Any = None,
        sizes: Mapping[str, int | str] | None = None,
        count: int | None = None,
        **given: Any,
    ) -> Law:
        """A mask that no one has drawn yet is taken to have the site's own share, and
        to touch as many columns as it can.
        """
        K = K_OF_DENSITY if count is None else count
        return super().law(adapter, sizes or {"K": K, "columns": "min(K, d_in)"})


def _loaded(adapter: Entries, keys: Any) -> None:
    """`load_state_dict` is through with the adapter and its base."""
    adapter.set_aside()


def _now(stash: Tensor, values: Tensor, alpha: float) -> Tensor:
    """W0 + α δ at the K entries, (K,), rounded once to the layer's dtype."""
    return (stash + alpha * values.detach()).to(stash.dtype)


class _Overwritten(torch.autograd.Function):
    """x Wᵀ + b with a W that holds its trained entries itself.

    Keeps the columns of x that the mask touches; of the dense gradient only the K
    wanted entries are returned, and where the mask is sparse only they are computed.
    `values` and `stash` are kept by reference: if the values change before the backward
    pass torch refuses it, and whoever puts the pretrained weight back in between (a
    sharded model gathers it anew) finds the entries written again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stored: Tensor,  # the layer's weight, (d_in, d_out) if transposed
        position: Tensor,  # (K,) in its storage
        stash: Tensor,
        transposed: bool,
        bias: Tensor | None,
        values: Tensor,
        index: Tensor,
        columns: Tensor,
        alpha: float,
    ) -> Tensor:
        W = stored.T if transposed else stored
        some = copies_columns(len(columns), *W.shape)
        # (tokens, columns), or x as it is
        kept = x.reshape(-1, x.shape[-1]).index_select(1, columns) if some else x
        ctx.save_for_backward(kept, stored, stash, values, index, columns)
        ctx.setting = some, transposed, alpha, x.shape, x.dtype
        return F.linear(x, W, bias)

    @staticmethod
    @no_second_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, stored, stash, values, index, columns = ctx.saved_tensors
        some, transposed, alpha, shape, kind = ctx.setting
        W = stored.T if transposed else stored  # (d_out, d_in)
        dx = None
        if ctx.needs_input_grad[0]:
            position = sparse.storage_index(index, W.shape[0], W.shape[1], transposed)
            sparse.overwrite_(stored, position, _now(stash, values, alpha))
            dx = (g @ W.to(g.dtype)).view(shape).to(kind)
        rows, cols = index // W.shape[1], index % W.shape[1]
        if some:  # x holds the touched columns only
            cols = torch.searchsorted(columns, cols)
        x = x.reshape(-1, x.shape[-1]).to(g.dtype)
        dv = sparse.sampled_product(g.reshape(-1, g.shape[-1]), x, rows, cols)
        nothing = (None,) * 5
        return dx, *nothing, (alpha * dv).to(values.dtype), None, None, None


def copies_columns(columns: int, d_out: int, d_in: int) -> bool:
    """Whether to keep a copy of the touched columns rather than x itself, which a
    neighbour may keep anyway.

    Layers that read one x (q, k and v; gate and up) are seldom much narrower than x;
    one that narrows has it to itself. A copy then pays from a twentieth of the columns
    left out, elsewhere from a quarter (measured on GPT-2's blocks: benchmarks.methods).
    """
    return 20 * columns < (19 if d_out < d_in else 15) * d_in
