"""What is true of every adapter, as checks that a class of your own can be put to.

    hra.testing.check_adapter(MyMethod, trained=lambda m, n: 4 * (m + n), r=4)

Each check is a function of a `Case` and raises `AdapterError` with one sentence: what
was seen, and what usually causes it. `CHECKS` holds them in the order in which a class
is best mended; `cases` makes the cases.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hra import linear, memory
from hra.adapter import Adapter
from hra.methods import METHODS
from hra.model import Adapted, attach, load
from hra.restart import Restart


class AdapterError(AssertionError):
    """A law of adapters that a class breaks, in one sentence."""


class Net(nn.Module):
    """Three layers, one of them square: a transposed square weight must not pass
    unnoticed.
    """

    fc: nn.Module
    proj: nn.Module
    square: nn.Module

    def __init__(self, layout: str, bias: bool) -> None:
        super().__init__()
        sizes = {"fc": (12, 20), "proj": (20, 12), "square": (12, 12)}
        for name, (d_in, d_out) in sizes.items():
            layer = linear.new(layout, d_in, d_out, bias)
            nn.init.normal_(linear.weight(layer), std=0.3)
            if bias:
                nn.init.normal_(layer.get_parameter("bias"))
            setattr(self, name, layer)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.square(self.norm(x + self.proj(torch.tanh(self.fc(x)))))


@dataclass(frozen=True)
class Case:
    """A class with its hyperparameters, on one layout, in one dtype.

    trained: how many numbers train at a d_out × d_in layer. bias: whether the layers
    have one (a Conv1D always has; without, it is zero).
    """

    method: type[Adapter]
    hyper: Mapping[str, Any] = field(default_factory=dict)
    trained: Callable[[int, int], float] | None = None
    layout: str = "Linear"
    bias: bool = True
    dtype: torch.dtype = torch.float64
    seed: int = 1

    def __str__(self) -> str:
        return f"{self.layout}{'' if self.bias else '-no-bias'}-{_name(self.dtype)}"

    # ---- what is checked

    def model(self) -> tuple[Net, Tensor]:
        """(a pretrained model in eval mode, its input (5, 12)), the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = Net(self.layout, self.bias).to(self.dtype).eval()
            return net, torch.randn(5, 12).to(self.dtype)

    def attached(self) -> tuple[Net, Tensor, Adapted]:
        net, x = self.model()
        return net, x, attach(net, self.method, **self.hyper)

    def fitted(self, steps: int = 6) -> tuple[Net, Tensor, Adapted]:
        net, x, tuned = self.attached()
        if steps:
            self.train(net, tuned, x, steps)
        return net, x, tuned

    def adapters(self, steps: int = 6) -> list[tuple[str, Adapter]]:
        """(site, adapter) of every layer, after so many steps of training."""
        return list(self.fitted(steps)[2].adapters.items())

    def train(
        self, net: Net, tuned: Adapted, x: Tensor, steps: int = 6, decay: float = 0.01
    ) -> list[float]:
        """The losses of `steps` steps of AdamW."""
        for a in tuned.adapters.values():
            a.begin(steps)
        opt = torch.optim.AdamW(tuned.param_groups(0.02), weight_decay=decay)
        target, losses = torch.sin(3 * x), []
        for step in range(1, steps + 1):
            loss = F.mse_loss(net(x), target)
            self.require(
                loss.requires_grad,
                "no gradient reaches any trained parameter: .data, .detach() and "
                "torch.no_grad() cut it, and so does requires_grad = False",
            )
            (loss + tuned.penalty()).backward()
            opt.step()
            tuned.after_step(step, opt)
            opt.zero_grad()
            losses.append(loss.item())
        return losses

    def rows(self, a: Adapter, n: int) -> Tensor:
        """An input of a layer, (n, d_in), the same each time."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randn(n, a.d_in, generator=draw, dtype=torch.float64).to(a.W0)

    # ---- what a check says

    def error(self, sentence: str) -> AdapterError:
        where = self.layout + ("" if self.bias else " without a bias")
        who = f"{self.method.__name__} on {where}, {_name(self.dtype)}"
        return AdapterError(f"{who}: {sentence}{'' if sentence.endswith('?') else '.'}")

    def require(self, holds: Any, sentence: str) -> None:
        if not holds:
            raise self.error(sentence)

    def require_close(
        self, got: Tensor, want: Tensor, sentence: str, within: float = 0.0
    ) -> None:
        """`{off}` in the sentence is the largest difference."""
        off = self.off(got, want, within)
        self.require(not off, sentence.replace("{off}", f"{off:.2g}"))

    def off(self, got: Tensor, want: Tensor, within: float = 0.0) -> float:
        """The largest difference, 0.0 if it is rounding (or `within` so much)."""
        within = within or (1e-10 if self.dtype == torch.float64 else 1e-4)
        if got.shape != want.shape:
            return float("inf")
        if not want.numel():
            return 0.0
        got, want = got.detach().double(), want.detach().double()
        off = (got - want).abs().max().item()
        if off <= within * max(1.0, want.abs().max().item()):
            return 0.0
        return off if off == off else float("inf")


Check = Callable[[Case], None]


def _check(run: Check) -> Check:
    """Leave torch's global generator alone; make a sentence of what a class raises."""

    @functools.wraps(run)
    def checked(case: Case) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            try:
                run(case)
            except AdapterError:
                raise
            except Exception as e:
                hint = next((h for p, h in _HINTS if re.search(p, f"{case}: {e}")), "")
                raise case.error(f"{type(e).__name__}: {_said(e)}{hint}") from e

    return checked


