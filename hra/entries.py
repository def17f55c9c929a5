"""A change on K entries of the weight: what SHiRA and its relatives share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hra import linear, masks, sparse
from hra.adapter import Adapter
from hra.law import Law

# `few` below, as text: 1 if true, else 0
FEW = "min(1, max(0, (15 + 4*min(1, max(0, d_in - d_out)))*d_in - 20*columns))"


class Entries(Adapter):
    """W = W0 + α S, S zero outside `index`: K numbers `values`, in fp32 over a
    half-precision base, start at zero.

    `forward` writes the K current weights into the layer itself and puts the displaced
    ones (`stash`) aside.
    """

    family = "sparse"
    values: Float[Tensor, " K"]
    index: Int[Tensor, " K"]
    stash: Float[Tensor, " K"]
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
        if shared is None:
            raise TypeError(
                "Entries is what hra.fuse makes of several adapters; on its own it "
                "has no entries to train."
            )
        self.hold(shared)

    def hold(self, index: Tensor) -> None:
        """Take the entries `index`, and aside what the weight has there."""
        W = linear.weight(self.base)
        index = masks.check(index, self.d_out, self.d_in).to(W.device)
        self.register_buffer("index", index)
        self.register_buffer("columns", (index % self.d_in).unique(), persistent=False)
        self.register_buffer(
            "stash", W.detach()[index // self.d_in, index % self.d_in], persistent=False
        )
        self.values = nn.Parameter(
            torch.zeros(
                len(index),
                dtype=torch.promote_types(W.dtype, torch.float32),
                device=W.device,
            )
        )

    def masters(self) -> Tensor:
        """The parameter that stays in fp32 or wider."""
        return self.values

    # ---- the pretrained weight and the overwritten one
    # ------------------------------------------
    @property
    def W0(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        """The pretrained weight; while the layer is overwritten, a copy with the
        displaced values put back.
        """
        W = linear.weight(self.base)
        if not self.overwritten:
            return W
        W = W.detach().clone()
        W[self.index // self.d_in, self.index % self.d_in] = self.stash
        return W

    def write(self) -> None:
        """W0 + α δ into the layer, K numbers."""
        now = (self.stash + self.alpha * self.values.detach()).to(self.stash.dtype)
        self._put(now)
        self.overwritten = True

    def _put(self, entries: Tensor) -> None:
        position = sparse.storage_index(
            self.index, self.d_out, self.d_in, linear.is_conv1d(self.base)
        )
        sparse.overwrite_(self.base.get_parameter("weight"), position, entries)

    def restore(self) -> None:
        """The displaced values back into the layer, bit for bit."""
        if self.overwritten:
            self._put(self.stash)
            self.overwritten = False

    def release(self, model: nn.Module) -> None:
        self.restore()
        super().release(model)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """`.to(dtype)` changes the base; δ stays in fp32 or wider."""
        p = self.masters()
        kept = p.data
        super()._apply(fn, recurse)
        p.data = kept.to(
            device=p.device, dtype=torch.promote_types(self.stash.dtype, torch.float32)
        )
        return self

    @torch.no_grad()
    def absorb_(self) -> None:
        self.restore()
        super().absorb_()
        W = linear.weight(self.base)
        self.stash.copy_(W[self.index // self.d_in, self.index % self.d_in])

    def trained_values(self) -> Tensor:
        return self.values.detach()

    # ---- the map

    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        return (
            self.alpha * sparse.scatter(self.values, self.index, self.d_out, self.d_in)
        ).to(self.stash.dtype)

    def forward(
        self, x: Float[Tensor, "*tokens {self.d_in}"]
    ) -> Float[Tensor, "*tokens {self.d_out}"]:
        self.write()
        if not torch.is_grad_enabled():
            return F.linear(x, linear.weight(self.base), self.bias)
        return _Overwritten.apply(
            x,
            self.base.weight,
            linear.is_conv1d(self.base),
            self.bias,
            self.values,
            self.index,
            self.columns,
            self.alpha,
        )

    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        new = (self.stash + self.alpha * self.trained_values()).to(self.stash.dtype)
        return {
            "weight": (
                sparse.storage_index(
                    self.index, self.d_out, self.d_in, linear.is_conv1d(self.base)
                ),
                new,
            )
        }

    def entries(self) -> tuple[Tensor, Tensor]:
        return self.index, self.alpha * self.trained_values().double()

    @classmethod
    def law(
        cls,
        adapter: Any = None,
        sizes: Mapping[str, int | str] | None = None,
        **given: Any,
    ) -> Law:
        """K entries that touch `columns` columns; x is copied only if it is `few`."""
        if adapter is not None:
            sizes = {"K": len(adapter.index), "columns": len(adapter.columns)}
        if sizes is None:
            raise ValueError(
                f"the entries of {cls.__name__} follow from no rule: give adapter=, or "
                "measure it: hra.memory.measure."
            )
        return Law(
            {"values": "K"},
            {"columns of x": "few*columns", "x": "(1 - few)*d_in"},
            frozen={"displaced": "K"},
            int64={"index": "K", "columns touched": "columns"},
            fp32=True,
            sizes={**sizes, "few": FEW},
        )

    # ---- files

    def by_rule(self) -> bool:
        """Whether the entries follow from the seed, the shape or the base, so that a
        file need not hold them.
        """
        return False

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The values, a hash of the index, and, where no rule gives the index back, its
        gaps.
        """
        tensors = {"values": self.trained_values(), "mask_hash": digest(self.index)}
        if not self.by_rule():
            tensors["gaps"] = sparse.pack(self.index.cpu())
        return tensors, hyper

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
        for s in sites:
            if f"{s}.gaps" not in tensors or f"{s}.values" not in tensors:
                raise ValueError(f"the mask of {s} is missing.")
        return {
            s: dict(
                hyper,
                site=s,
                shared=sparse.unpack(
                    tensors[f"{s}.gaps"], tensors[f"{s}.values"].numel()
                ),
            )
            for s in sites
        }


