"""A panel that trains while you watch. It needs a kernel; a static page shows what was
recorded in its place.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import traitlets

from hra.viz.static import HERE, StaticWidget, check

TARGETS = {"attention": r"attn\.", "attention and MLP": r"attn\.|mlp\."}
MASKS = ("rand", "weight", "struct")
BOUNDS = {"r": (1, 64), "density": (1e-3, 10**-0.5), "lr": (1e-4, 0.1)}


class Panel(StaticWidget):
    """Rank (for SHiRA: mask and density), targets and learning rate, Train and Cancel,
    and the curves of the run as it comes.

    make_model() gives a fresh model, make_batches() endless batches, evaluate(model)
    the number to watch (bits per character). `recorded` is what a page without a kernel
    shows: a `hra.Log`, or a widget such as `hra.viz.replay(...)`. One panel trains at a
    time: a new one, of a cell that is run again, stops the run before it.

    r, mask, density, lr and target (one of the names in `targets`, a mapping of them to
    regular expressions) are what the reader sets; `run` is the log of the last run,
    `error` what stopped it.
    """

    _js_path = HERE / "live.js"
    _class = "hra-live"
    _latest: ClassVar[Panel | None] = None  # that was started
    _stop: threading.Event

    method = traitlets.Unicode("LoRA").tag(sync=True)
    targets: Any = traitlets.Dict().tag(sync=True)
    bounds: Any = traitlets.Dict().tag(sync=True)
    masks: Any = traitlets.List().tag(sync=True)
    target = traitlets.Unicode().tag(sync=True)
    mask = traitlets.Unicode("rand").tag(sync=True)
    r = traitlets.Int(8).tag(sync=True)
    density = traitlets.Float(0.01).tag(sync=True)
    lr = traitlets.Float(3e-3).tag(sync=True)
    steps = traitlets.Int(60).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    running = traitlets.Bool(False).tag(sync=True)
    status = traitlets.Unicode("Press Train.").tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)  # the curves, as SVG

    def __init__(
        self,
        make_model: Callable[[], Any],
        make_batches: Callable[[], Any],
        evaluate: Callable[[Any], float],
        recorded: Any,
        method: str = "LoRA",
        targets: dict[str, str] | None = None,
        steps: int = 60,
        every: int = 20,
        **kwargs: Any,
    ) -> None:
        if Panel._latest is not None:
            Panel._latest._stop.set()
        self.make_model, self.make_batches = make_model, make_batches
        self.evaluate, self.recorded, self.every = evaluate, recorded, every
        self.run: Any = None
        self.error: Exception | None = None
        self._level = float("nan")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        kwargs.setdefault("title", f"Train {method} here")
        kwargs.setdefault("alt", "The curves of a run that was recorded")
        targets = dict(targets or TARGETS)
        kwargs.setdefault("target", next(iter(targets)))
        super().__init__(
            method=method,
            targets=targets,
            masks=list(MASKS),
            bounds={k: list(v) for k, v in BOUNDS.items()},
            steps=steps,
            **kwargs,
        )
        self.on_msg(self._asked)

    @traitlets.validate("r", "density", "lr")
    def _check_bounds(self, proposal: Any) -> Any:
        return check(proposal, *BOUNDS[proposal["trait"].name])

    @traitlets.validate("mask", "target")
    def _check_name(self, proposal: Any) -> Any:
        names = MASKS if proposal["trait"].name == "mask" else self.targets
        return check(proposal, names) if self.targets else proposal["value"]

    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        """A button was pressed."""
        if content.get("do") == "train":
            self.start()
        elif content.get("do") == "cancel":
            self.cancel()

    def start(self) -> None:
        """Train in a thread, so that Cancel is heard."""
        if self._thread is not None and self._thread.is_alive():
            return
        self.status, self.step, self.picture, self.running = "Starting…", 0, "", True
        self._stop.clear()
        before, Panel._latest = Panel._latest, self
        if before is not None and before is not self:
            before.cancel()
        self._thread = threading.Thread(target=self._run, args=(before,), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Stop after the step in progress."""
        self._stop.set()
        if self.running:
            self.status = "Cancelling…"

    def wait(self) -> None:
        """Until the run in progress is over."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, before: Panel | None) -> None:
        import hra

        self.error = None
        try:
            if before is not None and before is not self:
                before.wait()
            self.run = hra.Log()
            model = self.make_model()
            self._level = float(self.evaluate(model))
            self.run.evaluations.append({"step": 0, "value": self._level})
            self._draw(self.run)
            hyper = (
                {"mask": self.mask, "density": self.density}
                if self.method == "SHiRA"
                else {"r": self.r}
            )
            tuned = hra.attach(
                model,
                hra.METHODS[self.method],
                targets=self.targets[self.target],
                **hyper,
            )
            if self._stop.is_set():
                self.status = "Cancelled before the first step."
                return
            self.status = f"Before training: {_bits(self._level)}."
            self.run = hra.fit(
                tuned,
                self.make_batches(),
                self.steps,
                self.lr,
                progress=False,
                every=self.every,
                evaluate=lambda: self.evaluate(model),
                callback=self._show,
            )
            self._draw(self.run)
            word = "Cancelled" if self._stop.is_set() else "Done"
            done, last = len(self.run.steps), self.run.evaluations[-1]
            result = _bits(last["value"])
            if last["step"] < done:  # cancelled between two evaluations
                result = f"loss {self.run.losses[-1]:.2f} nats per token"
            self.status = (
                f"{word} after {done} steps: {tuned.num_trainable:,} trained numbers, "
                f"{result}; before, {_bits(self._level)}."
            )
        except Exception as e:  # shown to the reader: a thread has nobody else to tell
            self.error = e
            self.status = f"Stopped: {e}"
        finally:
            self.running = False

    def _show(self, log: Any) -> bool:
        self.run = log
        step = len(log.steps)
        if step == 1:  # the level that the curve starts from
            log.evaluations.insert(0, {"step": 0, "value": self._level})
        self.step = step
        if step == 1 or step % 5 == 0 or step == self.steps:
            loss = f"{log.losses[-1]:.2f} nats per token"
            if not self._stop.is_set():
                self.status = f"Step {step} of {self.steps}, loss {loss}."
            self._draw(log)
        return not self._stop.is_set()

    def _draw(self, log: Any) -> None:
        self.picture = log.plot().svg()

    # ---- what is seen without a kernel

    def summary(self) -> str:
        return (
            "This panel trains a model while you watch; that needs a kernel: run its "
            "cell. "
            + (
                "Here are runs recorded beforehand."
                if isinstance(self.recorded, StaticWidget)
                else "Here is a run recorded beforehand."
            )
        )

    def fallback_figure(self) -> Any:
        if isinstance(self.recorded, StaticWidget):
            return self.recorded.fallback_figure()
        return self.recorded.plot()

    def still(self, png: bytes) -> str:
        if isinstance(self.recorded, StaticWidget):
            return f"<p>{self.summary()}</p>{self.recorded.static_html(png)}"
        return f"<p>{self.summary()}</p>{super().still(png)}"


def _bits(value: float) -> str:
    if not math.isfinite(value):
        return "no finite number of bits per character"
    return f"{value:.2f} bits per character"