_SHAPES = "(mat1 and mat2|size of tensor|must match the size|shapes cannot)"
_HINTS = (
    (
        r"before Module\.__init__",
        "; call super().__init__(base, seed=seed, site=site) first in your constructor",
    ),
    (
        "in-?place operation",
        "; an in-place operation overwrote what the backward pass needs: write "
        "h = scale * h, not h *= scale",
    ),
    (
        f"Conv1D.*{_SHAPES}",
        "; Conv1D stores W transposed: use self.W0 and self.base(x), never "
        "self.base.weight",
    ),
    (
        _SHAPES,
        "; x is (..., d_in), W0 and ΔW are (d_out, d_in), and F.linear(x, W) is x Wᵀ",
    ),
)


def _said(e: BaseException) -> str:
    return (str(e).splitlines() or [""])[0].rstrip(".")[:160]


# ---- the constructor
# ------------------------------------------------------------------------------------


@_check
def constructor_keeps_its_contract(case: Case) -> None:
    """`(base, …, *, seed=0, site="")`, on one bare layer."""
    method, (net, _) = case.method, case.model()
    case.require(
        method.no_delta
        or method.delta_weight is not Adapter.delta_weight
        or method.merged is not Adapter.merged,
        "delta_weight is missing: write the paper's ΔW there, (d_out, d_in), or say in "
        "`no_delta` why there is none",
    )
    hyper = method.hyperparameters(dict(case.hyper))
    given = method.plan({"fc": net.fc}, **hyper)["fc"] | {"seed": 3}
    try:
        a = method(net.fc, **given)
    except TypeError as e:
        for name in ("seed", "site"):
            case.require(
                f"unexpected keyword argument '{name}'" not in str(e),
                f"your constructor takes no {name}: write __init__(self, base, ..., *, "
                'seed=0, site="") and pass both on to super().__init__',
            )
        raise
    case.require(
        isinstance(getattr(a, "base", None), nn.Module),
        "your constructor does not call super().__init__(base, seed=seed, site=site)",
    )
    for name in ("seed", "site"):
        case.require(
            getattr(a, name) == given[name],
            f"{name}={given[name]!r} was given, self.{name} is {getattr(a, name)!r}: "
            f"pass {name}={name} on to super().__init__",
        )
    for name, p in a.base.named_parameters():
        case.require(
            not p.requires_grad,
            f"the pretrained {name} trains: super().__init__ has frozen it, leave its "
            "requires_grad alone",
        )


@_check
def no_tensor_hides(case: Case) -> None:
    """Every tensor is a parameter or a buffer; none is the pretrained one again."""
    for site, a in case.adapters(0) + case.adapters():
        for name, value in vars(a).items():
            case.require(
                name.startswith("_") or not _holds_tensor(value),
                f"self.{name} of {site} holds a tensor that is no parameter and no "
                "buffer, neither saved nor moved by .to(): use nn.Parameter (in a list "
                "nn.ParameterList) or self.register_buffer",
            )
        pretrained = {p.data_ptr() for p in a.base.parameters()}
        for name, t in _state(a).items():
            case.require(
                not t.numel() or t.data_ptr() not in pretrained,
                f"{name} is the pretrained weight under a second name, and would be "
                "saved with the adapter: use self.W0",
            )


@_check
def tensors_follow_the_layer(case: Case) -> None:
    """Its dtype and its device."""
    make = (
        "make it with self.new_parameter(...), self.W0.new_zeros(...) or .to(self.W0)"
    )
    for _, a in case.adapters(0):
        for name, t in _state(a).items():
            case.require(
                t.dtype == case.dtype or not t.is_floating_point(),
                f"{name} is {_name(t.dtype)} over {_name(case.dtype)}: {make}",
            )
    net, _ = case.model()
    try:  # a second device that every machine has; some masks must read the weights
        a = case.method(net.fc.to("meta"), **case.hyper)
    except (NotImplementedError, RuntimeError):
        return
    for name, t in _state(a).items():
        case.require(
            t.device.type == "meta",
            f"{name} lies on {t.device} whatever device the layer is on: {make}",
        )


@_check
def delta_weight_has_the_shape_of_the_weight(case: Case) -> None:
    for site, a in case.adapters(0) if not case.method.no_delta else ():
        delta: Any = a.delta_weight()
        shape = tuple(delta.shape) if isinstance(delta, Tensor) else type(delta)
        turned = ", the transpose," if shape == (a.d_in, a.d_out) else ""
        case.require(
            shape == (a.d_out, a.d_in),
            f"delta_weight returns {shape}{turned} for {site}, which has d_out = "
            f"{a.d_out} outputs and d_in = {a.d_in} inputs: it must be exactly (d_out, "
            "d_in), rows are outputs",
        )
        case.require(
            delta.dtype == case.dtype,
            f"delta_weight returns {_name(delta.dtype)} over {_name(case.dtype)}",
        )


