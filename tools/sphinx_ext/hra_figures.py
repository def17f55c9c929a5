"""Numbered figures: the house diagrams, and what a cell shows.

A chapter includes a diagram of `book/figures/` (written by tools/figures.py) so,
which other readers of MyST show as well:

    ```{figure} ../book/figures/block-lora.svg
    :name: fig:block
    :alt: One transformer block; the four weight matrices are lit.

    The caption, one or more sentences with $maths$ and {ref}`links`.
    ```

and refers to it by {numref}`fig:block`. The SVG stands in the page itself, so that its
colours follow the page's theme; an <img> would not take them.

A cell's output of the form <figure id="..."> ... <figcaption>caption</figcaption>
</figure>, as `hra.viz` writes it, becomes a figure with a number and, where it has an
id, a target for {numref}. Such a caption holds text, the tags of INLINE and $maths$.
"""

from __future__ import annotations

import html
import os
import re
from html.parser import HTMLParser
from pathlib import Path

from docutils import nodes
from sphinx.directives.patches import Figure
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

INLINE = {
    "em": nodes.emphasis,
    "i": nodes.emphasis,
    "strong": nodes.strong,
    "b": nodes.strong,
    "code": nodes.literal,
    "sub": nodes.subscript,
    "sup": nodes.superscript,
}
FIGURE = re.compile(
    r"\s*<figure\b(?P<attributes>[^>]*)>(?P<before>.*)"
    r"<figcaption\b[^>]*>(?P<caption>.*?)</figcaption>(?P<after>.*)</figure>\s*",
    re.S,
)


class Diagram(SphinxDirective, Figure):
    """```{figure} name.svg```: the SVG stands in the page itself. Any other picture is
    Sphinx's own.
    """

    def run(self):
        if not self.arguments[0].endswith(".svg"):
            return super().run()
        name = os.path.basename(self.arguments[0])
        path = Path(self.env.srcdir, self.env.relfn2path(self.arguments[0])[0])
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in path.parent.glob("*.svg")))
            raise self.error(f"There is no {path}; beside it stand {there or 'none'}.")
        if not self.options.get("alt") or not self.content:
            raise self.error(f"The diagram {name!r} needs :alt: and a caption.")
        self.env.note_dependency(str(path))
        alt = html.escape(self.options["alt"], quote=True)
        svg = path.read_text(encoding="utf-8")
        svg = svg.replace("<svg ", f'<svg aria-label="{alt}" ', 1)
        figure = nodes.figure("", nodes.raw("", svg, format="html"))
        figure["classes"].append("hra-diagram")
        self.set_source_info(figure)
        parsed = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, parsed)
        first, *rest = parsed.children
        if not isinstance(first, nodes.paragraph):
            raise self.error(f"The caption of {name!r} begins with a paragraph.")
        figure += nodes.caption("", "", *first.children)
        if rest:
            figure += nodes.legend("", *rest)
        self.add_name(figure)
        if not figure["names"]:
            self.state.document.set_id(figure)
        return [figure]


class Caption(HTMLParser):
    """HTML of a caption as docutils nodes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[nodes.Element] = [nodes.caption()]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag in INLINE:
            self.open.append(INLINE[tag]())

    def handle_endtag(self, tag):
        if tag in INLINE and len(self.open) > 1:
            node = self.open.pop()
            self.open[-1] += node

    def handle_data(self, data):
        for i, part in enumerate(re.split(r"(?<![\\$])\$([^$]+)\$", data)):
            if part:
                self.open[-1] += nodes.math("", part) if i % 2 else nodes.Text(part)


def as_figure(document: nodes.document, raw: nodes.raw) -> nodes.figure | None:
    found = FIGURE.fullmatch(raw.astext())
    if not found:
        return None
    given = dict(re.findall(r'\b(id|class)="([^"]*)"', found["attributes"]))
    inside = raw.copy()
    inside.children = [nodes.Text(found["before"] + found["after"])]
    inside.rawsource = found["before"] + found["after"]
    figure = nodes.figure("", inside, Caption(found["caption"]).open[0])
    figure["classes"] += given.get("class", "").split()
    if "id" in given:
        figure["names"].append(nodes.fully_normalize_name(given["id"]))
        document.note_explicit_target(figure, figure)
    else:
        document.set_id(figure)
    return figure


class OutputFigures(SphinxTransform):
    """The outputs of cells that are figures, before the labels are collected."""

    default_priority = 800  # the domains collect at 850

    def apply(self, **kwargs):
        for raw in list(self.document.findall(nodes.raw)):
            figure = None
            if "text_html" in raw["classes"]:
                figure = as_figure(self.document, raw)
            if figure is not None:
                raw.replace_self(figure)


def setup(app):
    app.add_directive("figure", Diagram, override=True)
    app.add_transform(OutputFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
