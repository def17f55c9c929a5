"""The house style: a family of methods always in one colour, each method with its own
marker and dash; readable in grey, by the colour-blind, on light and dark pages.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import hra

# nearly black in a PNG; in an SVG it becomes the text colour of the page
INK = "#0d0d0f"
# at least 3:1 on white and on the dark page; base.js has the same
FAMILIES = {
    "low rank": "#2a78d6",
    "sparse": "#d1661f",
    "square": "#1b9e77",
    "subnet": "#8e5bd0",
    "before LoRA": "#808080",
    "seeded": "#d6457f",
    "full": INK,
}
# a page may say what these are on its ground
VARIABLES = {
    "low rank": "--hra-lowrank",
    "sparse": "--hra-sparse",
    "square": "--hra-square",
    "subnet": "--hra-subnet",
    "before LoRA": "--hra-before",
}
PARTS = {  # of a bill
    "weights": "#00a0b4",
    "trained": "#a3830b",
    "gradients": "#b0524a",
    "moments": "#6f9a22",
    "activations": "#6272a8",
}
BASELINES = ("before", "chance", "random")  # what is no method, but is compared with
MARKERS, DASHES = "osD^vX<P>*ph", ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":")


class Picture(Figure):
    """A figure that a notebook shows: on a page as SVG whose text and axes have the
    page's own colour, in a PDF as PNG; with a caption, and words for those who do not
    see it.
    """

    alt = caption = ""

    def png(self) -> bytes:
        """On white; the same bytes in every run."""
        buffer = io.BytesIO()
        self.savefig(
            buffer,
            format="png",
            dpi=110,
            facecolor="white",
            metadata={"Software": None},
        )
        return buffer.getvalue()

    def svg(self) -> str:
        """On no ground of its own; the same text in every run."""
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "hra", "svg.fonttype": "none"}):
            self.savefig(
                buffer, format="svg", transparent=True, metadata={"Date": None}
            )
        return _for_the_page(buffer.getvalue(), self.words())

    def words(self) -> str:
        """`alt`, or what the axes say of themselves."""
        axes = [
            f"{ax.get_title()} {ax.get_ylabel()} against {ax.get_xlabel()}".strip()
            for ax in self.axes
            if ax.get_xlabel()
        ]
        return self.alt or "Plot: " + "; ".join(axes)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>"
        page = (
            f'<figure class="hra-figure" style="margin:1rem 0">{self.svg()}'
            f"{caption if self.caption else ''}</figure>"
        )
        return {
            "text/html": page,
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": self.words(),
        }


def _for_the_page(svg: str, alt: str) -> str:
    """matplotlib's SVG, to be put into a page: no prolog or metadata, two decimals, the
    page's text colour for ink and for what has none, ids that no other figure has.
    """
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"<[^>]+>", lambda tag: _tag(tag[0]), svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")
    ids = list(dict.fromkeys(re.findall(r' id="([^"]*)"', svg)))
    for k, name in enumerate(ids):  # made of last bits: numbered instead
        svg = re.sub(rf'(id="|#){re.escape(name)}\b', rf"\g<1>hra-{k}", svg)
    digest = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(id="|#)hra-(\d+)\b', rf"\g<1>hra-{digest}-\g<2>", svg)
    found = re.match(r'<svg [^>]*width="([\d.]+)pt"[^>]*viewBox="([^"]*)"[^>]*>', svg)
    if found is None:
        raise RuntimeError("matplotlib wrote an SVG of an unknown form.")
    width = round(float(found[1]) * 4 / 3)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{found[2]}" role="img" '
        f'aria-label="{html.escape(alt, quote=True)}" fill="currentColor" '
        f"style=\"width:100%;max-width:{width}px;height:auto;font-family:'DejaVu "
        f"Sans',Verdana,sans-serif\">{svg[found.end() :]}"
    ).rstrip()


def _tag(tag: str) -> str:
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = re.sub(r" transform=\"rotate\(-?0 [^\"]*\"", "", tag)
    tag = re.sub(r"font-family: 'DejaVu Sans'(, [^;\"]*)?(; )?", "", tag)
    tag = re.sub(rf"{INK}|#000000", "currentColor", tag).replace("xlink:href", "href")
    for kin, variable in VARIABLES.items():
        tag = tag.replace(FAMILIES[kin], f"var({variable},{FAMILIES[kin]})")
    return re.sub(
        r"(?<![\w.#])-?\d+\.\d{3,}", lambda m: f"{round(float(m[0]), 2):g}", tag
    )


def figure(
    width: int | float = 6.0,
    height: int | float = 3.2,
    columns: int = 1,
    *,
    caption: str,
    alt: str,
    rows: int = 1,
    **subplots: Any,
) -> tuple[Picture, Any]:
    """(figure, axes) of so many inches; axes as `plt.subplots` gives them.

    `caption` stands below and says what to see; `alt` says the same to those who do not
    see it, with its numbers. Both may be set again later: `fig.caption = ...`.
    """
    for name, given in (("caption", caption), ("alt", alt)):
        if not given.strip():
            raise ValueError(f"{name}={given!r}: say in a sentence what is to be seen.")
    fig = Picture(figsize=(width, height), layout="constrained")
    fig.caption, fig.alt = caption, alt
    with matplotlib.rc_context({"font.size": 10.5}):
        axes = fig.subplots(rows, columns, **subplots)
    for ax in fig.axes:
        dress(ax)
    return fig, axes


def dress(ax: Axes) -> None:
    """Thin spines and a light grid, in the page's ink."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6, color="#808080")
    ax.set_axisbelow(True)
    ax.set_prop_cycle(color=[c for c in FAMILIES.values() if c != INK])


