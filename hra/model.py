"""From one layer to a model: attach adapters, drive them, merge, remove, save or load
them.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from hra import __version__, io, linear
from hra.adapter import Adapter
from hra.entries import Entries
from hra.methods import METHODS

LOADABLE: dict[str, type[Adapter]] = {
    **METHODS,
    "Entries": Entries,
}  # what a file may hold


class Adapted:
    """A model with the adapters of one method; `adapters` maps a site (dotted name) to
    its Adapter.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: dict[str, Adapter],
        method: type[Adapter],
        hyper: dict[str, Any],
        frozen: dict[str, bool],
    ) -> None:
        self.model, self.adapters, self.method, self.hyper = (
            model,
            adapters,
            method,
            hyper,
        )
        self._required_grad = frozen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    # ---- training
    # ------------------------------------------------------------------------------
    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, each parameter once."""
        seen: set[int] = set()
        groups = []
        for a in self.adapters.values():
            for g in a.param_groups(lr):
                fresh = [p for p in g["params"] if id(p) not in seen]
                seen.update(map(id, fresh))
                if fresh:
                    groups.append({**g, "params": fresh, "site": a.site, "rate": 1.0})
        return groups

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """To be called after `optimizer.step()`, with the step's number, from 1."""
        for a in self.adapters.values():
            a.after_step(step, optimizer)
        for g in optimizer.param_groups:
            if g.get("site") in self.adapters:
                g["rate"] = self.adapters[g["site"]].rate(step)

    @property
    def num_trainable(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for g in self.param_groups(1.0) for p in g["params"])

    # ---- back to a plain model
    # -----------------------------------------------------------------
    def detach(self) -> nn.Module:
        """The model as it was before `attach`, bit for bit."""
        self._refuse_empty()
        for a in self.adapters.values():
            a.release(self.model)
        return self._plain()

    def merge(self) -> nn.Module:
        """The plain model that computes the same map; nothing of hra is left in it."""
        self._refuse_empty()
        layers = {name: a.merged() for name, a in self.adapters.items()}
        for name, a in self.adapters.items():
            a.release(self.model)
            self.model.set_submodule(name, layers[name].train(a.training))
        return self._plain()

    def _refuse_empty(self) -> None:
        if not self.adapters:
            raise RuntimeError(
                "the adapters are gone already: this model was detached or merged."
            )

    def _plain(self) -> nn.Module:
        for name, p in self.model.named_parameters():
            p.requires_grad_(self._required_grad.get(name, p.requires_grad))
        self.adapters = {}
        return self.model

    # ---- files
    # ---------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, torch.Tensor]:
        """The adapters' own tensors as `site.name`; nothing of the base."""
        return _tensors(self.adapters)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapters to one safetensors file (see `hra.io`); a failure leaves
        an older file as it was.
        """
        if not self.adapters:
            raise RuntimeError("nothing to save: this model was detached or merged.")
        tensors, hyper = _packed(self.adapters, self.hyper)
        io.write(
            path,
            tensors,
            {
                "method": self.method.__name__,
                "hyper": hyper,
                "hra_version": __version__,
                "sites": self._sites(),
                "base": io.fingerprint(_base(self.model, self.adapters)),
            },
        )

    def _sites(self) -> dict[str, list[int]]:
        return {
            site: [] if a.whole_model else [a.d_out, a.d_in]
            for site, a in self.adapters.items()
        }

    # ---- to look at
    # ----------------------------------------------------------------------------
    def rows(self) -> list[tuple[str, tuple[int, int], int, float]]:
        """(site, (d_out, d_in), trained numbers, their share of the layer's weight) of
        every adapter.
        """
        counts = {
            s: sum(p.numel() for p in a.parameters() if p.requires_grad)
            for s, a in self.adapters.items()
        }
        shapes = {
            s: (a.d_out, a.d_in) for s, a in self.adapters.items() if not a.whole_model
        }
        return [
            (s, shapes[s], counts[s], counts[s] / (shapes[s][0] * shapes[s][1]))
            for s in shapes
        ]

    def __str__(self) -> str:
        hyper = ", ".join(f"{k}={v!r}" for k, v in self.hyper.items())
        width = max([4, *(len(s) for s in self.adapters)])
        total = sum(p.numel() for p in self.model.parameters())
        where = (
            "in the model"
            if self.method.whole_model
            else f"at {len(self.adapters)} sites"
        )
        lines = [
            f"{self.method.__name__}({hyper}) {where}",
            f"{'site':<{width}}  {'(d_out, d_in)':>14}  {'trained':>12}  share",
        ]
        lines += [
            f"{s:<{width}}  {d!s:>14}  {n:>12,}  {share:6.2%}"
            for s, d, n, share in self.rows()
        ]
        lines.append(
            f"{'all':<{width}}  {'':>14}  {self.num_trainable:>12,}  "
            f"{self.num_trainable / max(total, 1):6.2%}"
            " of the model's numbers"
        )
        return "\n".join(lines)

    __repr__ = __str__


def attach(
    model: nn.Module, method: type[Adapter], targets: str = "", **hyper: Any
) -> Adapted:
    """Put an adapter of `method` at every linear layer whose name matches the regular
    expression `targets`.

    The model is changed in place: everything but the adapters is frozen. `targets=""`
    takes every linear layer.

    Raises
        TypeError: `method` is no method, a hyperparameter does not exist or is of the
        wrong type. ValueError: nothing matches, a hyperparameter is out of range, a
        target's weight is tied, the model holds adapters.
    In every such case the model is left as it was.
    """
    if (
        not (isinstance(method, type) and issubclass(method, Adapter))
        or method is Adapter
    ):
        raise TypeError(
            f"method={method!r} is not a method of hra. There are: "
            f"{', '.join(METHODS)}."
        )
    hyper = method.hyperparameters(hyper)
    _refuse_adapted(model)
    if method.whole_model and targets:
        raise ValueError(
            f"{method.__name__} has the model itself as its layer: leave "
            f"targets={targets!r} out."
        )
    return _attach(
        model,
        method,
        {"": model} if method.whole_model else linear.sites(model, targets),
        hyper,
    )


def load(
    model: nn.Module, path: str | os.PathLike[str], strict_base: bool = True
) -> Adapted:
    """Attach the adapters of a file. `strict_base=False` accepts a base whose weights
    differ from those trained on.

    Raises `hra.io.AdapterFileError` (a ValueError) saying what is wrong; the model is
    then untouched.
    """
    _refuse_adapted(model)
    tensors, meta = io.read(path)
    if meta["method"] not in LOADABLE:
        raise io.AdapterFileError(
            f"{path} holds an unknown method {meta['method']!r}. Known: "
            f"{', '.join(METHODS)}."
        )
    method, every = LOADABLE[meta["method"]], dict(linear.linears(model))
    if method.whole_model:
        every = {"": model}
    missing = [s for s in meta["sites"] if s not in every]
    if missing:
        raise io.AdapterFileError(
            f"{path} is for another base: it adapts {missing[0]}, which this model "
            "does not have."
        )
    found = {s: every[s] for s in meta["sites"]}
    for site, shape in meta["sites"].items():
        if not method.whole_model and list(linear.weight(found[site]).shape) != shape:
            raise io.AdapterFileError(
                f"{path} is for another base: {site} is {tuple(shape)} there, "
                f"{tuple(linear.weight(found[site]).shape)} in this model."
            )

    def check_and_copy(adapters: dict[str, Adapter]) -> None:
        own = _packed(adapters, meta["hyper"])[0]
        gone, extra = (
            sorted(own.keys() - tensors.keys()),
            sorted(tensors.keys() - own.keys()),
        )
        if gone and extra:
            raise io.AdapterFileError(
                f"{path} holds another method's tensors than {method.__name__}'s: "
                f"{extra[0]} is there, {gone[0]} is not."
            )
        if gone:
            raise io.AdapterFileError(
                f"{path}: {len(gone)} tensors are missing, e.g. {gone[0]}."
            )
        if extra:
            raise io.AdapterFileError(
                f"{path}: {len(extra)} tensors are too many, e.g. {extra[0]}."
            )
        for k, v in own.items():
            if v.shape != tensors[k].shape:
                raise io.AdapterFileError(
                    f"{path}: {k} has the wrong shape {tuple(tensors[k].shape)}; "
                    f"{method.__name__} needs {tuple(v.shape)}."
                )
        if strict_base and io.fingerprint(_base(model, adapters)) != meta["base"]:
            raise io.AdapterFileError(
                f"{path} is for another base: this model's adapted weights differ "
                "from those it was "
                "trained on. Load the right model, or pass strict_base=False."
            )
        io.verify(path, tensors, meta)
        for k, v in own.items():
            if v.dtype == torch.uint8 and not torch.equal(v, tensors[k].to(v.device)):
                raise io.AdapterFileError(
                    f"{path} is for another base: the mask of {k.rpartition('.')[0]} "
                    "is not the one that "
                    "this model gives."
                )
        for k, v in own.items():
            v.copy_(tensors[k])

    try:
        return _attach(model, method, found, meta["hyper"], check_and_copy, tensors)
    except io.AdapterFileError:
        raise
    except (TypeError, ValueError) as e:
        raise io.AdapterFileError(f"{path}: {e}") from None


def _tensors(adapters: dict[str, Adapter]) -> dict[str, torch.Tensor]:
    """`site.name` → tensor; one that several sites share stands under the first of
    them, once.
    """
    return _once(
        {
            f"{site}.{k}": v
            for site, a in adapters.items()
            for k, v in a.own_tensors().items()
        }
    )


def _once(every: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    return {
        k: v
        for k, v in every.items()
        if not (v.data_ptr() in seen or seen.add(v.data_ptr()))
    }  # type: ignore[func-returns-value]


def _packed(
    adapters: dict[str, Adapter], hyper: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, hyperparameters) of an adapter file."""
    every: dict[str, torch.Tensor] = {}
    written = hyper
    for site, a in adapters.items():
        own, written = a.packed(hyper)
        every |= {f"{site}.{k}": v for k, v in own.items()}
    return _once(every), written


def _base(model: nn.Module, adapters: dict[str, Adapter]) -> dict[str, torch.Tensor]:
    """What of the model the adapters depend on."""
    return {k: v for a in adapters.values() for k, v in a.base_tensors(model).items()}


def _refuse_adapted(model: nn.Module) -> None:
    held = [n for n, m in model.named_modules() if isinstance(m, Adapter)]
    if held:
        raise ValueError(
            f"the model already holds adapters, e.g. at {held[0] or 'its root'}: "
            "detach() or merge() them first."
        )


def _attach(
    model: nn.Module,
    method: type[Adapter],
    found: dict[str, nn.Module],
    hyper: dict[str, Any],
    prepare: Any = None,
    tensors: dict[str, torch.Tensor] | None = None,
) -> Adapted:
    """Build every adapter first, install them only when all of them stand."""
    if "" in found and not method.whole_model:
        raise ValueError(
            f"the model is itself a linear layer; build the adapter directly: "
            f"hra.{method.__name__}(layer)."
        )
    for name, layer in found.items():
        if method.whole_model:
            break
        names = linear.owners(model, layer.weight)  # type: ignore[arg-type]
        if len(names) > 1:
            raise ValueError(
                f"{name}.weight is tied: the model holds the same tensor as "
                f"{' and '.join(names)}. An adapter "
                "here would change one use and not the other; choose other targets, "
                "or untie the weight."
            )
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        plan = (
            method.plan(found, **hyper)
            if tensors is None
            else method.plan_from_file(found, hyper, tensors)
        )
        adapters = {name: method(found[name], **kw) for name, kw in plan.items()}
        if prepare is not None:
            prepare(adapters)
    except BaseException:
        for name, p in model.named_parameters():
            p.requires_grad_(before[name])
        raise
    model.requires_grad_(False)
    for a in adapters.values():
        a.install(model)
    return Adapted(model, adapters, method, dict(hyper), before)