class _Overwritten(torch.autograd.Function):
    """x Wᵀ + b with a W that holds its trained entries itself. Keeps the columns of x
    that the mask touches; of the dense
    gradient only the K wanted entries are returned, and where the mask is sparse only
    they are computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stored: Tensor,
        transposed: bool,
        bias: Tensor | None,
        values: Tensor,
        index: Tensor,
        columns: Tensor,
        alpha: float,
    ) -> Tensor:
        W = stored.T if transposed else stored
        some = few(len(columns), *W.shape)
        kept = x.reshape(-1, x.shape[-1]).index_select(1, columns) if some else x
        ctx.save_for_backward(kept, stored, index, columns)
        ctx.setting = some, transposed, alpha, values.dtype, x.shape, x.dtype
        return F.linear(x, W, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g: Tensor
    ) -> tuple[Tensor | None, None, None, None, Tensor, None, None, None]:
        x, stored, index, columns = ctx.saved_tensors
        some, transposed, alpha, dtype, shape, kind = ctx.setting
        W = stored.T if transposed else stored
        dx = (
            (g @ W.to(g.dtype)).view(shape).to(kind)
            if ctx.needs_input_grad[0]
            else None
        )
        rows, cols = index // W.shape[1], index % W.shape[1]
        if some:  # x holds the touched columns only
            cols = torch.searchsorted(columns, cols)
        dv = sparse.sampled_product(
            g.reshape(-1, g.shape[-1]),
            x.reshape(-1, x.shape[-1]).to(g.dtype),
            rows,
            cols,
        )
        return dx, None, None, None, (alpha * dv).to(dtype), None, None, None


def few(columns: int, d_out: int, d_in: int) -> bool:
    """Whether to keep a copy of the touched columns rather than x itself, which a
    neighbour may keep anyway.

    Layers that read one x (q, k and v; gate and up) are seldom much narrower than x;
    one that narrows has it to itself.
    """
    return 20 * columns < (19 if d_out < d_in else 15) * d_in


def digest(index: Tensor) -> Tensor:
    """Eight bytes of a mask's SHA-256, as uint8."""
    return torch.tensor(
        list(hashlib.sha256(index.cpu().numpy().tobytes()).digest()[:8]),
        dtype=torch.uint8,
    )
