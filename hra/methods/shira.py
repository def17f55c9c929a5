"""SHiRA: Sparse High Rank Adapters.  Bhardwaj et al., 2024.  arXiv:2406.13175

    W = W0 + α S        S: (d_out, d_in), zero outside a fixed mask of K entries; S_k = δ_k, trained, starts at zero

Masks (App. B): struct, rand, weight (largest |W0|), grad (largest |∂L/∂W|), snip (largest |W0 ∂L/∂W|).
Forms: "overwrite" writes the K current weights into the layer itself and trains them there, with the displaced ones put
aside; "hook" is the paper's (App. D), a dense change whose gradient is masked; "delta" is the definition.
"""
from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hra import linear, masks, sparse
from hra.adapter import Adapter, check_count, check_number

FORMS = ("overwrite", "hook", "delta")


class SHiRA(Adapter):
    """Trains K numbers, in fp32 over a half-precision base. `values` are δ, `index` their places.

    Budget: `density`, or `count`; for mask="struct" `every` takes their place. offset: for struct the first line, for weight,
    grad and snip how many masks of the same size come before (masks of different offsets do not meet). scope="global" spends
    the sites' common budget where the scores are largest. gradients: {site: ∂L/∂W} for grad and snip, see `hra.probe`.
    Raises TypeError or ValueError naming the value and the range.
    """

    values: Float[Tensor, " K"]
    index: Int[Tensor, " K"]
    stash: Float[Tensor, " K"]

    def __init__(self, base: nn.Module, mask: str = "rand", density: float = 0.01, count: int | None = None, alpha: float = 1.0,
                 scope: str = "layer", gradients: Any = None, axis: str = "row", every: int | None = None, offset: int = 0,
                 diagonal: bool = True, form: str = "overwrite", *, shared: Tensor | None = None, seed: int = 0,
                 site: str = "") -> None:
        super().__init__(base, seed=seed, site=site)
        for name, value, known in (("mask", mask, (*masks.RULES, masks.GIVEN)), ("scope", scope, ("layer", "global")),
                                   ("axis", axis, ("row", "column")), ("form", form, FORMS)):
            if value not in known:
                raise ValueError(f"{name}={value!r} does not exist; there are {', '.join(known)}.")
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ValueError(f"offset={offset!r} must be an integer of at least 0.")
        self.alpha = check_number("alpha", alpha, 0.0, float("inf"))
        self.mask, self.scope, self.form, self.overwritten = mask, scope, form, False
        W = linear.weight(base)
        if shared is None:
            K = masks.budget(self.d_out, self.d_in, density, count)
            if mask == masks.GIVEN:
                raise ValueError(f"mask='given' is what hra.fuse makes and a file holds; there are {', '.join(masks.RULES)}.")
            if mask == "rand":
                shared = masks.rand(self.d_out, self.d_in, K, self.generator("mask"))
            elif mask == "struct":
                shared = self._struct(every, density, axis, offset, diagonal)
            else:
                shared = masks.top(self.score(mask, W, gradients, site), K, offset)
        index = masks.check(shared, self.d_out, self.d_in).to(W.device)
        self.register_buffer("index", index)
        self.register_buffer("columns", (index % self.d_in).unique(), persistent=False)
        self.register_buffer("stash", W.detach()[index // self.d_in, index % self.d_in], persistent=False)
        dtype = torch.promote_types(W.dtype, torch.float32)
        if form == "hook":
            self.dense = nn.Parameter(torch.zeros(self.d_out, self.d_in, dtype=dtype, device=W.device))
        else:
            self.values = nn.Parameter(torch.zeros(len(index), dtype=dtype, device=W.device))

    def _struct(self, every: int | None, density: float, axis: str, offset: int, diagonal: bool) -> Tensor:
        if every is None:
            masks.budget(self.d_out, self.d_in, density)
            every = masks.frequency(self.d_out, self.d_in, density, axis, diagonal)
        check_count("every", every)
        lines = self.d_out if axis == "row" else self.d_in
        if offset >= min(every, lines):
            raise ValueError(f"offset={offset} is out of range: 0 to {min(every, lines) - 1}, one line in {every} of {lines}.")
        return masks.struct(self.d_out, self.d_in, every, axis, offset, diagonal)

    @staticmethod
    def score(mask: str, W: Tensor, gradients: Any, site: str = "") -> Tensor:
        """|W|, |G| or |W G|, (d_out, d_in)."""
        if mask == "weight":
            return W.detach().abs()
        G = gradients.get(site) if isinstance(gradients, dict) else gradients
        if not isinstance(G, Tensor) or G.shape != W.shape:
            given = tuple(G.shape) if isinstance(G, Tensor) else G if not isinstance(gradients, dict) else "none"
            raise ValueError(f"mask={mask!r} needs gradients of shape {tuple(W.shape)} for {site or 'the layer'}, got {given}: "
                             "pass gradients=hra.probe(model, batches, targets=...).mean.")
        return G.abs() if mask == "grad" else (W.detach() * G).abs()

    @classmethod
    def plan(cls, sites: dict[str, nn.Module], **hyper: Any) -> dict[str, dict[str, Any]]:
        """With scope="global" one ranking over all sites, for as many entries as they would have had one by one."""
        made = super().plan(sites, **hyper)
        mask = hyper.get("mask", "rand")
        if hyper.get("scope") == "global" and mask in ("weight", "grad", "snip"):
            W = {s: linear.weight(layer) for s, layer in sites.items()}
            scores = [cls.score(mask, w, hyper.get("gradients"), s).reshape(-1).float() for s, w in W.items()]
            density, count = hyper.get("density", 0.01), hyper.get("count")
            total = sum(masks.budget(w.shape[0], w.shape[1], density, count) for w in W.values())
            chosen, start = masks.top(torch.cat(scores), total, hyper.get("offset", 0)), 0
            for s, w in W.items():
                own = chosen[(chosen >= start) & (chosen < start + w.numel())] - start
                if not len(own):
                    raise ValueError(f"the global mask leaves {s} without an entry: raise the density, or leave that site out.")
                made[s]["shared"], start = own, start + w.numel()
        return made

    # ---- the pretrained weight and the overwritten one ------------------------------------------
    @property
    def W0(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        """The pretrained weight; while the layer is overwritten, a copy with the displaced values put back."""
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
        position = sparse.storage_index(self.index, self.d_out, self.d_in, linear.is_conv1d(self.base))
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
        p = self.dense if self.form == "hook" else self.values
        kept = p.data
        super()._apply(fn, recurse)
        p.data = kept.to(device=p.device, dtype=torch.promote_types(self.stash.dtype, torch.float32))
        return self

    @torch.no_grad()
    def absorb_(self) -> None:
        self.restore()
        super().absorb_()
        W = linear.weight(self.base)
        self.stash.copy_(W[self.index // self.d_in, self.index % self.d_in])

    # ---- the map ---------------------------------------------------------------------------------
    def delta_weight(self) -> Float[Tensor, "{self.d_out} {self.d_in}"]:
        if self.form == "hook":
            S = self.dense.view_as(self.dense)
            if S.requires_grad:
                S.register_hook(self._masked)
        else:
            S = sparse.scatter(self.values, self.index, self.d_out, self.d_in)
        return (self.alpha * S).to(self.stash.dtype)

    def _masked(self, G: Tensor) -> Tensor:
        """G ← M ⊙ G."""
        flat = G.reshape(-1)
        return torch.zeros_like(flat).index_copy(0, self.index, flat[self.index]).view_as(G)

    def forward(self, x: Float[Tensor, "*tokens {self.d_in}"]) -> Float[Tensor, "*tokens {self.d_out}"]:
        if self.form != "overwrite":
            return super().forward(x)
        self.write()
        if not torch.is_grad_enabled():
            return F.linear(x, linear.weight(self.base), self.bias)
        return _Overwritten.apply(x, self.base.weight, linear.is_conv1d(self.base), self.bias, self.values, self.index,
                                  self.columns, self.alpha)

    @classmethod
    def counts(cls, d_out: int, d_in: int, adapter: Any = None, **hyper: Any) -> dict[str, Any]:
        """K and the number of columns touched; masks that the weights decide are taken to touch every column."""
        if adapter is not None:
            K, columns = len(adapter.index), len(adapter.columns)
        elif hyper["mask"] in ("rand", "struct"):
            layer = torch.nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False)
            drawn: Any = cls(layer, **{k: v for k, v in hyper.items() if k != "form"}, form="overwrite", shared=None)
            K, columns = len(drawn.index), len(drawn.columns)
        else:
            K, columns = masks.budget(d_out, d_in, hyper["density"], hyper["count"]), d_in
        return {"K": K, "columns": columns, "all_columns": not few(columns, d_out, d_in)}

    # ---- files -------------------------------------------------------------------------------------
    def by_rule(self) -> bool:
        """Whether the mask follows from the seed, the shape or the base, so that a file need not hold it."""
        return self.mask in ("rand", "struct") or (self.mask == "weight" and self.scope == "layer")

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The values, a hash of the mask, and, where no rule gives the mask back, the gaps of its index."""
        values = self.dense.detach().flatten()[self.index] if self.form == "hook" else self.values.detach()
        tensors = {"values": values, "mask_hash": digest(self.index)}
        if not self.by_rule():
            tensors["gaps"] = sparse.pack(self.index.cpu())
        hyper = {k: v for k, v in hyper.items() if k != "gradients"}
        return tensors, hyper | ({"form": "overwrite"} if self.form == "hook" else {})

    @classmethod
    def plan_from_file(cls, sites: dict[str, nn.Module], hyper: dict[str, Any],
                       tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """As `plan`, with the masks that the file holds."""
        if not any(k.endswith(".gaps") for k in tensors):
            return cls.plan(sites, **hyper)
        made = super().plan(sites, **hyper)
        for s in sites:
            if f"{s}.gaps" not in tensors or f"{s}.values" not in tensors:
                raise ValueError(f"the mask of {s} is missing.")
            made[s]["shared"] = sparse.unpack(tensors[f"{s}.gaps"], tensors[f"{s}.values"].numel())
        return made

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask}, K={len(self.index):,}, form={self.form}"


class _Overwritten(torch.autograd.Function):
    """x Wᵀ + b with a W that holds its trained entries itself. Keeps the columns of x that the mask touches; of the dense
    gradient only the K wanted entries are returned, and where the mask is sparse only they are computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, transposed: bool, bias: Tensor | None, values: Tensor, index: Tensor,
                columns: Tensor, alpha: float) -> Tensor:
        W = stored.T if transposed else stored
        some = few(len(columns), *W.shape)
        ctx.save_for_backward(x.reshape(-1, x.shape[-1]).index_select(1, columns) if some else x, stored, index, columns)
        ctx.setting = some, transposed, alpha, values.dtype, x.shape, x.dtype
        return F.linear(x, W, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None, Tensor, None, None, None]:
        x, stored, index, columns = ctx.saved_tensors
        some, transposed, alpha, dtype, shape, kind = ctx.setting
        W = stored.T if transposed else stored
        dx = (g @ W.to(g.dtype)).view(shape).to(kind) if ctx.needs_input_grad[0] else None
        rows, cols = index // W.shape[1], index % W.shape[1]
        if some:  # x holds the touched columns only
            cols = torch.searchsorted(columns, cols)
        dv = sparse.sampled_product(g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1]).to(g.dtype), rows, cols)
        return dx, None, None, None, (alpha * dv).to(dtype), None, None, None


def few(columns: int, d_out: int, d_in: int) -> bool:
    """Whether to keep a copy of the touched columns rather than x itself, which a neighbour may keep anyway.

    Layers that read one x (q, k and v; gate and up) are seldom much narrower than x; one that narrows has it to itself.
    """
    return columns < (0.95 if d_out < d_in else 0.75) * d_in


def digest(index: Tensor) -> Tensor:
    """Eight bytes of a mask's SHA-256, as uint8."""
    return torch.tensor(list(hashlib.sha256(index.cpu().numpy().tobytes()).digest()[:8]), dtype=torch.uint8)