@_check
def something_trains_and_only_the_adapter(case: Case) -> None:
    net, x, tuned = case.attached()
    net(x)
    own = {id(t) for a in tuned.adapters.values() for t in _state(a).values()}
    handed = {id(p) for g in tuned.param_groups(1.0) for p in g["params"]}
    case.require(
        handed,
        "nothing trains: what trains must be an nn.Parameter and an attribute of self "
        "(in a list nn.ParameterList)",
    )
    for name, p in net.named_parameters():
        case.require(
            not p.requires_grad or id(p) in own,
            f"the pretrained {name} trains: leave its requires_grad alone",
        )
        case.require(
            not p.requires_grad or id(p) in handed,
            f"{name} requires a gradient, but param_groups leaves it out, so that it "
            "would never move",
        )
        case.require(
            id(p) not in own or p.requires_grad or id(p) not in handed,
            f"{name} is in param_groups, but its requires_grad is False",
        )
    strangers = [n for n, p in net.named_parameters() if id(p) in handed - own]
    case.require(
        handed <= own,
        f"param_groups hands the optimizer {', '.join(strangers) or 'a tensor'}, which "
        "is no parameter of the adapter",
    )


@_check
def trained_count_is_the_formula(case: Case) -> None:
    tuned = case.attached()[2]
    layers = [(a.d_out, a.d_in) for a in tuned.adapters.values()]
    count = tuned.num_trainable
    want = sum(case.trained(m, n) for m, n in layers) if case.trained else count
    case.require(
        count == want,
        f"{count:,} numbers train where the formula says {want:,g}, on layers of "
        f"{', '.join(f'{m} × {n}' for m, n in layers)}",
    )
    case.require(
        f"{count:,}" in str(tuned), f"print(tuned) does not show that {count:,} train"
    )


# ---- the start
# ------------------------------------------------------------------------------------


@_check
def same_seed_same_start(case: Case) -> None:
    first = [_state(a) for _, a in case.adapters(0)]
    torch.manual_seed(99)
    again = [_state(a) for _, a in case.adapters(0)]
    for one, two in zip(first, again, strict=True):
        for name, t in one.items():
            case.require(
                torch.equal(t, two[name]),
                f"{name} differs between two adapters of one seed: draw it with "
                "generator=self.generator('a name for the draw')",
            )
            case.require(
                not t.numel() or t.data_ptr() != two[name].data_ptr(),
                f"two models share one tensor {name}, which lives on the class: make "
                "it in the constructor, or in plan if one model's sites share it",
            )


@_check
def the_draw_leaves_the_global_generator_alone(case: Case) -> None:
    net, _ = case.model()
    before = torch.get_rng_state()
    attach(net, case.method, **case.hyper)
    case.require(
        torch.equal(torch.get_rng_state(), before),
        "attach draws from torch's global generator, or seeds it, and so changes what "
        "the rest of a program draws: draw with generator=self.generator(...)",
    )


@_check
def draws_depend_on_seed_and_site(case: Case) -> None:
    """Two layers never share a draw, but for what `plan` makes for all of them."""
    drawn: dict[tuple[int, str], set[int]] = {}
    for seed in (0, 1):
        sites = linear.sites(case.model()[0], "")
        hyper = case.method.hyperparameters({**case.hyper, "seed": seed})
        for site, given in case.method.plan(sites, **hyper).items():
            with _Draws() as draws:
                case.method(sites[site], **given)
            drawn[seed, site] = draws.seeds
    for (seed, site), seeds in drawn.items():
        case.require(
            seed == 0 or not seeds & drawn[0, site],
            "seed=0 and seed=1 draw the same numbers: draw with "
            "generator=self.generator(...), and pass seed=seed to super().__init__",
        )
        case.require(
            site == "fc" or not seeds & drawn[seed, "fc"],
            f"fc and {site} draw the same numbers from one seed: a draw must depend on "
            "the site too, as those of self.generator(...) do",
        )


