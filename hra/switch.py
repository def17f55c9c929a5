"""Shipping adapters: change the model from one saved adapter to another in place, or
add several up.

A sparse file costs K numbers to write and K to take back. A method with a dense ΔW
costs its merged matrices: `Switch` keeps them, and one pristine copy of each weight
that they replace, in memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hra import sparse
from hra.adapter import Method
from hra.also import Also
from hra.checks import check_number
from hra.entries import Entries
from hra.methods.fullft import FullFT
from hra.model import Adapted, _attach, built, plain, refuse_adapted

_Path = str | os.PathLike[str]
# (a tensor of the model, positions in its storage or None for all, what was there, new)
_Write = tuple[Tensor, Tensor | None, Tensor, Tensor]


class Switch:
    """The model with one of several adapter files written into its weights, or none.

    `to(file)` takes the present one back and writes the other; `off()` gives the
    pretrained model back. Both are exact to the bit after any number of switches:
    displaced values are put back, never subtracted. A file once loaded stays in memory.

        switch = hra.Switch(model)
        switch.to("a.safetensors"); switch.to("b.safetensors"); switch.off()

    Raises what `hra.load` raises, TypeError for a method that has no ΔW; the model then
    holds what it held before. After an interruption at any moment `off()` gives the
    pretrained model. A second thread waits for the first.
    """

    def __init__(self, model: nn.Module) -> None:
        refuse_adapted(plain(model))
        self.model = model
        self.active: str | None = None  # the file that may be written into the model
        self.strength = 1.0  # of the active file
        self._files: dict[str, list[_Write]] = {}
        self._pristine: dict[str, Tensor] = {}
        self._keys: dict[str, str] = {}
        self._turn = threading.RLock()

    def to(
        self, path: _Path, method: type[Method] | None = None, *, strength: float = 1.0
    ) -> nn.Module:
        """Write the adapter of `path` into the model, in place of the one there;
        `method`: its class, where that is one of your own. strength: W0 + strength · ΔW
        (what modules trained in full have learnt, too); at 0 the pretrained model, bit
        for bit. Raises ValueError for a strength that is no finite number.
        """
        check_number("strength", strength, float("-inf"), float("inf"))
        with self._turn:
            name = str(path)
            if name not in self._keys:  # a file system is slower than a switch
                self._keys[name] = str(Path(path).resolve())
            key = self._keys[name]
            if key not in self._files:
                before = self.active
                self.off()
                try:
                    self._files[key] = self._load(path, method)
                finally:
                    self._on(before, self.strength)
            if (key, strength) != (self.active, self.strength):
                self.off()
                self._on(key, strength)
            return self.model

    def off(self) -> nn.Module:
        """The pretrained model, bit for bit."""
        with self._turn:
            if self.active is not None:
                for tensor, position, old, _ in self._files[self.active]:
                    sparse.overwrite_(tensor, position, old)
                self.active = None
            return self.model

    def _on(self, key: str | None, strength: float) -> None:
        if key is not None:
            self.active = key  # before the first number: `off` then undoes any part
            self.strength = strength
            for tensor, position, old, new in self._files[key]:
                if strength != 1:
                    new = torch.lerp(old, new, strength)  # exactly `old` at 0
                sparse.overwrite_(tensor, position, new)

    def _load(self, path: _Path, own: type[Method] | None) -> list[_Write]:
        def writes(method: type, parts: dict[str, Any]) -> list[_Write]:
            made: list[_Write] = []
            for site, a in parts.items():
                _refuse_without_delta(a, path, "switched")
                for name, (position, new) in a.changes().items():
                    tensor = a.base.get_parameter(name)
                    if position is None:
                        where = f"{site}.{name}"
                        if where not in self._pristine:
                            self._pristine[where] = sparse.read(tensor, None)
                        made.append((tensor, None, self._pristine[where], new.clone()))
                    else:  # writes that go forward in memory are faster
                        position, order = position.sort()
                        old = sparse.read(tensor, position)
                        made.append((tensor, position, old, new[order]))
            return made

        return built(self.model, path, writes, own)


def fuse(
    model: nn.Module, files: Mapping[_Path, float], method: type[Method] | None = None
) -> Adapted:
    """Σ weight · ΔW over adapter files, attached to `model`; methods may be mixed,
    sites may differ. `method`: a class of your own that is among them.

        tuned = hra.fuse(model, {"a.safetensors": 1.0, "b.safetensors": 0.5})

    The result is `Entries` on the union of the masks if every file has one, else dense
    (FullFT); it can be saved, merged, detached. The sum is formed in float64 in the
    order of the files' names: the order of the mapping does not matter, not even in the
    last bit. Raises what `hra.load` raises; ValueError for no file or a weight that is
    no finite number; TypeError for a method without ΔW, a file with modules that were
    trained in full.
    """
    if not files:
        raise ValueError("fuse needs at least one file: {file: weight}.")
    for w in files.values():
        check_number("weight", w, float("-inf"), float("inf"))
    refuse_adapted(plain(model))
    deltas: dict[str, list[tuple[Tensor | None, Tensor]]] = {}
    for path in sorted(files, key=lambda p: str(p)):

        def add(method: type, parts: dict[str, Any], path: _Path = path) -> None:
            for site, a in parts.items():
                if isinstance(a, Also):
                    raise TypeError(
                        f"{path} holds {site}, trained in full: that is no ΔW to add."
                    )
                _refuse_without_delta(a, path, "fused")
                index, values = a.entries()
                index = None if index is None else index.clone()
                deltas.setdefault(site, []).append((index, files[path] * values))

        built(model, path, add, method)
    found = {s: plain(model).get_submodule(s) for s in deltas}
    indices = [i for parts in deltas.values() for i, _ in parts]
    if all(i is not None for i in indices):
        return _sparse_sum(model, found, deltas)
    return _dense_sum(model, found, deltas)


def _refuse_without_delta(a: Any, path: _Path, done: str) -> None:
    if a.no_delta:
        raise TypeError(
            f"{path} holds a {type(a).__name__}, which has no ΔW: {a.no_delta}. It "
            f"cannot be {done}."
        )


def _sparse_sum(
    model: nn.Module,
    found: dict[str, nn.Module],
    deltas: dict[str, list[tuple[Any, Tensor]]],
) -> Adapted:
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for s, parts in deltas.items():
        index = torch.cat([i for i, _ in parts]).unique()
        total = torch.zeros(len(index), dtype=torch.float64, device=index.device)
        for i, values in parts:
            total[torch.searchsorted(index, i)] += values
        sums[s] = index, total

    def fill(root: nn.Module, adapters: dict[str, Any]) -> None:
        for s, a in adapters.items():
            a.hold(sums[s][0])
            a.values.data.copy_(sums[s][1])

    return _attach(model, Entries, found, Entries.hyperparameters({}), fill=fill)


def _dense_sum(
    model: nn.Module,
    found: dict[str, nn.Module],
    deltas: dict[str, list[tuple[Any, Tensor]]],
) -> Adapted:
    def fill(root: nn.Module, adapters: dict[str, Any]) -> None:
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

    return _attach(model, FullFT, found, FullFT.hyperparameters({}), fill=fill)
