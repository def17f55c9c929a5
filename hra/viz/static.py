"""One widget object, four audiences.

A subclass gives `_js_path` (plain JavaScript, no import, one line `export default {
render }`; `base.js` is put in front of it, so that `const { make, frame } = base;`
works) and `fallback_figure()`. The mimebundle then carries
  text/html    JupyterLab, with a kernel or without; static pages: the same script
  image/png    PDF builds, viewers that run no script
  text/plain   terminals; deterministic

There is one HTML for both: the script takes the live model that a kernel has opened in
the page under the name in `data-live` (the module that anywidget loads puts it there,
base.js `enlist`), now or later, and a static one until then. So a notebook that was
saved, and is opened without a kernel, still moves. A notebook that its reader has not
trusted runs no script: there the image is seen.

  application/vnd.jupyter.widget-view+json   VS Code and Colab only, which open no model
                                             before they show its view
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
import re
import sys
import uuid
from pathlib import Path
from typing import Any

import anywidget
import traitlets

HERE = Path(__file__).parent
BASE = HERE / "base.js"  # what the widgets share
PAGE = HERE / "page.js"  # what a page without a kernel needs
LIMIT = 50_000  # bytes of a widget's state


def prediction(
    question: str,
    answer: Any,
    *,
    low: int | float | None = None,
    high: int | float | None = None,
    step: int | float = 1,
    log: bool = False,
    unit: str = "",
    choices: list[str] | None = None,
    why: str = "",
) -> dict[str, Any]:
    """What `predict=` of a widget takes: the reader commits to a guess, then sees.

    Either a number between `low` and `high` in steps of `step` (`log`: the slider is
    logarithmic), or one of `choices`. `answer` comes from the cell; `why` is said after
    the gap. Nothing is stored.
    """
    asked: dict[str, Any] = {"question": question, "unit": unit, "why": why}
    if choices is not None:
        if answer not in choices:
            raise ValueError(f"answer={answer!r} is not among the choices {choices}.")
        return asked | {"choices": list(choices), "answer": answer}
    if low is None or high is None or not low <= answer <= high:
        raise ValueError(
            f"answer={answer!r} needs low= and high= around it; given {low} and {high}."
        )
    if not (step > 0 and low < high and math.isfinite(high - low)):
        raise ValueError(f"low={low}, high={high}, step={step} give no scale.")
    if log and low <= 0:
        raise ValueError(f"low={low}: a logarithmic scale starts above 0.")
    number = float(answer)
    return asked | {
        "answer": int(number) if number.is_integer() else number,
        "low": low,
        "high": high,
        "step": step,
        "log": log,
    }


def check(proposal: Any, low: Any, high: Any = None) -> Any:
    """What a validator of traitlets returns: the value, if it is from `low` to `high`
    (or among `low`, where there is no `high`).

    Raises ValueError that says what exists.
    """
    name, value = proposal["trait"].name, proposal["value"]
    if high is None and value not in low:
        raise ValueError(f"{name}={value!r} is none of these: {', '.join(low)}.")
    if high is not None and not low <= value <= high:
        raise ValueError(f"{name}={value:g} is out of range: {low:g} to {high:g}.")
    return value


def plain() -> bool:
    """Is this Colab or VS Code, which show a widget by its own view only?"""
    shell = sys.modules.get("IPython")
    kernel = shell.get_ipython() if shell else None
    return (
        "google.colab" in sys.modules
        or "VSCODE_PID" in os.environ
        or "__vsc_ipynb_file__" in getattr(kernel, "user_ns", {})
    )


class StaticWidget(anywidget.AnyWidget):
    """An anywidget that also works on a page with no kernel.

    title, caption   above and below the widget ("Drag r: watch …, stop at …")
    marks            {what is set: {name: value}}, named places of a slider
    presets          {name: {what is set: value, …}}, one button each
    predict          `prediction(...)`: the reader guesses before the widget is shown
    """

    alt = traitlets.Unicode("").tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)
    caption = traitlets.Unicode("").tag(sync=True)
    marks: Any = traitlets.Dict().tag(sync=True)
    presets: Any = traitlets.Dict().tag(sync=True)
    predict: Any = traitlets.Dict().tag(sync=True)
    _live = traitlets.Unicode().tag(sync=True)  # its name in the pages that show it
    _js_path: Path
    _class = "hra-widget"  # of its HTML

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "_js_path" in cls.__dict__:
            cls._esm = (
                f"{_named(cls.script(), cls._js_path)}\nexport default "
                "{ ...widget, initialize: ({ model }) => base.enlist(model) };"
            )
        super().__init_subclass__(**kwargs)

    @traitlets.default("_live")
    def _new_name(self) -> str:
        return uuid.uuid4().hex

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        known = set(self.public_state())
        marked = [{k: v} for k, named in self.marks.items() for v in named.values()]
        for what in (*marked, *self.presets.values()):
            for name, value in what.items():
                if name not in known:
                    raise ValueError(
                        f"{type(self).__name__} has no {name!r} to set; there are "
                        f"{', '.join(sorted(known))}."
                    )
                self.traits()[name]._validate(self, value)  # refuses what setting does

    @classmethod
    def script(cls) -> str:
        """`base.js`, then the widget's own."""
        parts = (BASE, cls._js_path)
        return "\n".join(p.read_text(encoding="utf-8") for p in parts)

    def fallback_figure(self) -> Any:
        """The widget's present state as a matplotlib figure."""
        raise NotImplementedError(f"{type(self).__name__} gives no fallback_figure.")

    def summary(self) -> str:
        """One line of text, the same in every run."""
        return type(self).__name__

    def public_state(self) -> dict[str, Any]:
        base = set(anywidget.AnyWidget.class_trait_names())
        return {
            n: getattr(self, n)
            for n in sorted(set(type(self).class_trait_names(sync=True)) - base)
            if not n.startswith("_")
        }

    def refuse_over_limit(self, what: str = "", instead: str = "") -> None:
        """ValueError for a state that is too large for a page, in words: of what, and
        what to do instead.
        """
        size = len(json.dumps(self.public_state()))
        if size > LIMIT:
            raise ValueError(
                f"{what}{size:,} bytes for the page, over {LIMIT:,}{instead}."
            )

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.fallback_figure().savefig(
            buffer,
            format="png",
            dpi=80,
            bbox_inches="tight",
            metadata={"Software": None},
        )
        return buffer.getvalue()

    def still(self, png: bytes) -> str:
        """HTML for where no script runs, and until one does."""
        image = base64.b64encode(png).decode()
        alt = html.escape(self.alt, quote=True)
        return f'<img alt="{alt}" src="data:image/png;base64,{image}"/>'

    def static_html(self, png: bytes | None = None, live: bool = False) -> str:
        """The widget on a page; with `live` it takes this object for its model, where a
        kernel has opened it in the page.
        """
        # not sorted: the order of a menu is the order in which Python gave it
        state = json.dumps(self.public_state(), separators=(",", ":"))
        state = state.replace("<", "\\u003c")
        js = _named(self.script(), self._js_path)
        key = hashlib.sha256((state + js).encode()).hexdigest()[:12]
        page = PAGE.read_text(encoding="utf-8")
        name = f' data-live="{self._live}"' if live else ""
        return (
            f'<div class="{self._class}" data-hra="{key}"{name}>'
            f"{self.still(self.png() if png is None else png)}"
            f'<script type="application/json">{state}</script>'
            f'<script type="module">{js}\nconst KEY = "{key}";\n{page}</script></div>'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        data = dict(data) if plain() else {}
        if "google.colab" not in sys.modules:  # Colab keeps its plain widget view
            png = self.png()
            data |= {
                "text/html": self.static_html(png, live=True),
                "image/png": base64.b64encode(png).decode(),
                "text/plain": self.summary(),
            }
        return data, dict(meta)


def _named(script: str, path: Path) -> str:
    """The script with its export under the name `widget`."""
    js, found = re.subn(r"^export default\b", "const widget =", script, flags=re.M)
    if found != 1 or "</script" in js or re.search(r"^import\b", js, flags=re.M):
        raise ValueError(
            f"{path.name} needs one line `export default ...`, no import and no "
            "closing script tag."
        )
    return js