class _Draws(TorchDispatchMode):
    """Notes the seeds of the generators that are drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        generator = (kwargs or {}).get("generator")
        if isinstance(generator, torch.Generator):
            self.seeds.add(generator.initial_seed())
        return func(*args, **(kwargs or {}))


@_check
def starts_as_the_pretrained_model(case: Case) -> None:
    net, x = case.model()
    y, near = net(x), case.method.start_tolerance
    tuned = attach(net, case.method, **case.hyper)
    if near:
        off = (net(x) - y).square().mean().sqrt().item()
        case.require(
            0 < off < near,
            f"before training the outputs are off by {off:.2g}, root mean square; "
            f"start_tolerance says above 0 and below {near:g}",
        )
    elif case.off(net(x), y):
        why = [_explain(case, a) for a in tuned.adapters.values()]
        case.require_close(
            net(x),
            y,
            "before training the outputs are off by {off} from the pretrained model's; "
            + next(filter(None, why), "let one factor start at zero, so that ΔW = 0"),
        )


# ---- the map
# ------------------------------------------------------------------------------------


@_check
def forward_leaves_its_input_alone(case: Case) -> None:
    for _, a in case.adapters(0):
        x = case.rows(a, 5)
        kept = x.clone()
        a(x)
        case.require(
            torch.equal(x, kept),
            "your forward changes its input x in place: write x = x * s, not x *= s",
        )


@_check
def eval_mode_is_deterministic(case: Case) -> None:
    for _, a in case.adapters():
        x = case.rows(a, 5)
        case.require(
            torch.equal(a(x), a(x)),
            "two calls with one x differ in eval mode: dropout must ask self.training, "
            "F.dropout(x, self.dropout, self.training)",
        )
        case.require(
            case.method.no_delta or torch.equal(a.delta_weight(), a.delta_weight()),
            "two calls of delta_weight differ: draw once, in the constructor, and keep "
            "dropout out of it",
        )


@_check
def each_row_is_mapped_alone(case: Case) -> None:
    for _, a in case.adapters():
        x = case.rows(a, 5)
        case.require_close(
            a(x),
            torch.cat([a(row[None]) for row in x]),
            "a row's result depends on the other rows of its batch (off by {off}): no "
            "mean, norm or softmax over the batch",
            within=1e-4,
        )


@_check
def forward_takes_any_leading_shape(case: Case) -> None:
    for _, a in case.adapters():
        x = case.rows(a, 24)
        y = a(x)
        shapes: dict[str, Callable[[Tensor], Tensor]] = {
            "an x of shape (2, 12, d_in)": lambda t: t.unflatten(0, (2, 12)),
            "an x of shape (2, 3, 4, d_in)": lambda t: t.unflatten(0, (2, 3, 4)),
            "a transposed x": lambda t: t.unflatten(0, (2, 12)).transpose(0, 1),
            "one vector x of shape (d_in,)": lambda t: t[0],
            "an x without rows": lambda t: t[:0],
        }
        if case.layout == "Conv1D":  # takes no strides itself
            del shapes["a transposed x"]
        for what, shaped in shapes.items():
            try:
                got = a(shaped(x))
            except Exception as e:
                raise case.error(
                    f"your forward fails on {what} ({_said(e)}): x is (..., d_in) with "
                    "any strides; use F.linear, or reshape in place of view"
                ) from e
            case.require(
                got.shape == shaped(y).shape,
                f"your forward makes {tuple(got.shape)} of {what}: it must give (..., "
                f"d_out = {a.d_out}), the leading shape kept",
            )
            case.require_close(
                got,
                shaped(y),
                f"your forward maps {what} otherwise than the same rows as (24, d_in): "
                "off by {off}",
                within=1e-4,
            )


@_check
def every_trained_number_receives_a_gradient(case: Case) -> None:
    for site, a in case.adapters():
        own = {n: p for n, p in a.named_parameters() if p.requires_grad}
        if not own:  # what one site holds for all of them
            continue
        y = a(case.rows(a, 64))  # so many that hardly a ReLU is dead on all of them
        grads = torch.autograd.grad(
            y.square().sum(), list(own.values()), allow_unused=True
        )
        dead = {
            n: p
            for (n, p), g in zip(own.items(), grads, strict=True)
            if g is None or not g.any()
        }
        if dead:
            raise case.error(_why_dead(case.rows(a, 64), site, a, dead, own))


@torch.no_grad()
def _why_dead(
    x: Tensor,
    site: str,
    a: Adapter,
    dead: dict[str, nn.Parameter],
    own: dict[str, nn.Parameter],
) -> str:
    def matters(p: Tensor) -> bool:
        before, kept = a(x), p.clone()
        p.add_(torch.randn(p.shape).to(p), alpha=0.1)
        moved = not torch.equal(a(x), before)
        p.copy_(kept)
        return moved

    for name, p in dead.items():
        if matters(p):
            return (
                f"no gradient reaches {name} of {site}, although the output depends on "
                "it: .data, .detach() or torch.no_grad() cuts it off"
            )
    for q in own.values():
        q.add_(torch.randn(q.shape).to(q), alpha=0.1)
    for name, p in dead.items():
        if not matters(p):
            return f"{name} of {site} trains, but nothing is computed from it"
    return (
        f"{' and '.join(dead)} of {site} never move: where both factors of a product "
        "start at zero both gradients are zero for ever; let one start at random"
    )


@_check
def forward_is_the_definition(case: Case) -> None:
    """Values and gradients of x (W0 + ΔW)ᵀ + b."""
    for site, a in case.adapters() if not case.method.no_delta else ():
        x = case.rows(a, 12).view(3, 4, -1)
        fast, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, definition = a(fast), Adapter.forward(a, slow)
        if case.off(y, definition):
            raise case.error(_explain(case, a))
        own = {n: p for n, p in a.named_parameters() if p.requires_grad}
        g = torch.autograd.grad(y.sin().sum(), [fast, *own.values()])
        h = torch.autograd.grad(definition.sin().sum(), [slow, *own.values()])
        for name, got, want in zip(("x", *own), g, h, strict=True):
            case.require_close(
                got,
                want,
                f"your forward's gradient of {name} at {site} is off by {{off}} from "
                "that of its definition, x (W0 + ΔW)ᵀ + b: look at the backward of a "
                "torch.autograd.Function, or for a .detach()",
            )


@_check
def gradients_are_the_derivatives(case: Case) -> None:
    """Of a method without a ΔW, whose forward has no definition beside it."""
    if not case.method.no_delta or case.dtype != torch.float64:
        return
    for site, a in case.adapters():
        x, step = case.rows(a, 4).requires_grad_(), 1e-6
        own = {"x": x} | {n: p for n, p in a.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(a(x).sin().sum(), list(own.values()))
        for (name, t), g in zip(own.items(), grads, strict=True):
            v, kept, value = torch.randn_like(t), t.detach().clone(), []
            with torch.no_grad():
                for sign in (1, -1):
                    t.copy_(kept + sign * step * v)
                    value.append(a(x).sin().sum())
                t.copy_(kept)
            case.require_close(
                (g * v).sum(),
                (value[0] - value[1]) / (2 * step),
                f"the gradient of {name} at {site} is off by {{off}} from the "
                "difference quotient: look at the backward of an autograd.Function",
                within=1e-6,
            )


@torch.no_grad()
def _explain(case: Case, a: Adapter) -> str:
    """What `a.forward` adds in place of ΔW, found with unit vectors; "" for nothing."""
    if case.method.no_delta:
        return ""
    x, eye, delta = case.rows(a, 7), torch.eye(a.d_in).to(a.W0), a.delta_weight()
    definition = F.linear(x, a.W0 + delta, a.bias)
    if not case.off(a(x), definition):
        return ""
    if not case.off(a(x), definition, within=1e-5):
        return (
            "your forward adds what delta_weight says, but to float32's rounding only: "
            "is a dtype written out?"
        )
    b = x.new_zeros(a.d_out) if a.bias is None else a.bias
    at_zero = a(x.new_zeros(1, a.d_in))[0]
    if off := case.off(at_zero, b):
        how = f"changes the bias, by {off:.2g}: it must not be scaled"
        if not case.off(at_zero, 2 * b):
            how = "adds the bias twice: self.base(x) has it already"
        elif not at_zero.any():
            how = "leaves out the bias"
        return f"your forward {how} (at x = 0 it must give b)"
    added = (a(eye) - at_zero).T - a.W0
    if off := case.off(a(x), F.linear(x, a.W0 + added, at_zero)):
        return (
            "your forward does not add what delta_weight says: it is not linear in x "
            f"(off by {off:.2g} from the sum over unit vectors)"
        )
    i, j = divmod(int((added - delta).abs().argmax()), a.d_in)
    said = (
        f"your forward does not add what delta_weight says: at x = e_{j} (1 at input "
        f"{j}, 0 elsewhere) output {i} is off by {(added - delta)[i, j].item():.3g}"
    )
    share = float((added * delta).sum() / (delta * delta).sum())  # nan for ΔW = 0
    if not case.off(added, delta - a.W0):
        return said + "; W0 is missing: add self.base(x)"
    if not case.off(added, delta + a.W0):
        return said + "; W0 is in it twice"
    if a.d_out == a.d_in and not case.off(added, delta.T):
        return said + "; it adds the transpose of ΔW: F.linear(x, W) is x Wᵀ"
    if delta.any() and not case.off(added, share * delta):
        return said + f"; it adds {share:.4g} ΔW: did you forget the scale?"
    return said


@_check
def observe_sees_the_dense_gradient(case: Case) -> None:
    """∂L/∂W, as autograd has it, whatever the fast path."""
    if case.method.no_delta:
        return
    seen: dict[str, Tensor] = {}

    class Spy(case.method):  # type: ignore[name-defined, misc]
        def observe(self, G: Tensor) -> None:
            super().observe(G)
            seen[self.site] = G

        def observing(self) -> bool:
            return True

    for site, a in replace(case, method=Spy).adapters():
        x = case.rows(a, 12).view(3, 4, -1)
        seen.clear()
        a(x).sin().sum().backward()
        W = (a.W0 + a.delta_weight()).detach().requires_grad_()
        (G,) = torch.autograd.grad(F.linear(x, W, a.bias).sin().sum(), W)
        case.require(
            site in seen,
            "observe is never called: your forward or your constructor goes past the "
            "hook that super().__init__ registers",
        )
        case.require_close(
            seen[site], G, "observe sees a gradient that is off by {off} from ∂L/∂W"
        )


@_check
def merged_model_computes_the_same(case: Case) -> None:
    net, x, tuned = case.fitted()
    kind, y, adapters = type(tuned.adapters["fc"].base), net(x), tuned.adapters
    hint = (
        "merged() must put W0 + ΔW into a layer of the base's own type; "
        "linear.with_weight(self.base, self.W0 + ΔW) knows that Conv1D stores it "
        "transposed"
    )
    if case.method.no_delta:
        for ask in (tuned.merge, adapters["fc"].delta_weight):
            try:
                ask()
            except TypeError as e:
                if "has no ΔW: " not in str(e):
                    raise
            else:
                raise case.error("it has no ΔW (`no_delta`), and yet it merges")
        case.require(
            torch.equal(net(x), y) and tuned.adapters == adapters,
            "a merge that was refused has changed the model",
        )
        return
    try:
        tuned.merge()
    except (RuntimeError, TypeError) as e:
        raise case.error(f"merging fails ({_said(e)}); {hint}") from e
    case.require(
        type(net.fc) is kind and not any(isinstance(m, Adapter) for m in net.modules()),
        f"the merged model's layers are not of their own type, {kind.__name__}; {hint}",
    )
    case.require_close(
        net(x), y, "the merged model's outputs are off by {off}; " + hint
    )


@_check
def changes_and_entries_are_the_merged_weight(case: Case) -> None:
    """What `Switch` writes and what `fuse` adds up."""
    if case.method.no_delta:
        return
    for _, a in case.adapters():
        layer, merged = copy.deepcopy(a.base), dict(a.merged().named_parameters())
        with torch.no_grad():
            linear.weight(layer).copy_(a.W0)
        for name, (position, values) in a.changes().items():
            flat = layer.get_parameter(name).data.view(-1)
            flat[slice(None) if position is None else position] = values.reshape(-1)
        for name, p in layer.named_parameters():
            case.require_close(
                p,
                merged[name],
                f"changes() writes another {name} than merged() has, off by {{off}}",
            )
        if not a.delta_weight().any():  # a bias alone has no entries to add up
            continue
        index, values = a.entries()
        dense = torch.zeros(a.d_out * a.d_in, dtype=torch.float64)
        dense[slice(None) if index is None else index] = values.reshape(-1)
        case.require_close(
            dense.view(a.d_out, a.d_in),
            a.delta_weight(),
            "entries() is off by {off} from ΔW",
        )


@_check
def works_inside_multihead_attention(case: Case) -> None:
    """Which reads a layer's weight and bias and never calls it."""
    if case.method.no_delta or case.layout != "Linear" or not case.bias:
        return
    mha = nn.MultiheadAttention(12, 3, batch_first=True).to(case.dtype)
    x = torch.randn(2, 5, 12).to(case.dtype)
    y = mha(x, x, x)[0]
    tuned = attach(mha, case.method, targets="out_proj", **case.hyper)
    where = "in nn.MultiheadAttention, which reads `weight` and `bias`, "
    case.require_close(mha(x, x, x)[0], y, where + "the start is off by {off}")
    opt = torch.optim.SGD(tuned.param_groups(0.5))
    for step in (1, 2):
        mha(x, x, x)[0].square().sum().backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
    z = mha(x, x, x)[0]
    case.require(case.off(z, y), where + "nothing trains")
    tuned.merge()
    case.require_close(mha(x, x, x)[0], z, where + "merging is off by {off}")


