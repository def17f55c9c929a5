"""The bill of a real step, read off autograd and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hra import linear
from hra.checks import or_undo
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

    before = linear.kept_by_hooks
    observed: list[Tensor] = []

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    entered = ExitStack()

    def undo() -> None:
        linear.kept_by_hooks = before
        entered.close()

    def work() -> Any:
        linear.kept_by_hooks = observed
        entered.enter_context(hooks)
        out = run()
        undo()
        return out

    out = or_undo(work, undo)
    for x in observed:  # for a method that observes its gradient
        pack(x)
    return out, kept


def undoing(model: nn.Module, batch: Mapping[str, Any]) -> Callable[[], None]:
    """What makes the model's gradients, modes and buffers, the inputs' gradients and
    the random state what they are now, however often it is called.
    """
    tensors = [t for t in batch.values() if isinstance(t, Tensor)]
    leaves = [*model.parameters(), *(t for t in tensors if t.is_leaf)]
    grads = [(t, t.grad) for t in leaves]
    modes = [(m, m.training) for m in model.modules()]
    buffers = [
        (m, name, b, b.clone())
        for m in model.modules()
        for name, b in m._buffers.items()
        if b is not None
    ]
    devices = {t.device for t in model.parameters() if t.is_cuda}
    seeds = {d: torch.cuda.get_rng_state(d) for d in devices}
    seed = torch.get_rng_state()

    @torch.no_grad()
    def undo() -> None:
        torch.set_rng_state(seed)
        for device, on_device in seeds.items():
            torch.cuda.set_rng_state(on_device, device)
        for t, grad in grads:
            t.grad = grad
        for module, training in modes:
            module.training = training
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not buffer.is_meta and not torch.equal(buffer, value):
                buffer.copy_(value)

    return undo


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
    undo = undoing(model, batch)
    penalty = getattr(tuned, "penalty", float)

    def step() -> tuple[Amount, Amount, Amount]:
        model.train()
        for t in (*model.parameters(), *batch.values()):
            if isinstance(t, Tensor) and t.is_leaf:
                t.grad = None  # backward would add to the tensor that is there
        (out, extra), kept = saved(lambda: (model(**batch), penalty()), model)
        loss = out.sum() if isinstance(out, Tensor) else getattr(out, "loss", None)
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"the model returns a {type(out).__name__} without a loss: put labels "
                "into the batch."
            )
        activations = amount(kept)
        (loss + extra).backward()
        gradients = amount(p.grad for p in params if p.grad is not None)
        moments = amount(state(params, optimizer))
        undo()
        return gradients, moments, activations

    parts = or_undo(step, undo)
    ids = {id(p) for p in params}
    rest = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in ids]
    return Bill(amount(rest), amount(params), *parts)


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
