"""Partial fine-tuning: a part of the weight trains, chosen by hand or by lot.

    W = W0 + S    S: (d_out, d_in), zero outside the chosen units

The control of every method that chooses with care: a random child network, as in
Child-Tuning_F (Xu et al., 2021, arXiv:2109.05687), but drawn once, where that paper
draws anew in each step. A unit is an entry, a row (what one output reads), a column
(what one input feeds) or a block. S starts at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hra import masks
from hra.adapter import Adapter
from hra.checks import check_choice, check_count
from hra.entries import Entries
from hra.law import Law

UNITS = ("entry", "row", "column", "block")


class PartialFT(Entries):
    """Trains all entries of `count` units, or of the share `density` of them.

    size: the side of a block; blocks at the lower and the right edge may be smaller.
    chosen: which units, counted from 0 (blocks row by row, entries too): a list, or
    {site: list}; without it they are drawn from (seed, site).

    Raises TypeError or ValueError for another unit, a budget out of range, a unit that
    the layer does not have.
    """

    data = ("chosen",)

    def __init__(
        self,
        base: nn.Module,
        unit: str = "row",
        density: float = 0.01,
        count: int | None = None,
        size: int = 16,
        chosen: Any = None,
        *,
        shared: Tensor | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        Adapter.__init__(self, base, seed=seed, site=site)
        self.unit, self.size = (
            check_choice("unit", unit, UNITS),
            check_count("size", size),
        )
        self.drawn_by_lot = chosen is None and shared is None
        if shared is None:
            shared = self.positions(self.units(density, count, chosen))
        self.hold(shared)

    def grid(self) -> tuple[int, int, int, int]:
        """(how many units below one another, side by side, rows and columns of one)."""
        h, w = {
            "entry": (1, 1),
            "row": (1, self.d_in),
            "column": (self.d_out, 1),
            "block": (self.size, self.size),
        }[self.unit]
        return -(-self.d_out // h), -(-self.d_in // w), h, w

    def units(self, density: float, count: int | None, chosen: Any) -> Tensor:
        """The numbers of the units that train, sorted."""
        down, across, _, _ = self.grid()
        if chosen is None:
            K = masks.budget(down, across, density, count)
            return masks.rand(down, across, K, self.generator("units"))
        own = chosen.get(self.site, ()) if isinstance(chosen, dict) else chosen
        found = torch.as_tensor(own).flatten().unique()
        if not len(found) or found.is_floating_point():
            raise ValueError(
                f"chosen={own!r} names no {self.unit} of {self.site or 'the layer'}: "
                "give integers, one list for every layer or {site: list}."
            )
        if found[0] < 0 or found[-1] >= down * across:
            raise ValueError(
                f"chosen holds {int(found[0])} to {int(found[-1])}; "
                f"{self.site or 'the layer'} has {down * across} units of the kind "
                f"{self.unit!r}, 0 to {down * across - 1}."
            )
        return found.long()

    def positions(self, units: Tensor) -> Tensor:
        """The flat index of all entries of these units."""
        _, across, h, w = self.grid()
        rows, cols = torch.arange(self.d_out) // h, torch.arange(self.d_in) // w
        of = rows[:, None] * across + cols  # the unit of each entry
        return torch.isin(of, units.cpu()).flatten().nonzero()[:, 0]

    def by_rule(self) -> bool:
        return self.drawn_by_lot

    @classmethod
    def law(
        cls,
        adapter: Any = None,
        sizes: Mapping[str, int | str] | None = None,
        unit: str = "row",
        count: int | None = None,
        d_out: int | None = None,
        d_in: int | None = None,
        **given: Any,
    ) -> Law:
        """Without an adapter or a shape: units that no edge cuts. Of rows and columns
        the law is exact; entries and blocks are drawn to be counted.
        """
        drawn = unit in ("entry", "block") and given["chosen"] is None
        if adapter is None and d_out and d_in and drawn:
            layer = torch.nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False)
            own = {k: v for k, v in given.items() if k not in ("phase", "grad")}
            adapter = cls(layer, unit, count=count, **own)
        many, each, most = {
            "entry": ("d_out*d_in", "1", "K"),
            "row": ("d_out", "d_in", "d_in"),
            "column": ("d_in", "d_out", "K//d_out"),
            "block": ("d_out*d_in/(size*size)", "size*size", "K//size"),
        }[unit]
        n = f"max(1, (2*density*{many} + 1)//2)" if count is None else str(count)
        sizes = {"K": f"{n}*{each}", "columns": f"min({most}, d_in)"}
        return super().law(adapter, sizes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, unit={self.unit}, K={len(self.index):,}"