# ---- training, and back
# ------------------------------------------------------------------------------------


@_check
def training_lowers_the_loss(case: Case) -> None:
    net, x, tuned = case.attached()
    losses = case.train(net, tuned, x, 30)
    case.require(
        losses[-1] < 0.9 * losses[0],
        f"30 steps of AdamW take the loss from {losses[0]:.3g} to {losses[-1]:.3g} "
        "only: look at scales and gradients",
    )


@_check
def detach_gives_the_model_back(case: Case) -> None:
    """Bit for bit, whatever has happened."""
    stages: dict[str, Callable[[Net, Adapted, Tensor], Any]] = {
        "building the adapter": lambda net, tuned, x: None,
        "its forward": lambda net, tuned, x: net(x),
        "training": case.train,
        "training with weight decay": functools.partial(case.train, decay=0.5),
    }
    for stage, run in stages.items():
        net, x = case.model()
        net.norm.weight.requires_grad_(False)
        layers, before = dict(net.named_modules()), copy.deepcopy(net.state_dict())
        flags = {n: p.requires_grad for n, p in net.named_parameters()}
        tuned = attach(net, case.method, **case.hyper)
        run(net, tuned, x)
        tuned.detach()
        for name, t in net.state_dict().items():
            case.require(
                name in before and torch.equal(t, before[name]),
                f"{stage} changes the pretrained {name}, and detach does not give it "
                "back: never write into self.W0 or self.base, add tensors of your own",
            )
        case.require(
            dict(net.named_modules()) == layers
            and flags == {n: p.requires_grad for n, p in net.named_parameters()},
            f"after {stage} and detach the model's modules, or their requires_grad, "
            "are not as they were",
        )


