"""What is held while a step runs, operation by operation: how the bill fills up."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hra.checks import check_count, or_undo
from hra.memory.measure import bare, saved, storage, undoing


@dataclass(frozen=True)
class Timeline:
    """held: {part: bytes after 0, 1, 2, … operations}, of the bill's five parts and of
    "passing", what an operation makes and nothing keeps. phases: (name, how many
    operations had run when it began), then ("end", all of them).
    """

    held: Mapping[str, list[int]]
    phases: list[tuple[str, int]]

    @property
    def five(self) -> list[int]:
        """The sum of the bill's five parts after 0, 1, 2, … operations."""
        return [sum(now[:-1]) for now in zip(*self.held.values(), strict=True)]


class Watch(TorchDispatchMode):
    """Notes when each storage is made and when it is given back, in operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.made: list[tuple[int, int]] = []  # when, bytes
        self.gone: dict[int, int] = {}  # which of `made`: when
        self.known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def note(self, t: Tensor) -> int:
        """Which of `made` the tensor's storage is."""
        key, held = storage(t), t.untyped_storage()
        if key in self.known and self.known[key][0]() is held:
            return self.known[key][1]
        which = len(self.made)
        self.made.append((self.count, held.nbytes()))

        def end(_: Any) -> None:
            self.gone[which] = self.count

        self.known[key] = weakref.ref(held, end), which
        return which

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += 1
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and not t.is_sparse:
                self.note(t)
        return out


def timeline(
    tuned: Any, batch: Mapping[str, Any], *, batches: int = 1, steps: int = 1
) -> Timeline:
    """Run `steps` training steps with a new AdamW and watch every tensor; afterwards
    the model is as it was, whatever happened.

    `max(timeline(tuned, batch, batches=2, steps=2).five)` is
    `measure(tuned, batch).peak.bytes`.

    tuned, batch: as for `measure`. batches: forward and backward passes of one step,
    whose gradients add up; they are cleared at its end. The first step has no moments
    until its update. The learning rate is 0. Of the batch's own tensors, those that
    autograd keeps are counted from then on.

    Raises ValueError if nothing trains or the model gives no loss.
    """
    check_count("batches", batches)
    check_count("steps", steps)
    model = bare(tuned)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError(
            "nothing of this model trains: attach a method first, or set requires_grad."
        )
    penalty = getattr(tuned, "penalty", float)
    undo_rest, values = undoing(model, batch), [p.detach().clone() for p in params]
    watch = Watch()
    part: dict[int, str] = {}
    phases: list[tuple[str, int]] = []

    @torch.no_grad()
    def undo() -> None:
        undo_rest()
        for p, value in zip(params, values, strict=True):
            p.copy_(value)  # 0 times a gradient that is not finite is a change

    def mark(what: str, *tensors: Any) -> None:
        for t in tensors:
            part.setdefault(watch.note(t), what)

    def loss_of() -> Tensor:
        (out, extra), kept = saved(lambda: (model(**batch), penalty()), model)
        mark("activations", *kept)
        kept.clear()  # autograd's hooks hold this list until backward has ended
        loss = out.sum() if isinstance(out, Tensor) else getattr(out, "loss", None)
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"the model returns a {type(out).__name__} without a loss: put labels "
                "into the batch."
            )
        return loss + extra

    def work() -> None:
        model.train()
        for p in params:
            p.grad = None
        mark("trained", *params)
        mark("weights", *model.parameters(), *model.buffers())
        optimizer = torch.optim.AdamW(params, lr=0.0)
        for _ in range(steps):
            for _ in range(batches):
                phases.append(("forward", watch.count))
                loss = loss_of()
                phases.append(("backward", watch.count))
                loss.backward()
                del loss
                mark("gradients", *(p.grad for p in params if p.grad is not None))
            phases.append(("update", watch.count))
            optimizer.step()
            for of_one in optimizer.state.values():
                moments = (s for n, s in of_one.items() if n != "step")
                mark("moments", *(s for s in moments if isinstance(s, Tensor)))
            optimizer.zero_grad()
        phases.append(("end", watch.count))
        undo()

    with watch:
        or_undo(work, undo)
    parts = ("weights", "trained", "gradients", "moments", "activations", "passing")
    change = {p: [0] * (watch.count + 2) for p in parts}
    for which, (when, size) in enumerate(watch.made):
        of = change[part.get(which, "passing")]
        of[when] += size
        of[watch.gone.get(which, watch.count) + 1] -= size
    last = phases[-1][1]
    return Timeline(
        {p: list(accumulate(c))[: last + 1] for p, c in change.items()}, phases
    )
