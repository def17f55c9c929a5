"""One widget object, four audiences.

A subclass gives `_js_path` (plain JavaScript, no import, one line `export default {
render }`) and `fallback_figure()`. The mimebundle then carries
  application/vnd.jupyter.widget-view+json   live kernels (JupyterLab, VS Code, Colab)
  text/html                                  static pages: the same script, no kernel
  image/png                                  PDF builds, viewers that run no script
  text/plain                                 terminals; deterministic
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import anywidget
import traitlets

# The few lines of anywidget's model interface which a page without a kernel needs.
_SHIM = """
const hosts = '[data-hra="%(key)s"]:not([data-ready])';
for (const host of document.querySelectorAll(hosts)) {
  host.dataset.ready = "1";
  const data = host.querySelector("script[type='application/json']");
  const state = JSON.parse(data.textContent);
  const on = {};
  const model = {
    get: (k) => state[k],
    set(k, v) {
      if (state[k] === v) return;
      state[k] = v;
      (on["change:" + k] || []).forEach((f) => f());
    },
    save_changes() {}, send() {},
    on(e, f) { (on[e] = on[e] || []).push(f); },
    off(e, f) { on[e] = (on[e] || []).filter((g) => g !== f); },
  };
  const el = document.createElement("div");
  try {
    await widget.render({ model, el });
    host.replaceChildren(el);
  } catch (err) { console.error("hra widget: keeping the fallback image", err); }
}
"""


class StaticWidget(anywidget.AnyWidget):
    """An anywidget that also works on a page with no kernel."""

    alt = traitlets.Unicode("").tag(sync=True)
    _js_path: Path

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

    def static_html(self, png: bytes | None = None) -> str:
        state = json.dumps(
            self.public_state(), sort_keys=True, separators=(",", ":")
        ).replace("<", "\\u003c")
        js, found = re.subn(
            r"^export default\b",
            "const widget =",
            self._js_path.read_text(encoding="utf-8"),
            flags=re.M,
        )
        if found != 1 or "</script" in js or re.search(r"^import\b", js, flags=re.M):
            raise ValueError(
                f"{self._js_path.name} needs one line `export default ...`, no import "
                "and no closing script tag."
            )
        key = hashlib.sha256((state + js).encode()).hexdigest()[:12]
        image = base64.b64encode(self.png() if png is None else png).decode()
        return (
            f'<div class="hra-widget" data-hra="{key}">'
            f'<img alt="{html.escape(self.alt, quote=True)}" '
            f'src="data:image/png;base64,{image}"/>'
            f'<script type="application/json">{state}</script>'
            f'<script type="module">{js}\n{_SHIM % {"key": key}}</script></div>'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        data = dict(data)
        if "google.colab" not in sys.modules:  # Colab keeps its plain widget view
            png = self.png()
            data |= {
                "text/html": self.static_html(png),
                "image/png": base64.b64encode(png).decode(),
                "text/plain": self.summary(),
            }
        return data, dict(meta)
