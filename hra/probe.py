"""Calibration gradients: what masks by gradient, SNIP and Fisher's information are made
from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear
from hra.adapter import Adapter
from hra.checks import check_choice, or_undo


@dataclass(frozen=True)
class Probe:
    """Per site, (d_out, d_in): the mean of ∂L/∂W over the batches, and the mean of its
    square.
    """

    mean: dict[str, Tensor]
    squared: dict[str, Tensor]


Losses = Callable[[Any], Iterable[tuple[Any, Tensor]]]  # output → (weight, loss)


def probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    targets: str = "",
    progress: bool = True,
) -> Probe:
    """Run `batches` (a finite iterable) forward and backward and collect ∂L/∂W of the
    linear layers that `targets` names; of an adapted layer that of W0 + ΔW.

        probe = hra.probe(model, batches, targets="c_attn")
        probe.mean["transformer.h.0.attn.c_attn"].shape     # (576, 192), as W

    G = gᵀx is formed in a hook of each layer, one dense matrix at a time; no weight is
    made trainable, the modules' modes, gradients and flags are left as they were, also
    after an error. Raises ValueError when nothing matches or there is no batch.
    """
    return _probe(model, batches, targets, progress, lambda out: [(1.0, out.loss)])


def fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    targets: str = "",
    form: str = "label",
    progress: bool = True,
) -> dict[str, Tensor]:
    """The diagonal of Fisher's information of the layers that `targets` names, {site:
    (d_out, d_in)}, example by example whatever the batches' size (Sung et al., 2021).

        form="label"     F = mean over x of (∂ log p(y | x) / ∂W)², y the label
        form="expect"    F = mean over x of Σ_y p(y | x) (∂ log p(y | x) / ∂W)²

    The first is the empirical one; log p is minus the model's loss, which for a
    language model is a mean over the tokens. The second needs a pass for every class
    and no label; it is for models whose logits are (batch, classes). Squares of a
    batch's mean gradient (`probe(...).squared`) are another thing unless a batch is one
    example. Raises what `probe` raises, ValueError for another form, and for "expect"
    where the logits are of another shape.
    """
    check_choice("form", form, ("label", "expect"))
    losses: Losses = _classes if form == "expect" else lambda out: [(1.0, out.loss)]
    return _probe(model, _examples(batches), targets, progress, losses).squared


def _examples(batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each example as a batch of its own."""
    for batch in batches:
        sizes = {v.shape[0] for v in batch.values() if _rows(v)}
        if len(sizes) != 1:
            raise ValueError(
                "a batch is cut into examples along its tensors' first axis, and here "
                f"the lengths are {sorted(sizes) or 'none'}; one length is needed."
            )
        for i in range(sizes.pop()):
            yield {k: v[i : i + 1] if _rows(v) else v for k, v in batch.items()}


def _rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _classes(out: Any) -> Iterator[tuple[Any, Tensor]]:
    """(p(y | x), −log p(y | x)) of every class y."""
    if out.logits.ndim != 2:
        raise ValueError(
            "form='expect' sums over the classes of one label an example, and this "
            f"model's logits are {tuple(out.logits.shape)}: use form='label'."
        )
    log_p = out.logits[0].log_softmax(-1)
    for y in range(len(log_p)):
        yield log_p[y].detach().exp(), -log_p[y]


def _probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    targets: str,
    progress: bool,
    losses: Losses,
) -> Probe:
    from tqdm import tqdm

    found = watched(model, targets)
    total = {s: _zeros(m) for s, m in found.items()}
    squared = {s: _zeros(m) for s, m in found.items()}
    batch_sum: dict[str, Tensor] = {}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]

    def undo() -> None:
        for s, m in found.items():
            for key, hook in list(m._forward_hooks.items()):
                if hook is hooks[s]:  # no handle: it may have been cut off on its way
                    del m._forward_hooks[key]
        for p, flag in flags:
            p.requires_grad_(flag)
        for m, mode in modes:
            m.training = mode

    def watch(site: str) -> Any:
        def hook(module: nn.Module, args: tuple, y: Tensor) -> None:
            def add(G: Tensor) -> None:  # a layer that is called twice adds twice
                G = G.to(total[site].dtype)
                batch_sum[site] = batch_sum[site] + G if site in batch_sum else G

            # everything is frozen: gradients begin at the first layer that is watched
            if not y.requires_grad:
                y.requires_grad_()
            linear.on_gradient(args[0], y, add)

        return hook

    hooks = {s: watch(s) for s in found}

    def work() -> Probe:
        count = 0
        model.requires_grad_(False).eval()
        for s, m in found.items():
            m.register_forward_hook(hooks[s])
        quiet = not (progress and sys.stderr.isatty())
        for batch in tqdm(batches, desc="probe", disable=quiet, leave=False):
            for weight, loss in losses(model(**batch)):
                batch_sum.clear()
                loss.backward(retain_graph=losses is _classes)
                for s in found:
                    if s not in batch_sum:
                        raise ValueError(
                            f"no gradient reached {s}: the loss does not depend on it."
                        )
                    total[s] += weight * batch_sum[s]
                    squared[s] += weight * batch_sum[s] ** 2
            count += 1
        if not count:
            raise ValueError("there is no batch to probe with.")
        undo()
        return Probe(
            {s: t / count for s, t in total.items()},
            {s: t / count for s, t in squared.items()},
        )

    return or_undo(work, undo)


def watched(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """The layers that `targets` names: an adapter where a linear layer was."""
    every: dict[str, nn.Module] = {}
    for name, m in model.named_modules():
        if isinstance(m, Adapter) or linear.is_linear(m):
            if name.rpartition(".")[0] not in every:  # not the base of an adapter
                every[name] = m
    names = linear.matching(list(every), targets, "targets", "linear layer")
    return {n: every[n] for n in names}


def _zeros(layer: Any) -> Tensor:
    W = layer.W0 if isinstance(layer, Adapter) else linear.weight(layer)
    dtype = torch.promote_types(W.dtype, torch.float32)
    return torch.zeros(W.shape, dtype=dtype, device=W.device)
