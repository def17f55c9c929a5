"""What the best matrix of rank r keeps of a sparse change: mask, density and rank, the
residual, and the same for a full change.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import traitlets
from torch import Tensor

from hra import masks
from hra.analysis import rank
from hra.viz.static import StaticWidget, check

DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25)
SIDE = 96  # the page decomposes a matrix itself
ZERO = 1e-9  # of σ₁: what counts as a singular value of zero


class SparseRank(StaticWidget):
    """Keep rank r of a sparse change S (m, n): the share of ‖S‖² that Eckart and Young
    allow, what is left as a multiple of σ²_{r+1}, S and its residual as pictures.

    The masks that need no gradient (rand, struct, weight) are drawn at every density,
    with one matrix of normal numbers on all of them; `weight` (m, n) is what the rule
    of that name looks at. Beside it stand `full`, a full change of the same shape, and
    those normal numbers without a mask. `others`: {name: change}, with a density of its
    own each; only one of the same shape is compared with `full`. Entries are kept in 16
    bits.
    """

    _js_path = Path(__file__).with_name("sparserank.js")
    # mask -> one matrix a density, or one only: shape, bits of the mask and int16 as
    # base64, unit of the int16
    changes: Any = traitlets.Dict().tag(sync=True)
    densities: Any = traitlets.List().tag(sync=True)
    shape: Any = traitlets.List().tag(sync=True)
    full: Any = traitlets.List().tag(sync=True)  # σ of the full change
    random: Any = traitlets.List().tag(sync=True)  # σ of the dense random one
    mask = traitlets.Unicode().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    r = traitlets.Int(1).tag(sync=True)

    def __init__(
        self,
        weight: Tensor,
        full: Tensor,
        others: Mapping[str, Tensor] | None = None,
        *,
        densities: Sequence[float] = DENSITIES,
        seed: int = 0,
        mask: str = "rand",
        **kwargs: Any,
    ) -> None:
        shape = tuple(weight.shape)
        for name, M in {"weight": weight, "full": full, **(others or {})}.items():
            if M.ndim != 2 or not 1 <= min(M.shape) <= max(M.shape) <= SIDE:
                raise ValueError(
                    f"{name} is {tuple(M.shape)}; a matrix of 1 to {SIDE} rows and "
                    "columns is needed."
                )
            if not (torch.isfinite(M).all() and M.any()):
                raise ValueError(f"{name} is zero, or holds NaN or Inf.")
        if tuple(full.shape) != shape:
            raise ValueError(f"full is {tuple(full.shape)}, weight is {shape}.")
        numbers = torch.randn(
            shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double
        )
        changes = {
            name: [_pack(numbers * _on(name, weight, p, seed)) for p in densities]
            for name in ("rand", "struct", "weight")
        }
        if taken := changes.keys() & (others or {}).keys():
            raise ValueError(f"{', '.join(taken)} is drawn here; choose another name.")
        kwargs.setdefault("title", "The best low rank of a sparse matrix")
        kwargs.setdefault(
            "caption",
            "Choose a mask and a density, drag the rank: watch the share that is kept "
            "and what the residual looks like.",
        )
        kwargs.setdefault(
            "alt",
            "Share of the energy that the best matrix of rank r keeps, for a sparse "
            "change, a full one and dense random numbers; the change and its residual",
        )
        super().__init__(
            changes=changes | {k: [_pack(M)] for k, M in (others or {}).items()},
            densities=[float(p) for p in densities],
            shape=list(shape),
            full=[float(f"{s:.5g}") for s in rank.spectrum(full)],
            random=[float(f"{s:.5g}") for s in rank.spectrum(numbers)],
            mask=mask,
            **kwargs,
        )
        self.refuse_over_limit(instead="; leave out some densities, or take fewer rows")

    @traitlets.validate("mask")
    def _check_mask(self, proposal: Any) -> str:
        return check(proposal, self.changes) if self.changes else proposal["value"]

    @traitlets.validate("at")
    def _check_at(self, proposal: Any) -> int:
        n = len(self.densities)
        return check(proposal, 0, n - 1) if n else proposal["value"]

    @traitlets.validate("r")
    def _check_r(self, proposal: Any) -> int:
        return check(proposal, 0, min(self.shape)) if self.shape else proposal["value"]

    def matrix(self) -> Tensor:
        """The present change S, float64."""
        of_mask = self.changes[self.mask]
        one = of_mask[self.at if len(of_mask) > 1 else 0]
        m, n = one["shape"]
        bits = torch.frombuffer(
            bytearray(base64.b64decode(one["bits"])), dtype=torch.uint8
        )
        on = (bits[:, None] >> torch.arange(8) & 1).flatten()[: m * n].bool()
        values = torch.frombuffer(
            bytearray(base64.b64decode(one["values"])), dtype=torch.int16
        )
        S = torch.zeros(m * n, dtype=torch.double)
        return S.masked_scatter(on, values.double() * one["unit"]).view(m, n)

    def facts(self) -> dict[str, Any]:
        """K, rank of S; r, at most min(m, n); the kept share of the energy, of `full`
        and of dense random numbers (None for another shape); the share σ²_{r+1} and
        what is `left` as a multiple of it (None where nothing is); `matched`, the rank
        at which a LoRA has K numbers, and `lora`, the whole one: a twentieth of a rank
        too few is as many.
        """
        S = self.matrix()
        sigma, r = rank.spectrum(S), min(self.r, *S.shape)
        next_ = float(sigma[r]) if r < len(sigma) else 0.0
        energy, cut = float(sigma.square().sum()), float(sigma[r:].square().sum())
        some = next_ > ZERO * float(sigma[0])
        same = list(S.shape) == self.shape
        return {
            "K": int((S != 0).sum()),
            "rank": rank.count_above(S, ZERO * float(sigma[0])),
            "r": r,
            "kept": 1 - cut / energy if some else 1.0,
            "full": _kept(self.full, r) if same else None,
            "random": _kept(self.random, r) if same else None,
            "next": next_**2 / energy if some else 0.0,
            "left": cut / next_**2 if some else None,
            "matched": int((S != 0).sum()) / sum(S.shape),
            "lora": int(int((S != 0).sum()) / sum(S.shape) + 0.05),
        }

    def summary(self) -> str:
        f = self.facts()
        beside = f", of a full change {f['full']:.0%}" if f["full"] is not None else ""
        return (
            f"{self.mask}, {f['K']:,} entries: rank {f['r']} keeps {f['kept']:.0%} of "
            f"the energy{beside}"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, axes = figure(
            9.0, 3.0, 3, caption=self.caption or self.alt, alt=self.summary()
        )
        S, f = self.matrix(), self.facts()
        left, most = S - rank.truncate(S, f["r"]), float(S.abs().max())
        for ax, M, name in zip(
            axes, (S, left), ("S", f"S less rank {f['r']}"), strict=False
        ):
            ax.imshow(M, cmap="PuOr_r", vmin=-most, vmax=most)
            ax.grid(False)
            ax.set(xlabel="input j", ylabel="output i", title=name)
        ranks, n = range(len(self.full) + 1), min(S.shape)
        curve = [0.0, *rank.captured(S).tolist()]
        axes[2].plot(curve, color=FAMILIES["sparse"], label=self.mask)
        if n == min(self.shape):
            for sigma, dash, name in (
                (self.full, "-", "full"),
                (self.random, ":", "random"),
            ):
                axes[2].plot([_kept(sigma, k) for k in ranks], dash, color=INK)
                axes[2].annotate(name, (n, 1), ha="right", va="top")
        axes[2].axvline(f["r"], color=INK, linewidth=1)
        axes[2].set(xlabel="rank r", ylabel="share kept")
        return fig


def _kept(sigma: list[float], r: int) -> float:
    squares = [s * s for s in sigma]
    return sum(squares[:r]) / sum(squares)


def _on(rule: str, weight: Tensor, density: float, seed: int) -> Tensor:
    """The rule's mask, (m, n) of zeros and ones."""
    m, n = weight.shape
    count = masks.budget(m, n, density)
    if rule == "rand":
        index = masks.rand(m, n, count, torch.Generator().manual_seed(seed))
    elif rule == "struct":
        index = masks.struct(m, n, masks.frequency(m, n, density))
    else:
        index = masks.top(weight.abs(), count)
    return torch.zeros(m * n, dtype=torch.double).index_fill(0, index, 1).view(m, n)


def _pack(S: Tensor) -> dict[str, Any]:
    flat = S.detach().cpu().double().flatten()
    on = flat != 0
    unit = float(f"{flat.abs().max() / 32_767:.9g}")
    # no entry of the mask becomes a zero
    whole = (flat[on] / unit).round()
    whole = torch.where(whole == 0, flat[on].sign(), whole).to(torch.int16)
    bits = torch.nn.functional.pad(on.to(torch.uint8), (0, -len(on) % 8)).view(-1, 8)
    packed = (bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
    return {
        "shape": list(S.shape),
        "bits": base64.b64encode(packed.numpy().tobytes()).decode(),
        "values": base64.b64encode(whole.numpy().tobytes()).decode(),
        "unit": unit,
    }
