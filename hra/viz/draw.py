"""Draw a digit, slide the adapter: the ViT itself runs in the page."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
import traitlets
from torch import Tensor

import hra
from hra import zoo
from hra.data import digits
from hra.viz import packed
from hra.viz.static import BASE, HERE, StaticWidget, check
from hra.viz.style import family

SHIFTS = ("rotated", "inverted")  # those that the page knows how to make
EACH = 10  # stored test digits of a class
LOW, HIGH = -1.0, 2.0  # strengths
BOUNDS = {"alpha": (LOW, HIGH), "keep": (0, 8), "sample": (0, 9)}


class DrawDigit(StaticWidget):
    """The reader draws a digit, and the model answers; adapters of any strength.

    adapters: {"rotated": {"LoRA": file, "SHiRA": file}, "inverted": {...}}, files that
    `tuned.save` wrote for `model`, by the shift they are for and by what the reader
    calls them. model: a ViT of 28 × 28 pixels, `hra.zoo.vit("tiny")` if none is given.

    task, kind: which of the adapters; alpha: its strength, -1 to 2 in tenths; keep: of
    its ranks the first, of its entries the largest, in eighths; shown: "plain" or a
    shift; degrees: what "rotated" is.

    Weights are int8 by rows. A site that is built takes them from scripts beside its
    pages (`hra.viz.packed`), a kernel sends them when the page asks. Raises ValueError
    for another shift, and what `hra.load` raises.
    """

    _js_path = HERE / "draw.js"
    files: Any = traitlets.Dict().tag(sync=True)
    kinds: Any = traitlets.Dict().tag(sync=True)
    megabytes = traitlets.Float(0.0).tag(sync=True)
    degrees = traitlets.Float(90.0).tag(sync=True)
    task = traitlets.Unicode().tag(sync=True)
    kind = traitlets.Unicode().tag(sync=True)
    shown = traitlets.Unicode("plain").tag(sync=True)
    alpha = traitlets.Float(1.0).tag(sync=True)
    keep = traitlets.Int(8).tag(sync=True)
    sample = traitlets.Int(7).tag(sync=True)

    def __init__(
        self,
        adapters: Mapping[str, Mapping[str, str | os.PathLike[str]]],
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        unknown = [task for task in adapters if task not in SHIFTS]
        if unknown or not adapters or not all(adapters.values()):
            raise ValueError(
                f"adapters={dict(adapters)!r}: the page knows the shifts "
                f"{', '.join(SHIFTS)}; each needs a file at least."
            )
        self._vit = zoo.vit("tiny") if model is None else model
        data = {"model": ("vit", packed.vit(self._vit))}
        x, y = digits.digits("test")
        chosen = torch.cat([(y == c).nonzero()[:EACH, 0] for c in range(10)])
        self._x, self._y = (255 * x[chosen]).round() / 255, y[chosen]
        data["digits"] = ("digits", packed.images(self._x, self._y))
        first = sum(len(d) for _, d in data.values())
        kinds: dict[str, dict[str, Any]] = {task: {} for task in adapters}
        for task, named in adapters.items():
            for kind, path in named.items():
                tuned = hra.load(self._vit, path)
                if tuned.also:
                    raise ValueError(
                        f"{path} holds {next(iter(tuned.also))} in full: the page adds "
                        "changes of weights only."
                    )
                data[f"{task} {kind}"] = (
                    re.sub(r"\W+", "-", f"{task} {kind}".lower()),
                    packed.change(tuned.adapters),
                )
                tuned.detach()
                kinds[task][kind] = packed.about(data[f"{task} {kind}"][1]) | {
                    "family": family(tuned.method.__name__)
                }
        self._data = {packed.name_of(stem, d): d for stem, d in data.values()}
        task = kwargs.setdefault("task", next(iter(adapters)))
        kwargs.setdefault("kind", next(iter(adapters.get(task, {"": ""}))))
        kwargs.setdefault("shown", task)
        kwargs.setdefault(
            "presets",
            {
                f"{task}, pretrained": {"shown": task, "alpha": 0.0},
                f"{task}, adapted": {"shown": task, "alpha": 1.0},
                "plain, adapted": {"shown": "plain", "alpha": 1.0},
            },
        )
        kwargs.setdefault(
            "caption",
            "Draw with mouse, pen or finger, or take a digit that nobody trained on. "
            "At α = 0 the pretrained model answers, at α = 1 the adapted one. Watch "
            "the plain digits too: they are the price. One digit is one point of "
            "100; differences under ten say little.",
        )
        kwargs.setdefault("title", "Draw a digit, slide the adapter")
        kwargs.setdefault(
            "alt",
            "A digit, the model's ten answers, and how many of 100 stored digits it "
            "gets right at each strength of an adapter",
        )
        super().__init__(
            files={k: packed.name_of(stem, d) for k, (stem, d) in data.items()},
            kinds=kinds,
            megabytes=round(4 / 3e6 * first, 1),
            **kwargs,
        )
        if self.kind not in self.kinds[self.task]:
            raise ValueError(
                f"kind={self.kind!r} is no adapter for {self.task}; there are "
                f"{', '.join(self.kinds[self.task])}."
            )
        self.on_msg(self._asked)

    @traitlets.validate("alpha", "keep", "sample")
    def _check_bounds(self, proposal: Any) -> Any:
        return check(proposal, *BOUNDS[proposal["trait"].name])

    @traitlets.validate("task", "kind", "shown")
    def _check_name(self, proposal: Any) -> str:
        known = {
            "task": list(self.kinds),
            "kind": [kind for named in self.kinds.values() for kind in named],
            "shown": ["plain", *self.kinds],
        }[proposal["trait"].name]
        return check(proposal, known) if self.kinds else proposal["value"]

    @classmethod
    def script(cls) -> str:
        parts = (BASE, HERE / "vit.js", HERE / "sketch.js", cls._js_path)
        return "\n".join(p.read_text(encoding="utf-8") for p in parts)

    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        """A kernel's page asks for a file."""
        if (name := content.get("file")) in self._data:
            self.send({"file": name}, [self._data[name]])

    def static_html(self, png: bytes | None = None, live: bool = False) -> str:
        packed.write_scripts(self._data)
        return super().static_html(png, live)

    def still(self, png: bytes) -> str:
        note = "The model itself runs in the book's page, or where a kernel is."
        return f"{super().still(png)}<p>{note}</p>"

    # ---- the same in Python

    def shift(self, kind: str, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) images, as the page shows them to the model."""
        if kind == "rotated":
            return digits.rotate(images, torch.full((len(images),), self.degrees))
        return 1 - images if kind == "inverted" else images

    @torch.no_grad()
    def logits(
        self, images: Tensor, alpha: float | None = None, kind: str | None = None
    ) -> Tensor:
        """(N, 10), of (N, 1, 28, 28) images from 0 to 1, with the weights that the page
        has at this strength and `keep`.
        """
        change = self._data[self.files[f"{self.task} {kind or self.kind}"]]
        strength = self.alpha if alpha is None else alpha
        W = packed.adapted(
            self._data[self.files["model"]], [(change, strength, self.keep)]
        )
        W = {n: W[n].view_as(p) for n, p in self._vit.named_parameters()}
        pixels = digits.pixel_values(images)
        call = torch.func.functional_call
        return call(self._vit, W, kwargs={"pixel_values": pixels}).logits

    def right(self, alpha: float | None = None, kind: str | None = None) -> list[int]:
        """How many of the 100 stored digits the model gets right: the plain ones, and
        those with the adapter's shift.
        """
        sets = (self._x, self.shift(self.task, self._x))
        return [
            int((self.logits(x, alpha, kind).argmax(1) == self._y).sum()) for x in sets
        ]

    def summary(self) -> str:
        (plain, shifted), (before, there) = self.right(), self.right(0.0)
        return (
            f"{self.task}, {self.kind}, α = {self.alpha:g}: {shifted} of "
            f"{len(self._y)} {self.task} digits right, {plain} plain ones; "
            f"without the adapter {there} and {before}"
        )

    def fallback_figure(self) -> Any:
        from hra.viz.style import FAMILIES, INK, figure

        fig, (left, middle, right) = figure(
            9.0, 2.8, 3, caption=self.caption, alt=self.summary()
        )
        one = self.shift(self.shown, self._x[self.sample * EACH][None])
        left.imshow(one[0, 0], cmap="gray")
        left.grid(False)
        left.set(xticks=[], yticks=[], title="what the model sees")
        named = self.kinds[self.task]
        colours = {k: FAMILIES[about["family"]] for k, about in named.items()}
        ten = torch.arange(10)
        for up, name, strength, colour in (
            (-0.2, "pretrained", 0.0, INK),
            (0.2, f"with {self.kind}, α = {self.alpha:g}", None, colours[self.kind]),
        ):
            p = self.logits(one, strength)[0].softmax(0)
            middle.barh(ten + up, p, height=0.4, label=name, color=colour)
        middle.set(xlabel="probability", yticks=range(10), xlim=(0, 1))
        middle.invert_yaxis()
        middle.legend(frameon=False, fontsize=8)
        strengths = [LOW, 0.0, 0.5, 1.0, HIGH]
        for kind in named:
            counts = [self.right(a, kind) for a in strengths]
            for k, digit in enumerate(("plain", self.task)):
                right.plot(
                    strengths,
                    [c[k] for c in counts],
                    ("o--", "o-")[k],
                    color=colours[kind],
                    label=f"{kind}, {digit}",
                )
        right.set(xlabel="strength α", ylabel="right of 100", ylim=(0, 102))
        right.legend(frameon=False, fontsize=7)
        return fig
