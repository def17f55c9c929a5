"""Shipping adapters: change the model from one saved adapter to another in place, or
add several up.

A SHiRA file costs K numbers to write and K to take back. A method with a dense ΔW costs
its merged matrices: `Switch` keeps them, and one pristine copy of each weight that they
replace, in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear, sparse
from hra.adapter import check_number
from hra.entries import Entries
from hra.methods.fullft import FullFT
from hra.model import Adapted, _attach, _refuse_adapted, load

_Path = str | os.PathLike[str]


class Switch:
    """The model with one of several adapter files written into its weights, or none.

    `to(file)` takes the present one back and writes the other; `off()` gives the
    pretrained model back. Both are exact to the bit after any number of switches:
    displaced values are put back, never subtracted. A file once loaded stays in memory.
    Raises what `hra.load` raises, TypeError for a method that has no ΔW; the model then
    holds what it held before.
    """

    def __init__(self, model: nn.Module) -> None:
        _refuse_adapted(model)
        self.model = model
        self.active: str | None = None  # the file that is written into the model
        self._files: dict[str, list[tuple[Tensor, Tensor | None, Tensor, Tensor]]] = {}
        self._pristine: dict[str, Tensor] = {}
        self._keys: dict[str, str] = {}

    def to(self, path: _Path) -> nn.Module:
        """Write the adapter of `path` into the model, in place of the one that is
        there.
        """
        name = str(path)
        if name not in self._keys:  # a file system is slower than a switch
            self._keys[name] = str(Path(path).resolve())
        key = self._keys[name]
        if key not in self._files:
            before = self.active
            self.off()
            try:
                self._files[key] = self._load(path)
            finally:
                self._on(before)
        if key != self.active:
            self.off()
            self._on(key)
        return self.model

    def off(self) -> nn.Module:
        """The pretrained model, bit for bit."""
        if self.active is not None:
            for flat, position, old, _ in self._files[self.active]:
                self._put(flat, position, old)
            self.active = None
        return self.model

    def _on(self, key: str | None) -> None:
        if key is not None:
            for flat, position, _, new in self._files[key]:
                self._put(flat, position, new)
            self.active = key

    @staticmethod
    def _put(flat: Tensor, position: Tensor | None, values: Tensor) -> None:
        if position is None:
            flat.copy_(values)
        else:
            flat.index_copy_(0, position, values)

    def _load(self, path: _Path) -> list[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """(the weight's storage, positions or None for all, displaced values, new
        values) of every tensor that changes.
        """
        tuned = load(self.model, path)
        made: list[tuple[Tensor, Tensor | None, Tensor, Tensor]] = []
        try:
            for site, a in tuned.adapters.items():
                if a.no_delta:
                    raise TypeError(
                        f"{path} holds a {type(a).__name__}, which has no ΔW: "
                        f"{a.no_delta}. It cannot be switched."
                    )
                for name, (position, new) in a.changes().items():
                    now = a.base.get_parameter(name).data.view(-1)
                    if position is None:
                        old = self._pristine.setdefault(f"{site}.{name}", now.clone())
                        made.append((now, None, old, new.clone()))
                    else:
                        position, order = (
                            position.sort()
                        )  # writes that go forward in memory are faster
                        made.append((now, position, now[position], new[order]))
        finally:
            tuned.detach()
        return made


def fuse(model: nn.Module, files: Mapping[_Path, float]) -> Adapted:
    """Σ weight · ΔW over adapter files, attached to `model`: SHiRA and other methods
    may be mixed, sites may differ.

    The result is a SHiRA on the union of the masks if every file is one, else dense
    (FullFT); it can be saved, merged, detached. The sum is formed in float64 in the
    order of the files' names: the order of the mapping does not matter, not even in the
    last bit. Raises what `hra.load` raises; ValueError for no file or a weight that is
    no finite number; TypeError for a method without ΔW.
    """
    if not files:
        raise ValueError("fuse needs at least one file: {file: weight}.")
    for w in files.values():
        check_number("weight", w, float("-inf"), float("inf"))
    deltas: dict[str, list[tuple[Tensor | None, Tensor]]] = {}
    for path in sorted(files, key=lambda p: str(p)):
        tuned = load(model, path)
        try:
            for site, a in tuned.adapters.items():
                if a.no_delta:
                    raise TypeError(
                        f"{path} holds a {type(a).__name__}, which has no ΔW: "
                        f"{a.no_delta}. It cannot be fused."
                    )
                index, values = a.entries()
                deltas.setdefault(site, []).append(
                    (None if index is None else index.clone(), files[path] * values)
                )
        finally:
            tuned.detach()
    found = {s: model.get_submodule(s) for s in deltas}
    if all(index is not None for parts in deltas.values() for index, _ in parts):
        return _sparse_sum(model, found, deltas)
    return _dense_sum(model, found, deltas)


def _sparse_sum(
    model: nn.Module,
    found: dict[str, nn.Module],
    deltas: dict[str, list[tuple[Any, Tensor]]],
) -> Adapted:
    tensors: dict[str, Tensor] = {}
    for s, parts in deltas.items():
        index = torch.cat([i for i, _ in parts]).unique()
        total = torch.zeros(len(index), dtype=torch.float64, device=index.device)
        for i, values in parts:
            total[torch.searchsorted(index, i)] += values
        dtype = torch.promote_types(linear.weight(found[s]).dtype, torch.float32)
        tensors |= {
            f"{s}.gaps": sparse.pack(index.cpu()),
            f"{s}.values": total.to(dtype),
        }

    def fill(adapters: dict[str, Any]) -> None:
        for s, a in adapters.items():
            a.values.data.copy_(tensors[f"{s}.values"])

    return _attach(model, Entries, found, {}, fill, tensors)


def _dense_sum(
    model: nn.Module,
    found: dict[str, nn.Module],
    deltas: dict[str, list[tuple[Any, Tensor]]],
) -> Adapted:
    def fill(adapters: dict[str, Any]) -> None:
        for s, a in adapters.items():
            total = torch.zeros(
                a.d_out, a.d_in, dtype=torch.float64, device=a.delta.device
            )
            for index, part in deltas[s]:
                total += (
                    part
                    if index is None
                    else sparse.scatter(part, index, a.d_out, a.d_in)
                )
            a.delta.data.copy_(total)

    return _attach(model, FullFT, found, {}, fill)
