"""A module that trains in full beside the adapters: a new head, the layer norms."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hra import linear
from hra.adapter import WIDE, Method


class Also(Method):
    """Stands for `base` and computes with trained copies of its parameters.

    The copies are float32 or wider; `base` keeps the pretrained numbers, so that
    `detach` is exact. Running statistics (BatchNorm) move with the training, are saved,
    and put back.
    """

    def __init__(self, base: nn.Module, *, seed: int = 0, site: str = "") -> None:
        super().__init__(seed=seed, site=site)
        self.base = base.requires_grad_(False)
        self.names = [n for n, _ in base.named_parameters()]
        if not self.names:
            raise ValueError(f"also: {site} has no parameters to train.")
        self.trained = nn.ParameterList(
            nn.Parameter(p.detach().to(torch.promote_types(p.dtype, WIDE), copy=True))
            for p in base.parameters()
        )
        for i, b in enumerate(base.buffers()):
            self.register_buffer(f"before{i}", b.detach().clone(), persistent=False)
        self.training = base.training

    @classmethod
    def sites(cls, model: nn.Module, targets: str) -> dict[str, nn.Module]:
        """The modules with parameters whose name contains the expression `targets`; of
        one inside another the outer.
        """
        named = {
            n: m
            for n, m in model.named_modules()
            if n and any(True for _ in m.parameters())
        }
        names = linear.matching(list(named), targets, "also", "module with parameters")
        outer = [
            n for n in names if not any(n.startswith(f"{other}.") for other in names)
        ]
        found = {n: named[n] for n in outer}
        return found

    @staticmethod
    def check_places(
        model: nn.Module, found: dict[str, nn.Module], sites: Iterable[str]
    ) -> None:
        """Raise ValueError where a module meets another one or an adapter's site, or
        where one of its parameters is held outside of it too.
        """
        held = linear.holders(model)
        for name, module in found.items():
            both = [s for s in (*sites, *found) if s != name and meets(s, [name])]
            if both or name in sites:
                raise ValueError(
                    f"also: {name} meets {both[0] if both else name}, which has an "
                    "adapter or trains in full already: choose one of the two."
                )
            for p in module.parameters():
                others = [
                    n for n in linear.owners(held, p) if not n.startswith(f"{name}.")
                ]
                if others:
                    raise ValueError(
                        f"also: {name} holds a tied tensor: the model holds it as "
                        f"{others[0]} too, which would not train along. Untie the two, "
                        "or leave it out."
                    )

    def _parameters_now(self) -> dict[str, Tensor]:
        base = dict(self.base.named_parameters())
        pairs = zip(self.names, self.trained, strict=True)
        return {n: p.to(base[n].dtype) for n, p in pairs}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.base, self._parameters_now(), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """What else a model asks of the module: its trained weight, its sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "base" not in modules or "trained" not in modules:
                raise
            if name in self.names:
                return self._parameters_now()[name]
            return getattr(modules["base"], name)

    def install(self, model: nn.Module) -> None:
        model.set_submodule(self.site, self)

    @torch.no_grad()
    def release(self, model: nn.Module) -> None:
        for i, b in enumerate(self.base.buffers()):
            b.copy_(self.get_buffer(f"before{i}"))
        self.base.train(self.training)
        model.set_submodule(self.site, self.base)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A copy of the module that holds what was trained."""
        module, new = copy.deepcopy(self.base), self._parameters_now()
        for n, p in module.named_parameters():
            p.copy_(new[n])
        return module

    def own_tensors(self) -> dict[str, Tensor]:
        own = dict(zip(self.names, self.trained, strict=True))
        return own | dict(self.base.named_buffers())

    def base_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{self.site}.{n}": p for n, p in self.base.named_parameters()}

    @torch.no_grad()
    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        return {n: (None, p) for n, p in self._parameters_now().items()}


def meets(name: str, others: Iterable[str], inside: bool = False) -> bool:
    """Whether the module `name` is one of `others` or lies in one, or, unless `inside`
    is asked for, holds one.
    """
    return any(
        name == n
        or name.startswith(f"{n}.")
        or (not inside and n.startswith(f"{name}."))
        for n in others
    )