@_check
def a_restart_leaves_the_map_as_it_was(case: Case) -> None:
    if not issubclass(case.method, Restart):
        return
    net, x, tuned = case.attached()
    every: Any = tuned.adapters["fc"].every
    for a in tuned.adapters.values():
        a.begin(every)
    opt = torch.optim.AdamW(tuned.param_groups(0.02))
    for step in range(1, every + 1):
        F.mse_loss(net(x), torch.sin(3 * x)).backward()
        opt.step()
        opt.zero_grad()
        y, before = net(x), copy.deepcopy(tuned.state_dict())
        tuned.after_step(step, opt)
        case.require_close(
            net(x),
            y,
            "a restart moves the outputs by {off}: what is folded into the layer must "
            "leave the adapter, and the other way round",
        )
    case.require(
        not all(torch.equal(t, before[n]) for n, t in tuned.state_dict().items()),
        f"at step {every} there is no restart",
    )


@_check
def file_round_trip(case: Case) -> None:
    net, x, tuned = case.fitted()
    fresh, _ = case.model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        tuned.save(path)
        own = None if case.method in METHODS.values() else case.method
        again = load(fresh, path, method=own)
    if not torch.equal(fresh(x), net(x)):
        pairs = [(a, again.adapters[site]) for site, a in tuned.adapters.items()]
        lost = sorted({f"self.{n}" for a, b in pairs for n in _differ(a, b)})
        raise case.error(
            "after save and load the outputs differ, for the file does not hold "
            f"{' and '.join(lost) or 'everything'}: what training changes belongs "
            "into a parameter or a persistent buffer"
        )
    written = tuned.adapters["fc"].packed(tuned.hyper)[1]
    case.require(
        again.method is case.method and again.hyper == written,
        f"its file loads as {again.method.__name__} with {again.hyper}, not with "
        f"{written}",
    )


