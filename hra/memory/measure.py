"""The bill of a real step, read off autograd and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear
from hra.memory.bill import Amount, Bill


def amount(tensors: Any) -> Amount:
    """Numbers and bytes of the tensors' storages, each storage once."""
    storages = {storage(t): (t.untyped_storage(), t.element_size()) for t in tensors}
    return sum(
        (Amount(s.nbytes() // size, s.nbytes()) for s, size in storages.values()),
        Amount(),
    )


def storage(t: Tensor) -> int:
    """What tells the storage of `t` from every other one (an address would not, on the
    meta device).
    """
    return t.untyped_storage()._cdata


def bare(tuned: Any) -> nn.Module:
    """The model, of what `hra.attach` returns or on its own."""
    return tuned if isinstance(tuned, nn.Module) else tuned.model


def saved(run: Callable[[], Any], model: nn.Module) -> tuple[Any, list[Tensor]]:
    """(what `run` returns, the tensors that autograd keeps of it, those of the model's
    parameters and buffers left out).
    """
    own = {storage(t) for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        for part in (t._indices(), t._values()) if t.is_sparse else (t,):
            if storage(part) not in own:
                kept.append(part)
        return t

    with (
        linear.kept_by_hooks() as observed,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        out = run()
    for x in observed:  # for a method that observes its gradient
        pack(x)
    return out, kept


class _AsItWas:
    """Context: whatever happens inside, the model's gradients, modes and buffers, the
    inputs' gradients and the random state are afterwards what they were.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        tensors = [t for t in batch.values() if isinstance(t, Tensor)]
        leaves = [*model.parameters(), *(t for t in tensors if t.is_leaf)]
        self.grads = [(t, t.grad) for t in leaves]
        self.modes = [(m, m.training) for m in model.modules()]
        self.buffers = [
            (m, name, b, b.clone())
            for m in model.modules()
            for name, b in m._buffers.items()
            if b is not None
        ]
        devices = {t.device.index for t in model.parameters() if t.is_cuda}
        self.rng = torch.random.fork_rng(devices=sorted(devices))

    def __enter__(self) -> _AsItWas:
        self.rng.__enter__()
        return self

    @torch.no_grad()
    def __exit__(self, *error: Any) -> None:
        self.rng.__exit__(*error)
        for t, grad in self.grads:
            t.grad = grad
        for module, training in self.modes:
            module.training = training
        for module, name, buffer, value in self.buffers:
            module._buffers[name] = buffer
            if not buffer.is_meta and not torch.equal(buffer, value):
                buffer.copy_(value)


def measure(
    tuned: Any,
    batch: Mapping[str, Any],
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Bill:
    """The bill of one training step, read off autograd and the optimizer; afterwards
    the model is as it was, whatever happened.

    `measure(tuned, {"input_ids": ids, "labels": ids}).peak.bytes`, with ids (batch,
    tokens).

    tuned: what `hra.attach` returns, or a plain module whose trainable parameters are
    to be charged. batch: keyword arguments of the model, which returns an object with a
    scalar `.loss`, or a tensor (its sum is then the loss). optimizer: its state, steps
    apart, is the moments. Kept activations are counted by storage: a view keeps alive
    all of what it looks at.

    Raises ValueError if nothing trains or the model gives no loss.
    """
    model = bare(tuned)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError(
            "nothing of this model trains: attach a method first, or set requires_grad."
        )
    with _AsItWas(model, batch) as before:
        model.train()
        for t, _ in before.grads:  # backward would add to the tensor that is there
            t.grad = None
        out, kept = saved(lambda: model(**batch), model)
        loss = out.sum() if isinstance(out, Tensor) else getattr(out, "loss", None)
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"the model returns a {type(out).__name__} without a loss: put labels "
                "into the batch."
            )
        activations = amount(kept)
        loss.backward()
        gradients = amount(p.grad for p in params if p.grad is not None)
        moments = amount(state(params, optimizer))
    ids = {id(p) for p in params}
    rest = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in ids]
    return Bill(amount(rest), amount(params), gradients, moments, activations)


def state(
    params: list[nn.Parameter], optimizer: type[torch.optim.Optimizer]
) -> list[Tensor]:
    """What the optimizer holds of parameters like these after a step, on stand-ins."""
    twins = [torch.zeros_like(p).requires_grad_() for p in params]
    for t, p in zip(twins, params, strict=True):
        t.grad = None if p.grad is None else torch.zeros_like(p)
    opt = optimizer(twins)  # type: ignore[call-arg]
    opt.step()
    return [
        s
        for of_one in opt.state.values()
        for name, s in of_one.items()
        if isinstance(s, Tensor) and name != "step"
    ]
