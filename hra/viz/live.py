"""A panel that trains while you watch. It needs a kernel; a static page shows what was
recorded in its place.
"""

from __future__ import annotations

import html
import io
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from hra.viz.static import StaticWidget


class Panel:
    """Rank (for SHiRA: mask and density), targets and learning rate, Train and Cancel,
    and the curves of the run as it comes.

    make_model() gives a fresh model, make_batches() endless batches, evaluate(model)
    the number to watch (bits per character). `recorded` is what a page without a kernel
    shows: a `hra.Log`, or a widget such as `hra.viz.replay(...)`. One panel trains at a
    time: a new one, of a cell that is run again, stops the run before it.
    """

    _latest: ClassVar[Panel | None] = None  # that was started
    _stop: threading.Event

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
    ) -> None:
        import ipywidgets as w

        if Panel._latest is not None:
            Panel._latest._stop.set()
        self.make_model, self.make_batches, self.evaluate = (
            make_model,
            make_batches,
            evaluate,
        )
        self.recorded, self.method, self.steps, self.every = (
            recorded,
            method,
            steps,
            every,
        )
        self.log: Any = None
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        options = list(
            (
                targets
                or {"attention": r"attn\.", "attention and MLP": r"attn\.|mlp\."}
            ).items()
        )
        self.rank = w.IntSlider(8, 1, 64, description="rank r")
        self.mask = w.Dropdown(options=["rand", "weight", "struct"], description="mask")
        self.density = w.FloatLogSlider(
            0.01, base=10, min=-3, max=-0.5, step=0.1, description="density"
        )
        self.targets = w.Dropdown(options=options, description="targets")
        self.lr = w.FloatLogSlider(
            3e-3,
            base=10,
            min=-4,
            max=-1,
            step=0.1,
            description="learning rate",
            style={"description_width": "initial"},
        )
        self.train = w.Button(description="Train", button_style="primary", icon="play")
        self.cancel = w.Button(description="Cancel", icon="stop", disabled=True)
        self.progress = w.IntProgress(0, 0, steps)
        self.status = w.HTML("Press Train.")
        self.picture = w.Image(format="png", layout=w.Layout(max_width="100%"))
        self.train.on_click(lambda _: self.start())
        self.cancel.on_click(lambda _: self._stop.set())
        choices = [self.mask, self.density] if method == "SHiRA" else [self.rank]
        self.box = w.VBox(
            [
                w.HBox([*choices, self.targets]),
                self.lr,
                w.HBox([self.train, self.cancel, self.progress]),
                self.status,
                self.picture,
            ]
        )

    def start(self) -> None:
        """Train in a thread, so that Cancel is heard."""
        if self._thread is not None and self._thread.is_alive():
            return
        self.status.value = "Starting…"
        self._stop.clear()
        self.train.disabled, self.cancel.disabled = True, False
        before, Panel._latest = Panel._latest, self
        if before is not None and before is not self:
            before._stop.set()
        self._thread = threading.Thread(target=self._run, args=(before,), daemon=True)
        self._thread.start()

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
            model = self.make_model()
            self._level = float(self.evaluate(model))
            hyper = (
                {"mask": self.mask.value, "density": self.density.value}
                if self.method == "SHiRA"
                else {"r": self.rank.value}
            )
            tuned = hra.attach(
                model, hra.METHODS[self.method], targets=self.targets.value, **hyper
            )
            self.log = hra.fit(
                tuned,
                self.make_batches(),
                self.steps,
                self.lr.value,
                progress=False,
                every=self.every,
                evaluate=lambda: self.evaluate(model),
                callback=self._show,
            )
            word = "Cancelled" if self._stop.is_set() else "Done"
            done, last = len(self.log.steps), self.log.evaluations[-1]
            result = f"{last['value']:.2f} bits per character"
            if last["step"] < done:  # cancelled between two evaluations
                result = f"loss {self.log.losses[-1]:.2f} nats per token"
            self.status.value = (
                f"{word} after {done} steps: {tuned.num_trainable:,} trained numbers, "
                f"{result}; before, {self._level:.2f} bits per character."
            )
        except Exception as e:  # shown to the reader: a thread has nobody else to tell
            self.error = e
            self.status.value = f"Stopped: {e}"
        finally:
            self.train.disabled, self.cancel.disabled = False, True

    def _show(self, log: Any) -> bool:
        self.log = log
        step = len(log.steps)
        if step == 1:  # the level that the curve starts from
            log.evaluations.insert(0, {"step": 0, "value": self._level})
        self.progress.value = step
        if step == 1 or step % 5 == 0 or step == self.steps:
            loss = f"{log.losses[-1]:.2f} nats per token"
            self.status.value = f"Step {step} of {self.steps}, loss {loss}."
            self.picture.value = _png(log)
        return not self._stop.is_set()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        note = (
            "This panel trains a model while you watch; that needs a kernel (run the "
            "notebook). "
        )
        if isinstance(self.recorded, StaticWidget):
            note += "Here are runs recorded beforehand."
            page = f"<p>{note}</p>{self.recorded.static_html()}"
        else:
            note += "Here is the run recorded when the page was built."
            page = (
                f'<figure class="hra-live">{self.recorded.plot().svg()}'
                f"<figcaption>{html.escape(note)}</figcaption></figure>"
            )
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": view,
            "text/html": page,
            "text/plain": note,
        }


def _png(log: Any) -> bytes:
    buffer = io.BytesIO()
    log.plot().savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()