@_check
def deep_copies_and_pickles(case: Case) -> None:
    net, x, _ = case.fitted()
    y, stream = net(x), io.BytesIO()

    class Pickler(pickle.Pickler):  # the class itself may stand in any file
        def persistent_id(self, obj: Any) -> str | None:
            return "the method" if obj is case.method else None

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: str) -> Any:
            return case.method

    try:
        Pickler(stream).dump(net)
    except (AttributeError, TypeError, pickle.PicklingError) as e:
        raise case.error(
            f"it cannot be pickled ({_said(e)}): keep no lambda and no local function "
            "on self"
        ) from e
    stream.seek(0)
    for how, twin in {
        "deep copy": copy.deepcopy(net),
        "pickle": Unpickler(stream).load(),
    }.items():
        case.require(torch.equal(twin(x), y), f"a {how} of it computes another map")
        for p in twin.parameters():
            p.data.add_(1.0)
        case.require(torch.equal(net(x), y), f"a {how} of it shares tensors with it")


@_check
def train_and_eval_mode_follow_the_model(case: Case) -> None:
    net, _, tuned = case.attached()
    case.require(
        not any(a.training for a in tuned.adapters.values()),
        "attached to a model in eval mode it is in train mode",
    )
    net.train()
    tuned.detach()
    case.require(net.fc.training, "train mode does not reach the layer")


@_check
def moves_with_dtype(case: Case) -> None:
    net, x, tuned = case.fitted()
    other = torch.float32 if case.dtype == torch.float64 else torch.float64
    to = f"when the model moves to {_name(other)}"
    net.to(other)
    for name, t in (*net.named_parameters(), *net.named_buffers()):
        case.require(
            t.dtype == other or not t.is_floating_point(),
            f"{name} stays {_name(t.dtype)} {to}",
        )
    case.require(
        net(x.to(other)).dtype == other
        and (case.method.no_delta or tuned.merge()(x.to(other)).dtype == other),
        f"its outputs, or those of the merged model, stay {_name(case.dtype)} {to}",
    )


@_check
def works_under_autocast(case: Case) -> None:
    if case.dtype != torch.float32:
        return
    net, x, tuned = case.fitted()
    y = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        z = net(x).float()
    case.require(
        torch.allclose(z, y, rtol=0.1, atol=0.15),
        f"under autocast to bfloat16 it is off by {(z - y).abs().max().item():.2g}",
    )
    z.square().sum().backward()
    for p in (p for g in tuned.param_groups(1.0) for p in g["params"]):
        case.require(
            p.grad is not None and p.grad.dtype == torch.float32,
            "under autocast a trained tensor receives no float32 gradient",
        )


@_check
def gradient_checkpointing_changes_nothing(case: Case) -> None:
    net, x, tuned = case.fitted()
    params = [p for g in tuned.param_groups(1.0) for p in g["params"]]
    g = torch.autograd.grad(net(x).sin().sum(), params)
    again = checkpoint(net, x.requires_grad_(), use_reentrant=False)
    h = torch.autograd.grad(again.sin().sum(), params)
    for got, want in zip(h, g, strict=True):
        case.require_close(
            got,
            want,
            "under gradient checkpointing a gradient is off by {off}: a second forward "
            "must compute what the first did",
        )


@_check
def the_bill_is_the_measured_one(case: Case) -> None:
    """Of a class that states its law."""
    if case.method.law.__func__ is Adapter.law.__func__:  # type: ignore[attr-defined]
        return
    for d_out, d_in in ((20, 12), (12, 20)):
        net = nn.Sequential(linear.new(case.layout, d_in, d_out, case.bias))
        tuned = attach(net.to(case.dtype), case.method, **case.hyper)
        for grad in (True, False):
            x = torch.randn(15, d_in, dtype=case.dtype, requires_grad=grad)
            derived = memory.cost(
                case.method,
                d_out,
                d_in,
                tokens=15,
                plan={torch.float64: "fp64", torch.float32: "fp32"}[case.dtype],
                bias=case.bias or case.layout == "Conv1D",
                input_grad=grad,
                site="0",
                adapter=tuned.adapters["0"],
                **case.hyper,
            )
            for part, held in memory.measure(tuned, {"input": x}).parts.items():
                said = derived.parts[part]
                kept = [f"{n:,} for {k}" for k, n in derived.kept.items()]
                case.require(
                    said == held,
                    f"your law says {said.numbers:,} numbers of {part} in "
                    f"{said.bytes:,} bytes, held are {held.numbers:,} in "
                    f"{held.bytes:,}, by a {d_out} × {d_in} layer and 15 tokens, where "
                    f"x needs {'a' if grad else 'no'} gradient (your law keeps "
                    f"{', '.join(kept) or 'nothing'})",
                )


