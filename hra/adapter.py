"""The central abstraction: a paper is a subclass, and what it overrides is what the
paper contributes.
"""

from __future__ import annotations

import hashlib
import inspect
import typing
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra import linear
from hra.checks import check_seed
from hra.law import Law

WIDE = torch.float32  # the least that a trained number has


class Method(nn.Module):
    """What every method is: a module that stands in a model, trains and is saved.

    An `Adapter` takes the place of a linear layer; a `WholeModel` stands beside the
    model and acts on what goes into it. Override, where the paper has something to say:

        sites, plan                        where it stands, what is decided together
        begin, param_groups, rate          the optimizer's groups and learning rates
        observing, observe, after_step     see ∂L/∂W; restart, relocate, drop, grow
        penalty                            a term of the loss
        law                                what a training step holds, as formulas
        packed, unpack, schema             what a file holds

    `seed` and `site` (the layer's dotted name) together seed whatever is drawn: two
    layers never share a draw.
    """

    no_delta = ""  # why there is no ΔW, for a method that has none
    needs_bias = False  # whether it refuses a layer without a bias
    family = ""  # of the literature: gives the method its colour (see `hra.viz`)
    # what a step may be, as far as the bill depends on it: `law` gets the present one
    phases: tuple[str, ...] = ("",)
    phase = ""
    note = ""  # of one adapter, for the table that `attach` prints
    start_tolerance = 0.0  # how far from the pretrained model it may start (rms)
    data: tuple[str, ...] = ()  # arguments that are data: no file holds them
    wide: tuple[str, ...] = ()  # buffers in float32 or wider, as what trains is

    def __init__(self, *, seed: int = 0, site: str = "") -> None:
        super().__init__()
        self.seed, self.site = check_seed(seed), site

    # ---- where it stands -----------------------------------------------------------
    @classmethod
    def sites(cls, model: nn.Module, targets: str) -> dict[str, nn.Module]:
        """{dotted name: what the method stands in for}, for the words of `attach`."""
        raise TypeError(f"{cls.__name__} does not say where it stands: define sites.")

    @classmethod
    def plan(
        cls, sites: dict[str, nn.Module], **hyper: Any
    ) -> dict[str, dict[str, Any]]:
        """Arguments of each site's constructor, all hyperparameters in `hyper`.

        Override to share tensors or to decide globally.
        """
        return {name: dict(hyper, site=name) for name in sites}

    @classmethod
    def hyperparameters(cls, given: dict[str, Any]) -> dict[str, Any]:
        """All hyperparameters, those not `given` at their defaults.

        They are the arguments of the constructors; of keyword-only ones `seed` alone
        (the others are `plan`'s). A mixin that takes **hyper adds its own.
        Raises TypeError for a name that does not exist.
        """
        known: dict[str, Any] = {}
        for c in cls.__mro__:
            if "__init__" not in vars(c):
                continue
            own = inspect.signature(vars(c)["__init__"]).parameters.values()
            mixin = any(p.kind is p.VAR_KEYWORD for p in own)
            for p in own:
                if p.name in ("self", "base", "site") or p.kind in (
                    p.VAR_POSITIONAL,
                    p.VAR_KEYWORD,
                ):
                    continue
                if p.kind is p.KEYWORD_ONLY and not mixin and p.name != "seed":
                    continue
                known.setdefault(p.name, p.default)
            if not mixin:
                break
        for name in given:
            if name not in known:
                there = ", ".join(known) or "none"
                raise TypeError(
                    f"{cls.__name__} has no hyperparameter {name!r}. It has: {there}."
                )
        return known | given

    @property
    def shape(self) -> tuple[int, ...]:
        """(d_out, d_in) of the layer, () if the model itself is the layer."""
        return ()

    def install(self, model: nn.Module) -> None:
        """Take the place in the model; to do it twice is to do it once."""
        raise TypeError(f"{type(self).__name__} does not say how it is installed.")

    def release(self, model: nn.Module) -> None:
        """Leave the model as it was; to do it twice is to do it once."""
        raise TypeError(f"{type(self).__name__} does not say how it is released.")

    def base_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The pretrained tensors that it depends on, by the names of a fingerprint."""
        return {}

    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """{parameter of the base: (positions in its storage or None for all, values)}:
        what of the pretrained layer a merge changes, and to what.
        """
        raise TypeError(self._no_delta())

    def merged(self) -> nn.Module:
        """A plain module that computes the same map."""
        raise TypeError(self._no_delta())

    def _no_delta(self) -> str:
        why = self.no_delta or "it does not define delta_weight"
        return (
            f"{type(self).__name__} has no ΔW: {why}. It cannot be merged; keep the "
            "adapter in the model, or detach it."
        )

    # ---- training ------------------------------------------------------------------
    def begin(self, steps: int) -> None:
        """Training is about to start, for so many steps in all. ValueError: too few."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer; `lr` is the ordinary parameters' rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def rate(self, step: int) -> float:
        """What multiplies this adapter's learning rate after `step` steps."""
        return 1.0

    def after_step(
        self, step: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """Restart, relocate, drop, grow, and say what happened; `step` is from 1."""
        return None

    def penalty(self) -> Tensor | float:
        """What this adapter adds to the loss of a step."""
        return 0.0

    # ---- the bill ------------------------------------------------------------------
    @classmethod
    def law(cls, *_: Any, **given: Any) -> Law:
        """What a training step holds of one layer (`hra.memory`).

        `given`, all by keyword: the hyperparameters; grad, whether x needs a gradient;
        phase, one of `phases` (a method that observes now and then keeps x then); and,
        where they are known, d_out, d_in, site and the adapter itself. A subclass
        changes what `super().law(**given)` says with `dataclasses.replace`.
        """
        raise ValueError(
            f"{cls.__name__} states no law. Override `law`, or measure it: "
            "hra.memory.measure."
        )

    # ---- files ---------------------------------------------------------------------
    def own_tensors(self) -> dict[str, Tensor]:
        """All that training changes and the adapter holds, without the base."""
        own = self.state_dict(keep_vars=True)
        return {k: v for k, v in own.items() if not k.startswith("base.")}

    @torch.no_grad()
    def set_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `own_tensors` gave, here or in another process."""
        for k, v in self.own_tensors().items():
            v.copy_(tensors[k])

    def packed(self, hyper: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, this site's hyperparameters) as a file holds them."""
        return self.own_tensors(), hyper

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        """Take what `packed` gave. ValueError: it cannot belong to this model."""
        self.set_own_tensors(tensors)

    @classmethod
    def schema(cls, shape: tuple[int, ...], hyper: dict[str, Any]) -> dict[str, Any]:
        """{name: shape} of the tensors in a file, None for a length that is free.

        A file's header is held against it before anything is built. Read off the
        class's annotations, which name the hyperparameters that give the lengths.
        """
        sizes = dict(hyper, **dict(zip(("d_out", "d_in"), shape, strict=False)))
        found: dict[str, Any] = {}
        for name, kind in typing.get_type_hints(cls).items():
            dims = getattr(kind, "dim_str", None)
            if dims is not None:
                found[name] = tuple(
                    int(d) if d.isdigit() else sizes.get(d) for d in dims.split()
                )
        return found

    @classmethod
    def plan_from_file(
        cls,
        sites: dict[str, nn.Module],
        hyper: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> dict[str, dict[str, Any]]:
        """As `plan`, for adapters that a file's tensors are about to fill."""
        return cls.plan(sites, **hyper)

    def drawn(self) -> dict[str, Tensor]:
        """What a seed gives and no file holds; a file has its hash."""
        return {}

    # ---- helpers -------------------------------------------------------------------
    def generator(self, what: str = "") -> torch.Generator:
        """A CPU generator that depends on seed, site and `what` alone: the same draw on
        every device and dtype.
        """
        return generator(self.seed, self.site, what)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """`.to(dtype)` changes the base; what trains stays in float32 or wider."""
        wide = {n: self.get_buffer(n) for n in self.wide}
        kept = {
            n: (p.data, p.grad)
            for n, p in self.named_parameters()
            if p.requires_grad and not n.startswith("base.")
        }
        super()._apply(fn, recurse)
        for n, (data, grad) in kept.items():
            p = self.get_parameter(n)
            dtype = torch.promote_types(p.dtype, WIDE)
            if data.is_meta:  # no numbers to keep
                p.data = p.data.to(dtype)
                continue
            p.data = data.to(p.device, dtype)
            p.grad = None if grad is None else grad.to(p.device, dtype)
        for n, old in wide.items():
            now = self.get_buffer(n)
            dtype = torch.promote_types(now.dtype, WIDE)
            setattr(self, n, (now if old.is_meta else old).to(now.device, dtype))
        return self


class Adapter(Method):
    """A frozen linear layer x W0ᵀ + b with a trainable change ΔW.

        y = x (W0 + ΔW)ᵀ + b    x: (..., d_in)   W0, ΔW: (d_out, d_in)   y: (..., d_out)

    A method of your own overrides `delta_weight`, the paper's equation, and often
    `forward`, the same map computed the cheap way:

        class Mine(hra.Adapter):
            def __init__(self, base, r=4, *, seed=0, site=""):
                super().__init__(base, seed=seed, site=site)   # freezes the layer
                self.A = self.new_parameter(r, self.d_in)      # zeros
                self.B = self.new_parameter(self.d_out, r)
                with torch.no_grad():
                    self.A.normal_(generator=self.generator("A"))

            def delta_weight(self):
                return self.B @ self.A                         # (d_out, d_in)

    The constructor takes `base` first, its hyperparameters with defaults, and then by
    keyword only `seed` and `site`, which it hands on. Whatever it draws comes from
    `self.generator(what)`. `hra.testing.check_adapter(Mine, r=4)` says what is wrong.
    """

    def __init__(self, base: nn.Module, *, seed: int = 0, site: str = "") -> None:
        super().__init__(seed=seed, site=site)
        if isinstance(base, Method):
            raise TypeError(
                f"the layer already holds a {type(base).__name__} adapter; detach or "
                "merge it first."
            )
        linear.check(base, site, type(self).__name__)
        self.base = base.requires_grad_(False)
        self.d_out, self.d_in = linear.weight(base).shape
        self.training = base.training
        if type(self).observe is not Adapter.observe:
            self.register_forward_hook(_show)

    @classmethod
    def sites(cls, model: nn.Module, targets: str) -> dict[str, nn.Module]:
        """The linear layers whose dotted name contains the expression `targets`."""
        found = linear.sites(model, targets)
        if "" in found:
            raise ValueError(
                "the model is itself a linear layer; build the adapter directly: "
                f"hra.{cls.__name__}(layer)."
            )
        linear.check_places(model, found, cls.__name__ if cls.no_delta else "")
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        return self.d_out, self.d_in

    @property
    def W0(self) -> Tensor:
        """The pretrained weight, (d_out, d_in) however the layer stores it."""
        return linear.weight(self.base)

    @property
    def frozen(self) -> Tensor:
        """The weight under what trains now, (d_out, d_in): W0, and what restarts have
        folded into it.
        """
        return self.W0

    @property
    def weight(self) -> Tensor:
        """W0 + ΔW as the layer stores it, for code that reads a weight without calling
        the layer (MultiheadAttention).
        """
        W = self.W0 + self.delta_weight()
        if W.requires_grad and self.observing():
            W.register_hook(self.observe)
        return W.T if linear.is_conv1d(self.base) else W

    @property
    def bias(self) -> Tensor | None:
        return linear.bias(self.base)

    # ---- the map -------------------------------------------------------------------
    def delta_weight(self) -> Tensor:
        """ΔW, (d_out, d_in), differentiable in the adapter's parameters."""
        raise TypeError(self._no_delta())

    def forward(self, x: Tensor) -> Tensor:
        """The definition. Override it with a cheaper equal; the suite compares."""
        W = self.W0 + self.delta_weight().to(self.W0.dtype)
        return F.linear(x, W, self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A plain layer, of the base's own type, that computes the same map."""
        return linear.with_weight(self.base, self.W0 + self.delta_weight())

    @torch.no_grad()
    def changes(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        new = dict(self.merged().named_parameters())
        old = dict(self.base.named_parameters())
        return {n: (None, new[n]) for n in old if not torch.equal(old[n], new[n])}

    @torch.no_grad()
    def entries(self) -> tuple[Tensor | None, Tensor]:
        """ΔW in float64 as (flat index or None for all, values), for sums of them."""
        return None, self.delta_weight().double()

    # ---- training ------------------------------------------------------------------
    def observe(self, G: Tensor) -> None:
        """See the dense gradient ∂L/∂W, (d_out, d_in), in the backward pass, whatever
        `forward` does. The layer's input is kept for it.
        """

    def observing(self) -> bool:
        """Whether `observe` is to see this step: by default, if it is overridden."""
        return type(self).observe is not Adapter.observe

    # ---- model level ---------------------------------------------------------------
    def install(self, model: nn.Module) -> None:
        model.set_submodule(self.site, self)

    def release(self, model: nn.Module) -> None:
        self.base.train(self.training)
        model.set_submodule(self.site, self.base)

    def base_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {self.site: self.W0}

    # ---- helpers -------------------------------------------------------------------
    def new_parameter(self, *shape: int) -> nn.Parameter:
        """A trained zero tensor on the layer's device, in float32 or wider."""
        W = linear.weight(self.base)
        dtype = torch.promote_types(W.dtype, WIDE)
        return nn.Parameter(torch.zeros(shape, dtype=dtype, device=W.device))

    def like_base(self, t: Tensor) -> Tensor:
        """`t` in the dtype in which the layer computes: itself, unless that is half."""
        return t.to(linear.weight(self.base).dtype)

    def check_rank(self, r: Any) -> int:
        """`r` if it is an integer in 1 … min(d_out, d_in)."""
        top = min(self.d_out, self.d_in)
        if isinstance(r, bool) or not isinstance(r, int):
            raise TypeError(
                f"r={r!r} is a {type(r).__name__}; the rank is an integer from 1 to "
                f"{top} for this layer."
            )
        if not 1 <= r <= top:
            where = f" ({self.site})" if self.site else ""
            raise ValueError(
                f"r={r} is out of range: 1 to min(d_out, d_in) = {top} for this "
                f"{self.d_out} × {self.d_in} layer{where}."
            )
        return r

    def extra_repr(self) -> str:
        return f"d_out={self.d_out}, d_in={self.d_in}"


def _show(adapter: Adapter, args: tuple, y: Tensor) -> None:
    if y.requires_grad and adapter.observing():
        linear.on_gradient(args[0], y, adapter.observe)


def generator(seed: int, site: str = "", what: str = "") -> torch.Generator:
    """A CPU generator for one draw; `site=""` for what a whole model shares."""
    digest = hashlib.sha256(f"{seed}\0{site}\0{what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """A float32 tensor, uniform in ±bound, whatever torch's default dtype is."""
    return torch.empty(shape, dtype=torch.float32).uniform_(
        -bound, bound, generator=generator
    )


def mean_of_processes(G: Tensor) -> Tensor:
    """Where several processes train (DDP), all see the gradient of the whole batch."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        G = G.clone()
        dist.all_reduce(G)
        G /= dist.get_world_size()
    return G


def forget(optimizer: torch.optim.Optimizer, *params: Tensor) -> None:
    """Drop the optimizer's moments for `params`, as if they had just been created."""
    for p in params:
        optimizer.state.pop(p, None)
