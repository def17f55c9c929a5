"""Calibration gradients: what masks by gradient, SNIP and Fisher's information are made
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear


@dataclass(frozen=True)
class Probe:
    """Per site, (d_out, d_in): the mean of ∂L/∂W over the batches, and the mean of its
    square.
    """

    mean: dict[str, Tensor]
    squared: dict[str, Tensor]


def probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    targets: str = "",
    progress: bool = True,
) -> Probe:
    """Run `batches` (a finite iterable) forward and backward and collect ∂L/∂W of the
    linear layers that `targets` names.

    G = gᵀx is formed in a hook of each layer, one dense matrix at a time; no weight is
    made trainable, the model's mode, gradients and flags are left as they were, also
    after an error. Raises ValueError when nothing matches or there is no batch.
    """
    from tqdm.auto import tqdm

    found = linear.sites(model, targets)
    total = {
        s: torch.zeros_like(linear.weight(m), memory_format=torch.contiguous_format)
        for s, m in found.items()
    }
    squared = {s: torch.zeros_like(t) for s, t in total.items()}
    batch_sum: dict[str, Tensor] = {}
    handles: list[Any] = []
    flags, mode = [(p, p.requires_grad) for p in model.parameters()], model.training

    def watch(site: str) -> Any:
        def hook(module: nn.Module, args: tuple, y: Tensor) -> None:
            def add(G: Tensor) -> None:  # a layer that is called twice adds twice
                batch_sum[site] = batch_sum[site] + G if site in batch_sum else G

            # everything is frozen: gradients begin at the first layer that is watched
            if not y.requires_grad:
                y.requires_grad_()
            linear.on_gradient(args[0], y, add)

        return hook

    count = 0
    try:
        model.requires_grad_(False).eval()
        handles = [m.register_forward_hook(watch(s)) for s, m in found.items()]
        for batch in tqdm(batches, desc="probe", disable=not progress, leave=False):
            batch_sum.clear()
            loss = model(**batch).loss
            loss.backward()
            for s in found:
                if s not in batch_sum:
                    raise ValueError(
                        f"no gradient reached {s}: the loss does not depend on it."
                    )
                total[s] += batch_sum[s]
                squared[s] += batch_sum[s] ** 2
            count += 1
    finally:
        for h in handles:
            h.remove()
        for p, flag in flags:
            p.requires_grad_(flag)
        model.train(mode)
    if not count:
        raise ValueError("there is no batch to probe with.")
    return Probe(
        {s: t / count for s, t in total.items()},
        {s: t / count for s, t in squared.items()},
    )
