"""The one file that knows how a layer stores its weight. Everywhere else W is (d_out,
d_in).
"""

import copy
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def is_conv1d(layer: nn.Module) -> bool:
    """Hugging Face's GPT-2 layer: a linear map that stores W as (d_in, d_out)."""
    return type(layer).__name__ == "Conv1D" and isinstance(
        getattr(layer, "weight", None), nn.Parameter
    )


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` computes x Wᵀ + b with a weight of its own."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


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


def bias(layer: nn.Module) -> Tensor | None:
    """b, (d_out,), or None."""
    b = getattr(layer, "bias", None)
    return b if isinstance(b, Tensor) else None


def with_weight(layer: nn.Module, W: Tensor, b: Tensor | None = None) -> nn.Module:
    """A copy of `layer` that holds W (d_out, d_in), and b (d_out,) if given; the
    original is left untouched.
    """
    new = copy.deepcopy(layer)
    with torch.no_grad():
        weight(new).copy_(W)
        if b is not None:
            new.get_parameter("bias").copy_(b)
    return new


def on_gradient(x: Tensor, y: Tensor, see: Callable[[Tensor], None]) -> None:
    """Call see(G) with G = gᵀ x, (d_out, d_in), the gradient of the weight that maps x
    to y, when the backward pass reaches y.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    y.register_hook(lambda g: see(g.reshape(-1, g.shape[-1]).T @ rows.to(g.dtype)))


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) for every linear layer of the model, in the model's order."""
    for name, layer in model.named_modules():
        if is_linear(layer):
            yield name, layer


def sites(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """The linear layers whose dotted name contains the regular expression `targets`.

    Raises TypeError if `targets` is not a string, ValueError if it is no regular
    expression or matches no linear layer.
    """
    if not isinstance(targets, str):
        raise TypeError(
            f"targets={targets!r} is a {type(targets).__name__}; give a regular "
            "expression, "
            "e.g. targets=r'c_attn$|c_fc$'."
        )
    try:
        pattern = re.compile(targets)
    except re.error as e:
        raise ValueError(
            f"targets={targets!r} is not a regular expression: {e}."
        ) from None
    every = dict(linears(model))
    found = {name: layer for name, layer in every.items() if pattern.search(name)}
    if not found:
        some = ", ".join(list(every)[:4]) or "none"
        raise ValueError(
            f"targets={targets!r} matches no linear layer. This model has "
            f"{len(every)}, e.g. {some}"
        )
    if not re.search(
        r"[(\[]", targets
    ):  # a plain a|b|c: a typo in one of several names should not pass silently
        for part in targets.split("|"):
            if not any(re.search(part, name) for name in every):
                raise ValueError(
                    f"targets={targets!r}: the part {part!r} matches no linear layer. "
                    f"This model has {len(every)}, e.g. {', '.join(list(every)[:4])}"
                )
    return found


def owners(model: nn.Module, parameter: Tensor) -> list[str]:
    """Dotted names under which the model holds `parameter`: more than one means that
    the weight is tied.
    """
    return [
        n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter
    ]