def family(method: str) -> str:
    """The family of a method by its name."""
    if method not in hra.METHODS:
        raise ValueError(
            f"{method!r} is no method; there are {', '.join(hra.METHODS)}, and "
            f"{', '.join(BASELINES)}."
        )
    name = hra.METHODS[method].family
    if name not in FAMILIES:
        raise ValueError(
            f"{method}.family is {name!r}; one of {', '.join(FAMILIES)} is needed."
        )
    return name


def colour(method: str) -> str:
    """The colour that the method's family has on every page."""
    return INK if method in BASELINES else FAMILIES[family(method)]


def look(method: str, variant: int = 0) -> dict[str, Any]:
    """color, marker and linestyle of a method: `ax.plot(..., **look("LoRA"))`.

    Colour by family; marker and dash by the place within it. `variant` tells apart what
    is of one method, such as the five masks of SHiRA.
    """
    if method in BASELINES:
        return {"color": INK, "marker": "", "linestyle": ":", "markersize": 5}
    own = family(method)
    kin = [name for name, cls in hra.METHODS.items() if cls.family == own]
    k = kin.index(method) + variant
    return {
        "color": FAMILIES[own],
        "marker": MARKERS[k % len(MARKERS)],
        "linestyle": DASHES[k % len(DASHES)],
        "markersize": 5,
    }


def label_lines(ax: Axes, gap: int | float = 1.3) -> None:
    """The label of every line of `ax` at its right end, in place of a legend; none on
    another (`gap`: the least distance, in heights of a letter).

    Call it last, when limits and scales are set.
    """
    fig = ax.get_figure(root=True)
    if fig is None:
        raise ValueError("these axes stand in no figure.")
    fig.draw_without_rendering()  # so that the layout is known
    to_axes, point = ax.transAxes.inverted(), fig.dpi / 72
    ends = []
    for line in ax.get_lines():
        label, points = str(line.get_label()), ax.transData.transform(line.get_xydata())
        points = to_axes.transform(points[(points == points).all(1)])
        if not label.startswith("_") and len(points):
            x, y = points[points[:, 0].argmax()]
            ends.append((min(max(y, 0.0), 1.0), min(x, 1.0), label, line.get_color()))
    ends.sort(key=lambda e: e[0])
    height = ax.bbox.height / point  # of the axes, in points
    far = [e for e in ends if e[1] > 0.85]  # the others end amid the plot
    places = _apart([height * e[0] for e in far], 9 * gap)
    offsets = {
        e[2]: place - height * e[0] for e, place in zip(far, places, strict=True)
    }
    for y, x, label, color in ends:
        up = offsets.get(label, 0.0)
        leader = {
            "arrowstyle": "-",
            "color": color,
            "linewidth": 0.8,
            "shrinkB": 0,
            "relpos": (0, 0.5),
        }
        ax.annotate(
            label,
            xy=(1.0 if label in offsets else x, y),
            xytext=(12 if label in offsets else 5, up),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops=leader if abs(up) > 2 else None,
        )


def _apart(wanted: list[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones (ascending) that are `gap` apart: runs that
    collide share their mean.
    """
    runs: list[list[float]] = []  # [number, mean of wanted − k·gap]
    for k, y in enumerate(wanted):
        runs.append([1, y - k * gap])
        while len(runs) > 1 and runs[-1][1] < runs[-2][1]:
            n, mean = runs.pop()
            m, other = runs.pop()
            runs.append([n + m, (n * mean + m * other) / (n + m)])
    flat = [mean for n, mean in runs for _ in range(int(n))]
    return [mean + k * gap for k, mean in enumerate(flat)]
