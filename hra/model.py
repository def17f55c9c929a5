"""From one layer to a model: attach adapters, drive them, merge, remove, save or load
them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hra import __version__, io, linear
from hra.adapter import Adapter, Method
from hra.also import Also, meets
from hra.checks import or_undo
from hra.entries import Entries
from hra.methods import METHODS

LOADABLE: dict[str, type[Method]] = {**METHODS, "Entries": Entries}
_Path = str | os.PathLike[str]


class Adapted:
    """A model with the adapters of one method; `adapters` maps a site (dotted name) to
    its Adapter, `also` the name of a module that trains in full to what stands for it.
    """

    def __init__(
        self,
        model: nn.Module,
        method: type[Method],
        hyper: dict[str, Any],
        adapters: dict[str, Any],
        also: dict[str, Also],
        flags: list[tuple[str, bool]],
    ) -> None:
        self.model, self.method = model, method
        self.hyper = {k: v for k, v in hyper.items() if k not in method.data}
        self.adapters, self.also = adapters, also
        self.log: Any = None  # of the last `hra.fit`
        self._flags = flags  # (parameter, did it require a gradient before)
        self._statistics = _running_statistics(plain(model), also)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @property
    def parts(self) -> dict[str, Method]:
        """All that trains: the adapters, and what stands for modules of `also`."""
        return self.adapters | self.also

    # ---- training ------------------------------------------------------------------
    def begin(self, steps: int) -> None:
        """Training is about to start, for so many steps. ValueError: too few."""
        for a in self.parts.values():
            a.begin(steps)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, each parameter once."""
        seen: set[int] = set()
        groups = []
        for site, a in self.parts.items():
            for g in a.param_groups(lr):
                fresh = [p for p in g["params"] if id(p) not in seen]
                seen.update(map(id, fresh))
                if fresh:
                    groups.append({**g, "params": fresh, "site": site, "rate": 1.0})
        return groups

    def after_step(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> list[dict[str, Any]]:
        """To be called after `optimizer.step()` (and after a scheduler's step), with
        the step's number, from 1; returns what happened, a dict an event.

        A method's own multiplier (`rate`) goes into the groups of `param_groups`:
        a learning rate that was set since is multiplied, the last product is renewed.
        """
        events: list[dict[str, Any]] = []
        for site, a in self.parts.items():
            event = a.after_step(step, optimizer)
            if event is not None:
                events.append({"step": step, "site": site, **event})
        for g in optimizer.param_groups:
            if g.get("site") in self.parts:
                untouched = g["lr"] == g.get("product")
                g["plain"] = g["plain"] if untouched else g["lr"]
                g["rate"] = self.parts[g["site"]].rate(step)
                g["lr"] = g["product"] = g["plain"] * g["rate"]
        return events

    def penalty(self) -> Tensor | float:
        """What the adapters add to the loss of a step: 0.0 for most methods."""
        return sum((a.penalty() for a in self.parts.values()), 0.0)

    @property
    def num_trainable(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for g in self.param_groups(1.0) for p in g["params"])

    # ---- back to a plain model -----------------------------------------------------
    @torch.no_grad()
    def detach(self) -> nn.Module:
        """The model as it was before `attach`, bit for bit."""
        root, parts = plain(self.model), self._parts_or_refuse()

        def work() -> nn.Module:
            for a in parts.values():
                a.release(root)
            for module, name, before in self._statistics:
                module.get_buffer(name).copy_(before)
            return self._plain(root)

        return or_undo(work, self._again)

    def merge(self) -> nn.Module:
        """The plain model that computes the same map; nothing of hra is left in it."""
        root, parts = plain(self.model), self._parts_or_refuse()
        layers = {name: a.merged() for name, a in parts.items()}

        def work() -> nn.Module:
            for name, a in parts.items():
                a.release(root)
                root.set_submodule(name, layers[name].train(a.training))
            return self._plain(root)

        return or_undo(work, self._again)

    def _parts_or_refuse(self) -> dict[str, Any]:
        if not self.parts:
            raise RuntimeError(
                "the adapters are gone already: this model was detached or merged."
            )
        own = dict(self.parts)
        trained = [p for p in plain(self.model).parameters() if p.requires_grad]

        def again() -> None:
            """Everything back in its place."""
            plain(self.model).requires_grad_(False)
            for a in own.values():
                a.install(plain(self.model))
            for p in trained:
                p.requires_grad_(True)
            self.adapters = {n: a for n, a in own.items() if not isinstance(a, Also)}
            self.also = {n: a for n, a in own.items() if isinstance(a, Also)}

        self._again = again
        return own

    def _plain(self, root: nn.Module) -> nn.Module:
        flags = dict(self._flags)
        for name, p in root.named_parameters():
            p.requires_grad_(flags.get(name, p.requires_grad))
        self.adapters, self.also = {}, {}
        return self.model

    # ---- files ---------------------------------------------------------------------
    def state_dict(self) -> dict[str, Tensor]:
        """The adapters' own tensors as `site.name`; nothing of the base."""
        own = {
            f"{site}.{k}": v
            for site, a in self.parts.items()
            for k, v in a.own_tensors().items()
        }
        return {k: v.detach() for k, v in own.items()}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave, here or in another process."""
        for site, a in self.parts.items():
            n = len(site) + 1
            a.set_own_tensors(
                {k[n:]: v for k, v in tensors.items() if k.startswith(f"{site}.")}
            )

    def base(self) -> dict[str, str]:
        """The fingerprint of what the adapters depend on: the pretrained weights."""
        root = plain(self.model)
        named = [a.base_tensors(root) for a in self.parts.values()]
        return io.fingerprint({k: v for tensors in named for k, v in tensors.items()})

    def save(self, path: _Path) -> None:
        """Write the adapters to one safetensors file (see `hra.io`); a failure leaves
        an older file as it was.

        Raises ValueError for NaN, or for running statistics (BatchNorm) that have
        moved: a file would hold less than what was trained. Warns of parameters that
        train and are none of the adapters'.
        """
        if not self.parts:
            raise RuntimeError("nothing to save: this model was detached or merged.")
        self.warn_of_strangers()
        if any(not torch.equal(m.get_buffer(n), b) for m, n, b in self._statistics):
            raise ValueError(
                "running statistics (BatchNorm) have moved since attach, and a file "
                "holds none: keep those modules in eval mode, as hra.fit does, or "
                "train and save them with attach(..., also=...)."
            )
        tensors, common, own = _packed(self.parts, self.hyper)
        io.write(
            path,
            {k: whole(v) for k, v in tensors.items()},
            {
                "method": self.method.__name__,
                "hyper": common,
                "own": own,
                "hra_version": __version__,
                "sites": {s: list(a.shape) for s, a in self.adapters.items()},
                "also": list(self.also),
                "base": self.base(),
                "drawn": _drawn(self.adapters),
            },
        )

    def warn_of_strangers(self) -> None:
        """Warn if parameters require a gradient that belong to no adapter."""
        own = {id(p) for a in self.parts.values() for p in a.parameters()}
        named = plain(self.model).named_parameters()
        others = [n for n, p in named if p.requires_grad and id(p) not in own]
        if others:
            warnings.warn(
                f"{others[0]} requires a gradient but belongs to no adapter: it is not "
                "trained by fit, counted or saved. Name its module in attach(..., "
                f"also=r'{others[0].rpartition('.')[0]}'), or freeze it.",
                stacklevel=3,
            )

    def statistical(self) -> list[nn.Module]:
        """Frozen modules that keep running statistics (BatchNorm)."""
        return [m for m, _, _ in self._statistics]

    # ---- to look at ----------------------------------------------------------------
    def rows(self) -> list[tuple[str, tuple[int, ...], int, float]]:
        """(site, (d_out, d_in), trained numbers, their share of the layer's weight) of
        every adapter.
        """
        rows = []
        for s, a in self.adapters.items():
            n = sum(p.numel() for p in a.parameters() if p.requires_grad)
            if a.shape:
                rows.append((s, a.shape, n, n / (a.shape[0] * a.shape[1])))
        return rows

    def __str__(self) -> str:
        hyper = ", ".join(f"{k}={v!r}" for k, v in self.hyper.items())
        width = max([4, *(len(s) for s in self.parts)])
        total = sum(p.numel() for p in self.model.parameters())
        sites = f"at {len(self.adapters)} sites"
        where = "in the model" if "" in self.adapters else sites
        lines = [
            f"{self.method.__name__}({hyper}) {where}",
            f"{'site':<{width}}  {'(d_out, d_in)':>14}  {'trained':>12}  share",
        ]
        lines += [
            f"{s:<{width}}  {d!s:>14}  {n:>12,}  {share:6.2%}"
            f"  {self.adapters[s].note}".rstrip()
            for s, d, n, share in self.rows()
        ]
        lines += [
            f"{s:<{width}}  {'in full':>14}  "
            f"{sum(p.numel() for p in a.trained):>12,}  {1:6.2%}"
            for s, a in self.also.items()
        ]
        n = self.num_trainable
        lines.append(
            f"{'all':<{width}}  {'':>14}  {n:>12,}  {n / max(total, 1):6.2%}"
            " of the model's numbers"
        )
        return "\n".join(lines)

    __repr__ = __str__


def attach(
    model: nn.Module,
    method: type[Method],
    targets: str = "",
    *,
    also: str = "",
    **hyper: Any,
) -> Adapted:
    """Put an adapter of `method` at every linear layer whose name matches the regular
    expression `targets`.

    The model is changed in place: everything but the adapters is frozen. `targets=""`
    takes every linear layer. Modules whose name matches `also` train in full beside
    them: they are counted, billed, saved, and put back by `detach`.

        model = hra.zoo.gpt2("tiny")          # c_attn: (576, 192), 4 blocks
        tuned = hra.attach(model, hra.LoRA, targets=r"c_attn$", r=8)
        tuned.adapters["transformer.h.0.attn.c_attn"].A.shape     # (8, 192)

    Raises
        TypeError: `method` is no method, a hyperparameter does not exist or is of the
            wrong type, a target is not a plain linear layer (quantised, hooked, …).
        ValueError: nothing matches, a hyperparameter is out of range, a target's weight
            is tied, the model holds adapters.
    In every such case, and after any interruption, the model is left as it was.
    """
    if not (isinstance(method, type) and issubclass(method, Method)) or method in (
        Method,
        Adapter,
    ):
        raise TypeError(
            f"method={method!r} is not a method of hra. There are: "
            f"{', '.join(METHODS)}."
        )
    root = plain(model)
    hyper = method.hyperparameters(hyper)
    refuse_adapted(root)
    full = Also.sites(root, also) if also else {}
    found = method.sites(root, targets)
    if not targets:
        found = {s: m for s, m in found.items() if not meets(s, full)}
        if not found:
            raise ValueError(
                f"also={also!r} takes in every layer: none is left for "
                f"{method.__name__}."
            )
    Also.check_places(root, full, found)
    return _attach(model, method, found, hyper, full)


def load(
    model: nn.Module,
    path: _Path,
    strict_base: bool = True,
    method: type[Method] | None = None,
) -> Adapted:
    """Attach the adapters of a file. `strict_base=False` accepts a base whose weights
    differ from those trained on. `method`: the class, where it is one of your own.

        tuned.save("moby.safetensors")
        tuned = hra.load(hra.zoo.gpt2("tiny"), "moby.safetensors")

    Raises `hra.io.AdapterFileError` (a ValueError) saying what is wrong; the model is
    then untouched.
    """
    refuse_adapted(plain(model))
    known = LOADABLE if method is None else {method.__name__: method}
    with io.opened(path) as file:
        cls, sites, full = _expected(plain(model), file, known)
        parts = _from_file(file, cls, strict_base)
    try:
        return _attach(model, cls, sites, file.meta["hyper"], full, parts)
    except io.AdapterFileError:
        raise
    except Exception as e:  # whatever its hyperparameters lead to
        raise file.refuse(f": {e}") from None


def built(
    model: nn.Module,
    path: _Path,
    use: Callable[[type[Method], dict[str, Any]], Any],
    own: type[Method] | None = None,
) -> Any:
    """use(method, {site: adapter}) for the adapters of a file, which are not installed:
    the model is left as it was. `own`: a class of one's own that it may be.
    """
    known = LOADABLE if own is None else LOADABLE | {own.__name__: own}
    root = plain(model)
    flags = [(p, p.requires_grad) for p in root.parameters()]

    def undo() -> None:
        for p, flag in flags:
            p.requires_grad_(flag)

    def work() -> Any:
        with io.opened(path) as file:
            cls, sites, full = _expected(root, file, known)
            fill = _from_file(file, cls, strict_base=True)
            hyper = file.meta["hyper"]
            try:
                adapters, also = _build(root, cls, sites, hyper, full, fill)
            except io.AdapterFileError:
                raise
            except Exception as e:
                raise file.refuse(f": {e}") from None
        result = use(cls, adapters | also)
        undo()
        return result

    return or_undo(work, undo)


# ---- from a file to adapters -------------------------------------------------------


def _expected(
    root: nn.Module, file: io.AdapterFile, known: dict[str, type[Method]]
) -> tuple[type[Method], dict[str, nn.Module], dict[str, nn.Module]]:
    """(the method, its layers, the modules of `also`): what the header asks for, held
    against the model and the method's schema before anything is built.
    """
    meta = file.meta
    if meta["method"] not in known:
        raise file.refuse(
            f" holds an unknown method {meta['method']!r}. Known: {', '.join(known)}. "
            "A class of your own is named with method=Mine."
        )
    method = known[meta["method"]]
    try:
        full = set(method.hyperparameters(meta["hyper"])) - set(method.data)
        for own in meta["own"].values():
            method.hyperparameters(own)
    except TypeError as e:
        raise file.refuse(f": {e}") from None
    if set(meta["hyper"]) != full:
        gone = sorted(full ^ set(meta["hyper"]))[0]
        raise file.refuse(f": the hyperparameter {gone} is missing or is data.")
    whole_model = [] in meta["sites"].values()
    every = {"": root} if whole_model else dict(linear.linears(root))
    for site, shape in meta["sites"].items():
        if site not in every:
            raise file.refuse(
                f" is for another base: it adapts {site!r}, which this model does not "
                "have."
            )
        own_shape = [] if whole_model else list(linear.weight(every[site]).shape)
        if own_shape != shape:
            raise file.refuse(
                f" is for another base: {site} is {tuple(shape)} there, "
                f"{tuple(own_shape)} in this model."
            )
        hyper = meta["hyper"] | meta["own"].get(site, {})
        try:
            schema = method.schema(tuple(shape), hyper)
        except (TypeError, ValueError) as e:
            raise file.refuse(f": {e}") from None
        _check_schema(file, site, schema)
    sites = {n: m for n, m in every.items() if n in meta["sites"]}
    try:
        if not whole_model:
            linear.check_places(root, sites, method.__name__ if method.no_delta else "")
        also = {n: root.get_submodule(n) for n in meta["also"]}
        Also.check_places(root, also, sites)
    except (AttributeError, TypeError, ValueError) as e:
        raise file.refuse(f" is for another base: {e}") from None
    for n, m in also.items():
        sizes = [*m.named_parameters(), *m.named_buffers()]
        _check_schema(file, n, {k: tuple(t.shape) for k, t in sizes})
    return method, sites, also


def _check_schema(file: io.AdapterFile, site: str, schema: dict[str, Any]) -> None:
    for name, shape in schema.items():
        key = f"{site}.{name}"
        there = file.shapes.get(key)
        if there is None:
            if not any(k.endswith(f".{name}") for k in file.shapes):
                raise _wrong_tensors(file, {key})
            continue
        if len(there) != len(shape) or any(
            a not in (None, b) for a, b in zip(shape, there, strict=True)
        ):
            wanted = ", ".join("any" if d is None else str(d) for d in shape)
            raise file.refuse(
                f": {key} has the wrong shape {there}; {file.meta['method']} needs "
                f"({wanted})."
            )


def _wrong_tensors(file: io.AdapterFile, needed: set[str]) -> io.AdapterFileError:
    gone, extra = sorted(needed - set(file.shapes)), sorted(set(file.shapes) - needed)
    if gone and extra:
        return file.refuse(
            f" holds another method's tensors than {file.meta['method']}'s: {extra[0]} "
            f"is there, {gone[0]} is not."
        )
    if gone:
        return file.refuse(f": {len(gone)} tensors are missing, e.g. {gone[0]}.")
    return file.refuse(f": {len(extra)} tensors are too many, e.g. {extra[0]}.")


class _from_file:
    """Fills adapters with what a file holds, once all of it has been found right."""

    def __init__(
        self, file: io.AdapterFile, method: type[Method], strict_base: bool
    ) -> None:
        self.file, self.strict_base = file, strict_base
        self.found = file.tensors()

    def plan(
        self, cls: type[Method], sites: dict[str, nn.Module], hyper: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        hyper = cls.hyperparameters(hyper)
        made = cls.plan_from_file(sites, hyper, self.found)
        for site, own in self.file.meta["own"].items():
            made[site] |= own
        return made

    def __call__(self, root: nn.Module, parts: dict[str, Any]) -> None:
        file, meta = self.file, self.file.meta
        adapters = {s: a for s, a in parts.items() if s in meta["sites"]}
        expected, common, own = _packed(parts, meta["hyper"])
        if set(expected) != set(file.shapes):
            raise _wrong_tensors(file, set(expected))
        for k, v in expected.items():
            if tuple(v.shape) != file.shapes[k]:
                raise file.refuse(
                    f": {k} has the wrong shape {file.shapes[k]}; {meta['method']} "
                    f"needs {tuple(v.shape)}."
                )
            same = v.dtype == file.dtypes[k] or (
                v.is_floating_point() and file.dtypes[k].is_floating_point
            )
            if not same:
                raise file.refuse(f": {k} is of {file.dtypes[k]}, not of {v.dtype}.")
        if common != meta["hyper"] or own != meta["own"]:
            raise file.refuse(
                f": no file of a {meta['method']} has these hyperparameters."
            )
        tensors = [a.base_tensors(root) for a in parts.values()]
        base = io.fingerprint({k: v for each in tensors for k, v in each.items()})
        if self.strict_base and base != meta["base"]:
            raise file.refuse(
                " is for another base: this model's adapted weights differ from those "
                "it was trained on. Load the right model, or pass strict_base=False."
            )
        here = _drawn(adapters)
        same_dtype = here.split()[:1] == meta["drawn"].split()[:1]
        if here != meta["drawn"] and (self.strict_base or same_dtype):
            raise file.refuse(
                ": the tensors that its seed gives here are not those that it was "
                "trained with."
            )
        for site, a in parts.items():
            n = len(site) + 1
            own_tensors = {
                k[n:]: v for k, v in self.found.items() if k.startswith(f"{site}.")
            }
            try:
                a.unpack(own_tensors)
            except (ValueError, KeyError) as e:
                raise file.refuse(f": {e}") from None


def _packed(
    parts: dict[str, Any], hyper: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, dict[str, Any]]]:
    """(tensors by `site.name`, the hyperparameters that all sites have, {site: those in
    which it differs}).
    """
    tensors: dict[str, Tensor] = {}
    written: dict[str, dict[str, Any]] = {}
    for site, a in parts.items():
        own, written_here = a.packed(hyper)
        tensors |= {f"{site}.{k}": v.detach() for k, v in own.items()}
        if not isinstance(a, Also):
            written[site] = written_here
    common = next(iter(written.values()))
    own_hyper = {
        site: {k: v for k, v in w.items() if v != common[k]}
        for site, w in sorted(written.items())
    }
    return tensors, common, {s: o for s, o in own_hyper.items() if o}


def _drawn(adapters: dict[str, Any]) -> str:
    """The dtype and the hash of what seeds give and no file holds."""
    drawn = {f"{s}.{k}": v for s, a in adapters.items() for k, v in a.drawn().items()}
    if not drawn:
        return ""
    dtype = next(iter(drawn.values())).dtype
    return f"{dtype} {io.fingerprint(drawn)['weights']}"


# ---- attaching ---------------------------------------------------------------------


def _build(
    root: nn.Module,
    method: type[Method],
    found: dict[str, nn.Module],
    hyper: dict[str, Any],
    full: dict[str, nn.Module],
    fill: Any = None,
) -> tuple[dict[str, Any], dict[str, Also]]:
    """The adapters, and what stands for the modules of `also`; nothing is installed."""
    plan = getattr(fill, "plan", None)
    made = plan(method, found, hyper) if plan else method.plan(found, **hyper)
    make: Any = method
    adapters = {name: make(found[name], **kw) for name, kw in made.items()}
    also = {name: Also(module, site=name) for name, module in full.items()}
    if fill is not None:
        fill(root, adapters | also)
    return adapters, also


def _attach(
    model: nn.Module,
    method: type[Method],
    found: dict[str, nn.Module],
    hyper: dict[str, Any],
    full: dict[str, nn.Module] | None = None,
    fill: Any = None,
) -> Adapted:
    """Build every adapter first, install them only when all of them stand."""
    root = plain(model)
    parts: dict[str, Any] = {}
    flags = [(n, p, p.requires_grad) for n, p in root.named_parameters()]

    def undo() -> None:
        for a in parts.values():
            a.release(root)
        for _, p, flag in flags:
            p.requires_grad_(flag)

    def work() -> Adapted:
        adapters, also = _build(root, method, found, hyper, full or {}, fill)
        root.requires_grad_(False)
        parts.update(adapters | also)
        for a in parts.values():
            a.install(root)
        before = [(n, flag) for n, _, flag in flags]
        return Adapted(model, method, dict(hyper), adapters, also, before)

    return or_undo(work, undo)


def plain(model: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` has wrapped it: its names are plain."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def whole(t: Tensor) -> Tensor:
    """All of a tensor of which a process holds a part (FSDP2); every process calls."""
    gather = getattr(t, "full_tensor", None)
    return t if gather is None else gather()


def refuse_adapted(model: nn.Module) -> None:
    held = [n for n, m in model.named_modules() if isinstance(m, Method)]
    if held:
        raise ValueError(
            f"the model already holds adapters, e.g. at {held[0] or 'its root'}: "
            "detach() or merge() them first."
        )


def _running_statistics(
    root: nn.Module, also: dict[str, Any]
) -> list[tuple[nn.Module, str, Tensor]]:
    """(module, buffer, its value now) where statistics of the inputs are kept."""
    return [
        (m, n, b.detach().clone())
        for name, m in root.named_modules()
        if is_statistical(m) and not meets(name, also, inside=True)
        for n, b in m.named_buffers(recurse=False)
    ]


def is_statistical(module: nn.Module) -> bool:
    """Whether the module's buffers move in training mode (BatchNorm)."""
    return bool(getattr(module, "track_running_stats", False))
