"""The one file that knows how a layer stores its weight. Everywhere else W is
(d_out, d_in).
"""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Types beside nn.Linear and Conv1D that compute x Wᵀ + b on `.weight`, (d_out, d_in):
# whoever knows one adds it, e.g. hra.linear.ACCEPTED.add(MyLinear).
ACCEPTED: set[type[nn.Module]] = set()
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# torch's modules that read the weights of their layers without calling them
READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def is_conv1d(layer: nn.Module) -> bool:
    """Hugging Face's GPT-2 layer: a linear map that stores W as (d_in, d_out)."""
    return _conv1d(type(layer)) is not None


def _conv1d(kind: type) -> type | None:
    for c in kind.__mro__:
        if c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils":
            return c
    return None


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` is of a linear type: nn.Linear, Conv1D, or an accepted one."""
    return isinstance(layer, (nn.Linear, *ACCEPTED)) or is_conv1d(layer)


def check(layer: nn.Module, site: str = "", who: str = "an adapter") -> None:
    """Raise TypeError unless `layer` computes x Wᵀ + b on a weight of its own."""
    kind, name = type(layer), f"{site} ({type(layer).__name__})" if site else ""
    name = name or f"this {kind.__name__}"
    if not is_linear(layer):
        raise TypeError(
            f"{who} needs a linear layer (nn.Linear or Conv1D), got {kind.__name__}."
        )
    W = layer._parameters.get("weight")
    if W is None:
        why = "its weight is computed from other tensors (weight norm, pruning, …)"
        raise TypeError(f"{name} has no weight of its own: {why}. Make it plain first.")
    own = _conv1d(kind) or nn.Linear
    forward = next(vars(c)["forward"] for c in kind.__mro__ if "forward" in vars(c))
    if isinstance(W, nn.parameter.UninitializedParameter):
        raise TypeError(f"{name} has no shape yet (lazy): run the model once first.")
    if W.layout is not torch.strided:
        raise TypeError(f"{name} holds a weight of {W.layout}; a dense one is needed.")
    if W.dtype not in DTYPES or W.ndim != 2:
        raise TypeError(
            f"{name} holds a weight of {W.dtype}, {tuple(W.shape)}: quantised layers "
            "are not supported; load the model in float32, bfloat16 or float16."
        )
    if kind in ACCEPTED:
        return
    if forward is not vars(own)["forward"] or "forward" in vars(layer):
        where = "the instance" if "forward" in vars(layer) else kind.__name__
        raise TypeError(
            f"{name} computes by a forward of its own ({where}): hra cannot know that "
            "it is x Wᵀ + b (quantised and scaled layers are not). If it is, say so: "
            f"hra.linear.ACCEPTED.add({kind.__name__})."
        )
    hooks = (
        *layer._forward_hooks.values(),
        *layer._forward_pre_hooks.values(),
        *layer._backward_hooks.values(),
        *layer._backward_pre_hooks.values(),
    )
    if hooks:
        raise TypeError(
            f"{name} carries a hook, which would no longer see the layer's output: "
            "remove it, attach, and register it on the adapted layer."
        )


def check_places(
    model: nn.Module, found: dict[str, nn.Module], no_delta: str = ""
) -> None:
    """Raise TypeError or ValueError where an adapter cannot stand for its layer.

    no_delta: the name of a method that has no ΔW, or "".
    """
    for name, layer in found.items():
        check(layer, name)
    held = holders(model)
    for name, layer in found.items():
        inside = next((n for n in found if n.startswith(f"{name}.")), None)
        if inside:
            raise ValueError(f"{inside} lies inside {name}: adapt one of the two.")
        parent = model.get_submodule(name.rpartition(".")[0])
        if no_delta and isinstance(parent, READERS):
            raise ValueError(
                f"{name} is read by {type(parent).__name__} without being called, and "
                f"{no_delta} has no ΔW that such a reader could see: choose other "
                "targets."
            )
        names = owners(held, layer.get_parameter("weight"))
        if len(names) > 1:
            raise ValueError(
                f"{name}.weight is tied: the model holds the same tensor as "
                f"{' and '.join(names)}. An adapter here would change one use and not "
                "the other; choose other targets, or untie the weight."
            )


def is_sharded(layer: nn.Module) -> bool:
    """Whether the layer holds a part of its weight only (FSDP2, tensor parallel)."""
    return hasattr(layer._parameters["weight"], "full_tensor")


def weight(layer: nn.Module) -> Tensor:
    """W, (d_out, d_in): for Conv1D a transposed view of the layer's own storage, so
    in-place edits reach it.
    """
    W = layer.weight
    if not isinstance(W, Tensor):
        raise TypeError(
            f"{type(layer).__name__} has no weight tensor; a linear layer (nn.Linear "
            "or Conv1D) is needed."
        )
    return W.T if is_conv1d(layer) else W


def own(layer: nn.Module, instead: str) -> nn.Parameter:
    """The weight as the layer stores it, to write into. Raises RuntimeError in a
    functional call, saying what to do `instead`.
    """
    W: Any = layer.weight
    if not isinstance(W, nn.Parameter):
        raise RuntimeError(
            "the entries are written into the layer's own weight, and a functional "
            f"call gives it another one: {instead}."
        )
    return W


def bias(layer: nn.Module) -> Tensor | None:
    """b, (d_out,), or None."""
    b = getattr(layer, "bias", None)
    return b if isinstance(b, Tensor) else None


@torch.no_grad()
def with_weight(layer: nn.Module, W: Tensor, b: Tensor | None = None) -> nn.Module:
    """A copy of `layer` that holds W (d_out, d_in), and b (d_out,) if given; the
    original is left untouched.
    """
    new = copy.deepcopy(layer)
    weight(new).copy_(W)
    if b is not None:
        new.get_parameter("bias").copy_(b)
    return new


def on_gradient(x: Tensor, y: Tensor, see: Callable[[Tensor], None]) -> None:
    """Call see(G) with G = gᵀ x, (d_out, d_in), the gradient of the weight that maps x
    to y, when the backward pass reaches y. x is kept until then.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    if kept_by_hooks is not None:
        kept_by_hooks.append(rows)
    y.register_hook(lambda g: see(g.reshape(-1, g.shape[-1]).T @ rows.to(g.dtype)))


# where a list stands here, `on_gradient` notes the inputs that it keeps: no hook of
# autograd's sees them, and the bill counts them (hra.memory)
kept_by_hooks: list[Tensor] | None = None


def new(layout: str, d_in: int, d_out: int, bias: bool = True) -> nn.Module:
    """A layer that stores its weight as `layout` says: "Linear", or "Conv1D", which
    always has a bias (it begins at zero).
    """
    if layout == "Linear":
        return nn.Linear(d_in, d_out, bias=bias)
    from transformers.pytorch_utils import Conv1D

    return Conv1D(d_out, d_in)


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) for every linear layer of the model, in the model's order."""
    for name, layer in model.named_modules():
        if is_linear(layer):
            yield name, layer


def matching(names: list[str], pattern: str, argument: str, what: str) -> list[str]:
    """Those of `names` that contain the regular expression `pattern`.

    Raises TypeError if it is no string, ValueError if it is no regular expression, or
    if it, or one part of a plain a|b|c, matches nothing. `argument` and `what` say in
    the error's words what was given and what is looked for.
    """
    if not isinstance(pattern, str):
        raise TypeError(
            f"{argument}={pattern!r} is a {type(pattern).__name__}; give a regular "
            f"expression, e.g. {argument}=r'c_attn$|c_fc$'."
        )
    try:
        found = [n for n in names if re.search(pattern, n)]
    except re.error as e:
        raise ValueError(
            f"{argument}={pattern!r} is not a regular expression: {e}."
        ) from None
    there = f"This model has {len(names)}, e.g. {', '.join(names[:4]) or 'none'}"
    if not found:
        raise ValueError(f"{argument}={pattern!r} matches no {what}. {there}")
    if not re.search(r"[(\[]", pattern):  # a typo in one of several names
        for part in pattern.split("|"):
            if not any(re.search(part, n) for n in names):
                raise ValueError(
                    f"{argument}={pattern!r}: the part {part!r} matches no {what}. "
                    f"{there}"
                )
    return found


def sites(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """The linear layers whose dotted name contains the regular expression `targets`.

    Raises TypeError if `targets` is not a string, ValueError if it is no regular
    expression or matches no linear layer.
    """
    every = dict(linears(model))
    return {
        n: every[n] for n in matching(list(every), targets, "targets", "linear layer")
    }


# layers of one module that read one input, as public models call them
_READERS = re.compile(
    r"(?:(q|k|v|query|key|value)|(gate|up|w1|w3|wi_0|wi_1))(?:_?proj|_?lin)?"
)


def siblings(sites: dict[str, nn.Module]) -> list[list[str]]:
    """Sites that read one input, as far as names tell: two or more layers of one
    module, of one d_in, for queries, keys and values (q_proj, query, q_lin, …) or for
    the gate of an MLP and what it opens (gate_proj, up_proj, w1, w3, …).
    """
    found: dict[Any, list[str]] = {}
    for site, layer in sites.items():
        parent, _, name = site.rpartition(".")
        if kind := _READERS.fullmatch(name):
            key = parent, kind.lastindex, weight(layer).shape[1]
            found.setdefault(key, []).append(site)
    return [group for group in found.values() if len(group) > 1]


Holders = dict[int, list[tuple[str, Any, Any]]]


def holders(model: nn.Module) -> Holders:
    """Where the model's parameters lie: for each storage (by its address; on the meta
    device each tensor is its own) the dotted names, the first and the last element.
    """
    held: Holders = {}
    for n, p in model.named_parameters(remove_duplicate=False):
        if p.layout is torch.strided:  # another layout has no storage to share
            storage, first, last = _span(p)
            held.setdefault(storage, []).append((n, first, last))
    return held


def owners(held: Holders, parameter: Tensor) -> list[str]:
    """Dotted names under which a model holds `parameter`, or memory that it shares:
    more than one means that the weight is tied.
    """
    storage, first, last = _span(parameter)
    there = held.get(storage, [])
    return [
        n for n, its_first, its_last in there if first <= its_last and its_first <= last
    ]


def _span(t: Tensor) -> tuple[int, Any, Any]:
    """(the storage, first and last element of `t` in it)."""
    first = t.storage_offset()
    last = first + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.untyped_storage().data_ptr() or -id(t), first, last
