"""The training loop: AdamW, warm-up and cosine, clipping, a progress bar, a log, a
checkpoint to resume from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from hra import io, schedules
from hra.checks import check_number


@dataclass
class Log:
    """What happened: a dict for each step (`step, loss, lr, grad_norm, seconds`, lr as
    it was used), each evaluation (`step, value`) and each event: a restart, a move.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

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
    evaluate: Callable[[], Any] | None = None,
    every: int = 50,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    callback: Callable[[Log], bool | None] | None = None,
) -> Log:
    """Train the adapters of `tuned` (from `hra.attach`) for `steps` steps with AdamW.

        batches = hra.data.lm_batches(ids, 8, 128, seed=0)   # input_ids: (8, 128)
        log = hra.fit(tuned, batches, steps=200, lr=1e-2)
        log.losses[-1], log.plot()

    batches: mappings that the model takes as keyword arguments; a sequence is gone
    through again and again, an iterator must last. schedule: multiplier of `lr`
    (default: 10 % warm-up, then cosine); a method's own `rate` multiplies it. To the
    loss a method's `penalty` is added, a number of its own in the log. clip:
    largest gradient norm. evaluate: called every `every` steps and at the end, its
    number goes into the log. callback: sees the log after each step; training stops
    when it returns False.

    checkpoint: a file; when it exists, training goes on from it, and it is rewritten
    every `every` steps. Give the same batches from their beginning: those already used
    are skipped. A file of another run (other settings, seed, hyperparameters, base
    weights or first batch) is refused. On one thread a resumed run ends where an
    unbroken one does, to the bit.

    Running statistics (BatchNorm) stand still, unless `attach(..., also=)` trains their
    module. On a float16 model the loss is scaled, and a step whose gradient overflows
    is left out and noted in the log. An interrupt (Ctrl-C, "stop") ends the training
    early and returns the log, which is also `tuned.log`.

    On a small model call torch.set_num_threads(1) first, or set OMP_NUM_THREADS=1:
    threads wait for each other, and where other programs keep the cores busy that costs
    more than it brings. A step of gpt2-tiny on two busy cores: 0.5 to 0.9 s on one
    thread, 6 to 7.5 s on two (torch 2.13).

    Raises ValueError for bad settings, for a checkpoint of another run, RuntimeError
    when the loss or the gradient is not finite or the batches run out. The modules'
    train/eval modes are given back as they were.
    """
    for name, count in (("steps", steps), ("every", every)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r} must be an integer of at least 1.")
    check_number("lr", lr, 0.0, float("inf"))
    check_number("clip", clip, 0.0, float("inf"))
    check_number("weight_decay", weight_decay, 0.0, float("inf"), closed_low=True)
    if not getattr(tuned, "parts", None):
        raise ValueError(
            "fit trains what hra.attach returns; this model has no adapters."
        )
    tuned.warn_of_strangers()
    tuned.begin(steps)
    shape = schedule or schedules.cosine()
    groups = tuned.param_groups(lr)
    peaks = [g["lr"] for g in groups]
    params = [p for g in groups for p in g["params"]]
    opt = torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay)
    half = any(p.dtype == torch.float16 for p in tuned.model.parameters())
    scaler = torch.amp.GradScaler(params[0].device.type, enabled=half)
    log = tuned.log = Log()
    source = (
        itertools.cycle(batches) if isinstance(batches, Sequence) else iter(batches)
    )
    saver, first = None, 0
    if checkpoint is not None:
        head = next(source, None)  # which batches they are shows in the first one
        source = itertools.chain([] if head is None else [head], source)
        rates = [shape(step, steps) for step in range(0, steps, max(1, steps // 8))]
        setting: dict[str, Any] = {"steps": steps, "lr": lr, "clip": clip}
        setting |= {"weight_decay": weight_decay, "betas": list(betas)}
        setting |= {"schedule": rates, "batches": _hash(head)}
        saver = Checkpoint(Path(checkpoint), setting, tuned, opt, scaler, log)
        first = saver.resume()
    for _ in range(first):
        next(source, None)

    model = tuned.model
    modes = [(m, m.training) for m in model.modules()]
    begun = time.perf_counter() - (log.steps[-1]["seconds"] if log.steps else 0.0)
    bar = _bar(first, steps, tuned.method.__name__, progress)
    cached = torch.is_autocast_cache_enabled()
    try:
        # under autocast, a weight that trains must be cast anew in every step
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        _train(tuned)
        for step in range(first, steps):
            batch = next(source, None)
            if batch is None:
                raise RuntimeError(
                    f"the batches ran out after {step} of {steps} steps; give a list "
                    "or an endless iterator."
                )
            for g, peak in zip(opt.param_groups, peaks, strict=True):
                g["lr"] = peak * shape(step, steps) * g["rate"]
            used = opt.param_groups[0]["lr"]
            loss = model(**batch).loss
            if not torch.isfinite(loss):
                raise RuntimeError(_not_finite("loss", loss, step, lr))
            extra = tuned.penalty()
            scaler.scale(loss + extra).backward()
            scaler.unscale_(opt)
            norm = torch.nn.utils.clip_grad_norm_(params, clip)
            if not half and not torch.isfinite(norm):
                raise RuntimeError(_not_finite("gradient's norm", norm, step, lr))
            scaler.step(opt)  # left out where a scaled gradient has overflowed
            scaler.update()
            log.events += tuned.after_step(step + 1, opt)
            opt.zero_grad()
            log.steps.append(
                {
                    "step": step + 1,
                    "loss": loss.item(),
                    "lr": used,
                    "grad_norm": norm.item(),
                    "seconds": time.perf_counter() - begun,
                }
            )
            if isinstance(extra, torch.Tensor):  # the loss is without it
                log.steps[-1]["penalty"] = extra.item()
            if not torch.isfinite(norm):
                log.events.append({"step": step + 1, "skipped": "gradient overflow"})
            due = (step + 1) % every == 0 or step + 1 == steps
            if evaluate is not None and due:
                log.evaluations.append({"step": step + 1, "value": float(evaluate())})
                _train(tuned)
            if saver is not None and due:
                saver.save()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if callback is not None and callback(log) is False:
                break
    except KeyboardInterrupt:
        log.interrupted = True
    finally:
        bar.close()
        torch.set_autocast_cache_enabled(cached)
        for m, mode in modes:
            m.training = mode
    return log


def _train(tuned: Any) -> None:
    """Training mode, except for frozen modules that keep statistics of their inputs."""
    tuned.model.train()
    for m in tuned.statistical():
        m.eval()


def _not_finite(what: str, value: Any, step: int, lr: float) -> str:
    number = f"the {what} is {value.item()} at step {step + 1}"
    if step == 0:
        return f"{number}, before anything was trained: look at the batch and the model"
    return f"{number}: lower lr={lr:g}, or look at the batch."


def _bar(first: int, steps: int, name: str, progress: bool) -> Any:
    """A bar in a notebook or on a terminal; elsewhere nothing is written."""
    from tqdm import tqdm

    shell = sys.modules.get("IPython")
    live = shell is not None and hasattr(shell.get_ipython(), "kernel")
    if live and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm  # type: ignore[no-redef]
    elif live or not sys.stderr.isatty():
        progress = False
    return tqdm(
        total=steps, initial=first, desc=name, disable=not progress, leave=False
    )


def _hash(batch: Mapping[str, Any] | None) -> str:
    """What the first batch was, in a few letters."""
    h = hashlib.sha256()
    for k, v in sorted((batch or {}).items()):
        raw = v.detach().cpu().contiguous() if isinstance(v, torch.Tensor) else None
        h.update(k.encode())
        h.update(repr(v).encode() if raw is None else raw.numpy().tobytes())
    return h.hexdigest()[:16]


MAGIC = b"hra checkpoint 2\n"


@dataclass
class Checkpoint:
    """The state of a run in one file: all that its continuation depends on.

    Its first lines are a name and a SHA-256 of the rest, a torch file of tensors and
    plain values (read with weights_only).
    """

    path: Path
    setting: dict[str, Any]
    tuned: Any
    opt: torch.optim.Optimizer
    scaler: Any
    log: Log

    def __post_init__(self) -> None:
        if not self.path.resolve().parent.is_dir():
            raise ValueError(
                f"checkpoint={str(self.path)!r}: the folder "
                f"{self.path.resolve().parent} does not exist; make it first."
            )
        self.setting |= {
            "method": self.tuned.method.__name__,
            "hyper": {k: repr(v) for k, v in self.tuned.hyper.items()},
            "sites": {s: list(a.shape) for s, a in self.tuned.parts.items()},
            "base": self.tuned.base(),
        }

    def save(self) -> None:
        """Write the file, or leave the last good one: RuntimeError for NaN or Inf."""
        state = self.tuned.state_dict()
        bad = io.finite(state)
        if bad:
            raise RuntimeError(
                f"{bad} holds NaN or Inf: {self.path} is left as it was."
            )
        buffer = BytesIO()
        torch.save(
            {
                "setting": self.setting,
                "adapters": state,
                "optimizer": self.opt.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": torch.get_rng_state(),
                "log": asdict(self.log),
            },
            buffer,
        )
        raw = buffer.getvalue()
        digest = hashlib.sha256(raw).hexdigest().encode()
        io.replace(self.path, MAGIC + digest + b"\n" + raw)

    def resume(self) -> int:
        """Take the file's state if it exists; how many steps of it are done."""
        if not self.path.exists():
            return 0
        raw = self.path.read_bytes()
        n = len(MAGIC)
        if not raw.startswith(MAGIC):
            raise ValueError(f"{self.path} is no checkpoint of this hra.")
        digest, body = raw[n : n + 65], raw[n + 65 :]
        if hashlib.sha256(body).hexdigest().encode() + b"\n" != digest:
            raise ValueError(
                f"checkpoint {self.path} is damaged: its checksum does not match. "
                "Delete it to begin anew."
            )
        c = torch.load(BytesIO(body), weights_only=True)
        differ = [k for k, v in self.setting.items() if c["setting"].get(k) != v]
        if differ:
            k = differ[0]
            raise ValueError(
                f"checkpoint {self.path} is of another run: {k} is "
                f"{c['setting'].get(k)} there, {self.setting[k]} here. Delete it, or "
                "give another name."
            )
        self.tuned.set_state(c["adapters"])
        self.opt.load_state_dict(c["optimizer"])
        self.scaler.load_state_dict(c["scaler"])
        torch.set_rng_state(c["random"])  # dropout goes on where it was
        for f in fields(Log):
            setattr(self.log, f.name, c["log"][f.name])
        return len(self.log.steps)