@_check
def half_precision_trains_in_float32(case: Case) -> None:
    """fp32 masters over fp16 and bf16; what is computed is the same, roughly."""
    if case.dtype != torch.float32:
        return
    for half in (torch.bfloat16, torch.float16):
        name, (net, x, tuned) = _name(half), case.fitted()
        y = net(x)
        built, moved = replace(case, dtype=half).attached()[0], net.to(half)
        for how, model in {"built over": built, "moved to": moved}.items():
            for n, p in model.named_parameters():
                case.require(
                    p.dtype == (torch.float32 if p.requires_grad else half),
                    f"{n} is {_name(p.dtype)} when {how} {name}: what trains stays in "
                    "float32 (self.new_parameter), what is frozen follows the layer",
                )
        got = {"its output": net(x.to(half))}
        if not case.method.no_delta:
            got["the merged model's output"] = tuned.merge()(x.to(half))
        for what, z in got.items():
            case.require(z.dtype == half, f"over {name} {what} is {_name(z.dtype)}")
            case.require_close(
                z.float(), y, f"over {name} {what} is off by {{off}}", within=0.05
            )
        net, x, tuned = replace(case, dtype=half).attached()
        losses = case.train(net, tuned, x, 30)
        case.require(
            losses[-1] < 0.9 * losses[0],
            f"over {name}, 30 steps of AdamW take the loss from {losses[0]:.3g} to "
            f"{losses[-1]:.3g} only",
        )


CHECKS: tuple[Check, ...] = (
    constructor_keeps_its_contract,
    tensors_follow_the_layer,
    delta_weight_has_the_shape_of_the_weight,
    something_trains_and_only_the_adapter,
    forward_leaves_its_input_alone,
    no_tensor_hides,
    same_seed_same_start,
    the_draw_leaves_the_global_generator_alone,
    draws_depend_on_seed_and_site,
    trained_count_is_the_formula,
    detach_gives_the_model_back,
    starts_as_the_pretrained_model,
    eval_mode_is_deterministic,
    each_row_is_mapped_alone,
    forward_takes_any_leading_shape,
    every_trained_number_receives_a_gradient,
    training_lowers_the_loss,
    forward_is_the_definition,
    gradients_are_the_derivatives,
    observe_sees_the_dense_gradient,
    merged_model_computes_the_same,
    changes_and_entries_are_the_merged_weight,
    works_inside_multihead_attention,
    a_restart_leaves_the_map_as_it_was,
    file_round_trip,
    deep_copies_and_pickles,
    train_and_eval_mode_follow_the_model,
    moves_with_dtype,
    works_under_autocast,
    gradient_checkpointing_changes_nothing,
    the_bill_is_the_measured_one,
)


def cases(
    method: type[Adapter],
    trained: Callable[[int, int], float] | None = None,
    **hyper: Any,
) -> Iterator[Case]:
    """A class on nn.Linear and on Conv1D, in float64 (there also without a bias) and in
    float32.
    """
    for layout in ("Linear", "Conv1D"):
        yield Case(method, hyper, trained, layout)
        if layout == "Conv1D" or not method.needs_bias:
            yield Case(method, hyper, trained, layout, bias=False)
        yield Case(method, hyper, trained, layout, dtype=torch.float32)


def check_adapter(
    method: type[Adapter],
    trained: Callable[[int, int], float] | None = None,
    *,
    half: bool = False,
    **hyper: Any,
) -> None:
    """Put a class to every check; returns None if it passes them all.

    trained: how many numbers train at a d_out × d_in layer, e.g. `lambda m, n: 4 * (m +
    n)`; without it they are not counted. half: fp32 masters over fp16 and bf16 too, as
    the library's own methods have them. Further keywords are hyperparameters.

    Raises AdapterError with the sentence of the first check that fails, TypeError for
    what is no adapter of linear layers and for an unknown hyperparameter.
    """
    if not (isinstance(method, type) and issubclass(method, Adapter)):
        raise TypeError(
            "check_adapter takes a subclass of hra.Adapter, a method that stands in "
            f"for linear layers; got {method!r}."
        )
    method.hyperparameters(hyper)
    for check in CHECKS + (half_precision_trains_in_float32,) * half:
        for case in cases(method, trained, **hyper):
            check(case)


# ---- helpers
# ------------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _state(a: Adapter) -> dict[str, Tensor]:
    """The adapter's parameters and buffers, without the layer's."""
    every = (*a.named_parameters(), *a.named_buffers())
    return {n: t for n, t in every if not n.startswith("base.")}


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, Tensor)


def _differ(a: Adapter, b: Adapter) -> list[str]:
    """Names of what two adapters hold differently."""
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    there = _state(b)
    tensors = [
        n
        for n, t in _state(a).items()
        if n not in there or not torch.equal(t, there[n])
    ]
    return tensors + [
        n
        for n, v in vars(a).items()
        if not n.startswith("_") and isinstance(v, plain) and v != getattr(b, n, None)
    ]
