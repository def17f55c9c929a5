"""The training loop: AdamW, warm-up and cosine, clipping, a progress bar, a log, a
checkpoint to resume from.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hra import schedules
from hra.adapter import check_number


@dataclass
class Log:
    """What happened: one dict a step (`step, loss, lr, grad_norm, seconds`) and one an
    evaluation (`step, value`).
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [s["loss"] for s in self.steps]

    def plot(self, **kwargs: Any) -> Any:
        """The loss curve, and the evaluations if there are any, as a figure."""
        from hra import viz

        return viz.plot_log(self, **kwargs)

    def __repr__(self) -> str:
        if not self.steps:
            return "Log(empty)"
        first, last = self.losses[0], self.losses[-1]
        return f"Log({len(self.steps)} steps, loss {first:.3f} → {last:.3f})"


def fit(
    tuned: Any,
    batches: Iterable[Mapping[str, Any]],
    steps: int,
    lr: float = 2e-4,
    *,
    schedule: schedules.Schedule | None = None,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    evaluate: Callable[[], float] | None = None,
    every: int = 50,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    callback: Callable[[Log], bool | None] | None = None,
) -> Log:
    """Train the adapters of `tuned` (from `hra.attach`) for `steps` steps; returns a
    `Log`.

    batches: mappings that the model takes as keyword arguments; a sequence is gone
    through again and again, an iterator must last. schedule: multiplier of `lr`
    (default: 10 % warm-up, then cosine). clip: largest gradient norm. evaluate: called
    every `every` steps and at the end, its number goes into the log. checkpoint: a
    file; when it exists, training goes on from it (the batches already used are
    skipped), and it is rewritten every `every` steps. callback: sees the log after each
    step; training stops when it returns False.

    Raises ValueError for bad settings, for a checkpoint of another run, RuntimeError
    when the loss is not finite or the batches run out. The model's train/eval mode is
    given back as it was.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be an integer of at least 1.")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every!r} must be an integer of at least 1.")
    check_number("lr", lr, 0.0, float("inf"))
    check_number("clip", clip, 0.0, float("inf"))
    check_number("weight_decay", weight_decay, 0.0, float("inf"), closed_low=True)
    if not getattr(tuned, "adapters", None):
        raise ValueError(
            "fit trains what hra.attach returns; this model has no adapters."
        )
    shape = schedule or schedules.cosine()
    groups = tuned.param_groups(lr)
    peaks = [g["lr"] for g in groups]
    params = [p for g in groups for p in g["params"]]
    opt = torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay)
    setting = {
        "steps": steps,
        "lr": lr,
        "weight_decay": weight_decay,
        "clip": clip,
        "method": tuned.method.__name__,
        "trained": tuned.num_trainable,
    }
    log, first = Log(), 0
    if checkpoint is not None and Path(checkpoint).exists():
        first = _resume(Path(checkpoint), setting, tuned, opt, log)
    source = (
        itertools.cycle(batches) if isinstance(batches, Sequence) else iter(batches)
    )
    for _ in range(first):
        next(source, None)

    for a in tuned.adapters.values():
        a.begin(steps)
    model, was_training = tuned.model, tuned.model.training
    model.train()
    begun = time.perf_counter() - (log.steps[-1]["seconds"] if log.steps else 0.0)
    bar = _bar(first, steps, tuned.method.__name__, progress)
    try:
        for step in range(first, steps):
            batch = next(source, None)
            if batch is None:
                raise RuntimeError(
                    f"the batches ran out after {step} of {steps} steps; give a list "
                    "or an endless iterator."
                )
            for g, peak in zip(opt.param_groups, peaks, strict=True):
                g["lr"] = peak * shape(step, steps) * g.get("rate", 1.0)
            loss = model(**batch).loss
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"the loss is {loss.item()} at step {step + 1}: lower lr={lr:g}, "
                    "or look at the batch."
                )
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(params, clip)
            opt.step()
            tuned.after_step(step + 1, opt)
            opt.zero_grad()
            log.steps.append(
                {
                    "step": step + 1,
                    "loss": loss.item(),
                    "lr": opt.param_groups[0]["lr"],
                    "grad_norm": norm.item(),
                    "seconds": time.perf_counter() - begun,
                }
            )
            last = step + 1 == steps
            if evaluate is not None and ((step + 1) % every == 0 or last):
                log.evaluations.append({"step": step + 1, "value": evaluate()})
                model.train()
            if checkpoint is not None and ((step + 1) % every == 0 or last):
                _save(Path(checkpoint), setting, tuned, opt, log)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if callback is not None and callback(log) is False:
                break
    finally:
        bar.close()
        model.train(was_training)
    return log


def _bar(first: int, steps: int, name: str, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        total=steps, initial=first, desc=name, disable=not progress, leave=False
    )


def _save(
    path: Path, setting: dict, tuned: Any, opt: torch.optim.Optimizer, log: Log
) -> None:
    part = path.with_name(path.name + ".part")
    torch.save(
        {
            "setting": setting,
            "adapters": tuned.state_dict(),
            "optimizer": opt.state_dict(),
            "random": torch.get_rng_state(),
            "steps": log.steps,
            "evaluations": log.evaluations,
        },
        part,
    )
    part.replace(path)


def _resume(
    path: Path, setting: dict, tuned: Any, opt: torch.optim.Optimizer, log: Log
) -> int:
    c = torch.load(path, weights_only=True)
    own = tuned.state_dict()
    if c["setting"] != setting or own.keys() != c["adapters"].keys():
        raise ValueError(
            f"checkpoint {path} is of another run: {c['setting']}, this one is "
            f"{setting}. "
            "Delete it or give another name."
        )
    for k, v in own.items():
        v.copy_(c["adapters"][k])
    opt.load_state_dict(c["optimizer"])
    torch.set_rng_state(c["random"])  # dropout goes on where it was
    log.steps, log.evaluations = c["steps"], c["evaluations"]
    return len(log.steps)
