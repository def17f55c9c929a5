"""The house diagrams, book/figures/*.svg, and pictures of them for notebooks.

    python tools/figures.py          write them all (the pictures need Chromium)
    python tools/figures.py check    say which differ from what is written here

Chapters include one by the directive `figure` (tools/sphinx_ext/hra_figures.py). They
take their colours from the page: currentColor, and one variable for each family of
methods (book/vendor/hra.css, with a fallback for a viewer outside the book). Grey
hatching is what is frozen. They are 400 units wide, so that on a phone their text keeps
nine tenths of its size. A notebook has no colours to give: there the picture of the
same name, .png, stands on white; it carries the hash of the SVG that it shows.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
import shutil
import sys
from itertools import islice
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "book" / "figures"
COLOURS = {
    "lowrank": "#2a78d6",
    "sparse": "#d1661f",
    "square": "#1b9e77",
    "subnet": "#8e5bd0",
    "before": "#808080",
}
WIDTH, SHOWN = 400, 500  # units; pixels where there is room


def text_of(markup: str) -> str:
    """`*W*_{0}`: italics and subscripts of an SVG text."""
    out, sunk = [], False
    for part in re.findall(r"\*[^*]+\*|_\{[^}]+\}|(?:(?!_\{)[^*])+", markup):
        lower, italic = part.startswith("_{"), part.startswith("*")
        body = html.escape(part[2:-1] if lower else part.strip("*") if italic else part)
        shift = ' dy="4"' if lower else ' dy="-4"' if sunk else ""
        look = ' font-size="75%"' if lower else ' font-style="italic"' if italic else ""
        out.append(f"<tspan{shift}{look}>{body}</tspan>" if shift or look else body)
        sunk = lower
    return "".join(out)


class Drawing:
    """SVG of one diagram, piece by piece; x to the right, y down."""

    def __init__(self, name: str, height: int, title: str, words: str) -> None:
        self.name, self.height, self.title, self.words = name, height, title, words
        self.id = f"diagram-{name}"
        self.parts: list[str] = []

    def ink(self, family: str | None) -> str:
        return f"var(--hra-{family}, {COLOURS[family]})" if family else "currentColor"

    def text(self, x, y, markup, size=14, anchor="start", family=None, weight=400):
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}" style="fill:{self.ink(family)}">'
            f"{text_of(markup)}</text>"
        )

    def box(self, x, y, w, h, family=None, fill=0.25, stroke=1.5, radius=2, dash=""):
        """A rectangle; `fill` is the strength of its ground."""
        ink = self.ink(family)
        dashes = f";stroke-dasharray:{dash}" if dash else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius}" '
            f'style="fill:{ink};fill-opacity:{fill};stroke:{ink};'
            f'stroke-width:{stroke}{dashes}"/>'
        )

    def frozen(self, x, y, w, h):
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="2" '
            f'style="fill:url(#{self.id}-hatch);stroke:currentColor;'
            'stroke-opacity:.55;stroke-width:1.2"/>'
        )

    def plate(self, x, y, w, h):
        """The page's own ground, under a text on a hatching."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="2" '
            'style="fill:var(--hra-ground, #fff)"/>'
        )

    def line(self, *points, arrow=False, family=None, width=1.5, dash=""):
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        end = f' marker-end="url(#{self.id}-arrow)"' if arrow else ""
        dashes = f";stroke-dasharray:{dash}" if dash else ""
        self.parts.append(
            f'<path d="{path}"{end} style="fill:none;stroke:{self.ink(family)};'
            f'stroke-width:{width}{dashes}"/>'
        )

    def cells(self, x, y, size, places, family, gap=0.0):
        """Small squares at (row, column) places of a grid."""
        side = round(size - gap, 2)
        path = "".join(
            f"M{round(x + j * size, 2):g} {round(y + i * size, 2):g}"
            f"h{side:g}v{side:g}h-{side:g}z"
            for i, j in places
        )
        self.parts.append(f'<path d="{path}" style="fill:{self.ink(family)}"/>')

    def legend(self, y, *entries, x=8):
        """`entries`: ("frozen" or a family, words, width of the words)."""
        for kind, words, width in entries:
            if kind == "frozen":
                self.frozen(x, y - 10, 14, 12)
            else:
                self.box(x, y - 10, 14, 12, kind, 0.6)
            self.text(x + 20, y, words, 13)
            x += 20 + width

    def svg(self) -> str:
        n, w, h = self.id, WIDTH, self.height
        shown = f'width="{SHOWN}" height="{round(SHOWN * h / w)}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" id="{n}" '
                f'viewBox="0 0 {w} {h}" {shown} role="img" '
                f'aria-describedby="{n}-words" font-family="inherit" '
                'style="color:inherit">',
                f"<title>{html.escape(self.title)}</title>",
                f'<desc id="{n}-words">{html.escape(self.words)}</desc>',
                "<defs>",
                f'<pattern id="{n}-hatch" width="6" height="6" '
                'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
                '<path d="M0 0v6" style="stroke:currentColor;stroke-opacity:.35;'
                'stroke-width:2"/></pattern>',
                f'<marker id="{n}-arrow" viewBox="0 0 8 8" refX="7" refY="4" '
                'markerWidth="10" markerHeight="10" markerUnits="userSpaceOnUse" '
                'orient="auto">'
                '<path d="M0 0L8 4L0 8z" style="fill:currentColor"/></marker>',
                "</defs>",
                *self.parts,
                "</svg>",
                "",
            ]
        )


# The transformer block ----------------------------------------------------------------

MATRICES = {  # name: outputs over inputs, in widths d
    "attn.c_attn": (3, 1),
    "attn.c_proj": (1, 1),
    "mlp.c_fc": (4, 1),
    "mlp.c_proj": (1, 4),
}
SPOTS = [(1, 2), (3, 0), (0, 5), (4, 4), (2, 3), (1, 6), (4, 1), (2, 6), (0, 0), (3, 5)]
ADAPTED = {
    "lowrank": "beside it two thin factors B and A are trained",
    "sparse": "a few of its entries are trained",
    "square": "beside it one square matrix is trained",
    "subnet": "the entries of some of its rows and columns are trained",
    "before": "the bias beside it is what BitFit trains; a bottleneck of Houlsby's "
    "adapter follows each c_proj, prefix-tuning gives the attention trained keys and "
    "values, prompt tuning puts trained tokens before the text, ahead of block 1",
}


def matrix(d: Drawing, y: int, name: str, family: str | None) -> None:
    """One weight with its name, and what is trained of it or beside it."""
    x, w, h = 122, 78, 46
    d.frozen(x, y, w, h)
    d.text(218, y + 20, name, 15, weight=600)
    out, into = MATRICES[name]
    times = [f"{n}*d*" if n > 1 else "*d*" for n in (out, into)]
    d.text(218, y + 38, f"{times[0]} × {times[1]}", 13)
    if family == "lowrank":
        d.box(x + w + 122, y + 1, 11, h - 2, family, 0.7)
        d.text(x + w + 127, y + h + 15, "*B*", 13, "middle")
        d.box(x + w + 140, y + 1, 48, 11, family, 0.7)
        d.text(x + w + 164, y + 27, "*A*", 13, "middle")
    elif family == "sparse":
        turn = 2 * list(MATRICES).index(name)  # not the same places everywhere
        places = [(i * 0.9, (j + turn) % 7) for i, j in SPOTS]
        d.cells(x + 5, y + 3, 10, places, family, 3)
    elif family == "square":
        d.box(x + w + 140, y + 10, 26, 26, family, 0.7)
        d.text(x + w + 172, y + 28, "*M*", 13)
    elif family == "before":
        d.box(x + w + 4, y, 6, h, family, 0.7)
    elif family == "subnet":
        places = [(i, j) for i in (0, 2, 3) for j in (1, 2, 4, 6)]
        d.cells(x + 4, y + 4, 10, places, family, 2)


def operation(d: Drawing, y: int, words: str) -> None:
    d.box(102, y, 118, 28, None, 0, 1.2, 14)
    d.text(161, y + 19, words, 14, "middle")


def trained_box(d: Drawing, x: int, y: int, w: int, words: str) -> None:
    d.plate(x, y, w, 26)
    d.box(x, y, w, 26, "before", 0.3)
    d.text(x + w / 2, y + 18, words, 13, "middle")


def block(name: str, family: str | None, lit: tuple[str, ...], title: str) -> Drawing:
    lit_words = (
        f"In {', '.join(lit)} the weight itself is frozen and {ADAPTED[family]}. "
        if family
        else ""
    )
    rest = [m for m in MATRICES if m not in lit]
    words = (
        "The residual stream, a vector of width d for each token, runs from top to "
        "bottom. Two branches read it and add to it. The first: layer norm ln_1, the "
        "weight attn.c_attn of 3d outputs and d inputs (queries, keys, values), "
        "attention, the weight attn.c_proj of d by d. The second: layer norm ln_2, "
        "mlp.c_fc of 4d outputs and d inputs, the GELU, mlp.c_proj of d outputs and 4d "
        f"inputs. {lit_words}"
        + (f"Frozen and without an adapter: {', '.join(rest)}." if rest else "")
    ).strip()
    d = Drawing(name, 620 if family else 590, title, words)
    stream, right = 40, 161
    d.text(14, 18, "residual stream, *d* numbers per token", 14)
    d.line((stream, 28), (stream, 578), arrow=True, width=4)
    for top, norm, first, middle, second in (
        (42, "ln_1", "attn.c_attn", "attention", "attn.c_proj"),
        (312, "ln_2", "mlp.c_fc", "GELU", "mlp.c_proj"),
    ):
        d.line((stream, top + 14), (101, top + 14), arrow=True)
        operation(d, top, norm)
        d.line((right, top + 28), (right, top + 46), arrow=True)
        matrix(d, top + 48, first, family if first in lit else None)
        d.line((right, top + 94), (right, top + 112), arrow=True)
        operation(d, top + 114, middle)
        d.line((right, top + 142), (right, top + 160), arrow=True)
        matrix(d, top + 162, second, family if second in lit else None)
        y = top + 230
        d.line((right, top + 208), (right, y), (stream + 14, y), arrow=True)
        if family == "before":
            trained_box(d, 70, y - 13, 76, "Houlsby")
            if middle == "attention":
                trained_box(d, 250, top + 115, 110, "prefix *K*, *V*")
                d.line((250, top + 128), (222, top + 128), arrow=True)
        d.parts.append(
            f'<circle cx="{stream}" cy="{y}" r="12" style="fill:var(--hra-ground, '
            '#fff);stroke:currentColor;stroke-width:1.5"/>'
        )
        d.line((stream - 6, y), (stream + 6, y))
        d.line((stream, y - 6), (stream, y + 6))
    if family == "before":
        trained_box(d, 286, 2, 106, "prompt")
        d.text(339, 44, "before block 1", 13, "middle")
    if family:
        d.legend(606, ("frozen", "frozen", 60), (family, "trained", 60))
    return d


# LoRA's factors -----------------------------------------------------------------------


def factors() -> Drawing:
    d = Drawing(
        "lora-factors",
        302,
        "A frozen weight and LoRA's two factors",
        "To scale, for 12 outputs, 10 inputs and rank 2: the frozen weight W0 of d_out "
        "rows and d_in columns; plus alpha over r times B, d_out rows and r columns, "
        "times A, r rows and d_in columns. B and A are trained. W0 holds d_out d_in "
        "numbers, B and A together r (d_out + d_in). The input x has d_in numbers, Ax "
        "has r, the output y has d_out.",
    )
    unit, top = 13, 66
    rows, columns, r = 12 * unit, 10 * unit, 2 * unit
    middle = top + rows / 2
    d.frozen(34, top, columns, rows)
    d.plate(78, middle - 15, 42, 26)
    d.text(99, middle + 5, "*W*_{0}", 18, "middle")
    d.text(99, top - 10, "*d*_{in} columns", 14, "middle")
    d.parts.append(f'<g transform="rotate(-90 24 {middle})">')
    d.text(24, middle, "*d*_{out} rows", 14, "middle")
    d.parts.append("</g>")
    d.text(197, middle + 6, "+ *α*/*r*", 17, "middle")
    d.box(230, top, r, rows, "lowrank")
    d.text(243, middle + 5, "*B*", 18, "middle")
    d.text(243, top - 10, "*r*", 14, "middle")
    d.box(262, top, columns, r, "lowrank")
    d.text(327, top + 18, "*A*", 18, "middle")
    d.text(327, top - 10, "*d*_{in}", 14, "middle")
    d.text(267, top + 58, "starts random", 13)
    d.text(267, top + 78, "with *B* = 0, so that", 13)
    d.text(267, top + 98, "Δ*W* = 0 at first", 13)
    d.text(99, top + rows + 24, "*d*_{out} *d*_{in} numbers", 14, "middle")
    d.text(315, top + rows + 24, "*r* (*d*_{out} + *d*_{in}) numbers", 14, "middle")
    d.legend(top + rows + 58, ("frozen", "frozen", 70), ("lowrank", "trained", 70))
    d.text(200, 22, "*y* = *x* (*W*_{0} + (*α*/*r*) *BA*)ᵀ", 15, "middle")
    return d


# What one layer holds in a training step ----------------------------------------------

HEAD = (  # x, what stands there for a trained tensor
    (90, "value"),
    (180, "gradient"),
    (266, "Adam's moments"),
)
HOLDS = {
    "full": (
        "before",
        "Full fine-tuning: the weight W is trained, so its gradient and two moments "
        "are held too, four matrices of d_out by d_in. From the forward pass the input "
        "x is kept, d_in numbers for each token.",
    ),
    "lora": (
        "lowrank",
        "LoRA: the weight W0 is frozen and has neither gradient nor moments. The "
        "factors A and B are trained; each has a gradient and two moments of its own "
        "size. From the forward pass the input x is kept, d_in numbers for each token, "
        "and Ax, r numbers for each token.",
    ),
    "sparse": (
        "sparse",
        "SHiRA: the weight W0 is frozen but for K entries, which are trained in place. "
        "Their gradient and moments are lists of K numbers. From the forward pass the "
        "columns of the input x are kept that meet a trained entry.",
    ),
}


def holds(kind: str) -> Drawing:
    family, words = HOLDS[kind]
    what = {"full": "full fine-tuning", "lora": "LoRA", "sparse": "SHiRA"}[kind]
    title = f"What one layer holds in a training step of {what}"
    u, r = 6, 2
    rows, columns = 12 * u, 10 * u
    xs = (90, 180, 266, 332)
    d = Drawing(
        f"holds-{kind}", {"full": 292, "lora": 416, "sparse": 292}[kind], title, words
    )
    for x, head in HEAD:
        d.text(x, 20, head, 14)
    y = 34
    middle = y + rows / 2 + 5

    def copies(y, w, h, names, label):
        d.text(8, y + h / 2 + 5, label, 16)
        for x, name, fill in zip(xs, names, (0.75, 0.4, 0.2, 0.2), strict=True):
            d.box(x, y, w, h, family, fill)
            if name:
                d.text(x + w / 2, y + h / 2 + 5, name, 14, "middle")

    if kind == "full":
        copies(y, columns, rows, ("", "∂*W*", "*m*", "*v*"), "*W*")
    else:
        d.text(8, middle, "*W*_{0}", 16)
        d.frozen(xs[0], y, columns, rows)
    if kind == "lora":
        for x in xs[1:3]:
            d.text(x, middle, "none", 14)
        y += rows + 18
        copies(y, columns, r * u, ("", "", "", ""), "*A*")
        y += r * u + 18
        copies(y, r * u, rows, ("", "", "", ""), "*B*")
    if kind == "sparse":
        d.cells(xs[0] + 3, y + 3, 8, SPARSE, "sparse", 2)
        for x, name in zip(xs[1:], ("∂*δ*", "*m*", "*v*"), strict=True):
            d.cells(x, y + 3, 8, [(k, 0) for k in range(len(SPARSE))], "sparse", 2)
            d.text(x + 14, middle, name, 14)
    y += rows + 34
    d.line((8, y - 14), (392, y - 14), width=0.8)
    d.text(8, y + 8, "kept from the forward pass, for *T* tokens", 14)
    tokens = 8 * u
    if kind == "sparse":
        touched = sorted({j for _, j in SPARSE})
        for j in touched:
            d.box(xs[0] + j * 8 + 3, y + 20, 6, tokens, None, 0.2, 1, 0)
        d.text(180, y + 40, "the columns of *x* that meet", 13)
        d.text(180, y + 58, "a trained entry", 13)
        d.text(8, y + 48, "*x*", 16)
    else:
        d.box(xs[0], y + 20, columns, tokens, None, 0.2, 1)
        d.text(8, y + 48, "*x*", 16)
        d.text(180, y + 48, "*d*_{in} numbers per token", 13)
    if kind == "lora":
        y += tokens + 18
        d.box(xs[0], y + 20, r * u, tokens, None, 0.2, 1)
        d.text(8, y + 48, "*Ax*", 16)
        d.text(180, y + 48, "*r* numbers per token", 13)
    y += tokens + 56
    trained = (family, "trained", 66)
    d.legend(y, *([trained] if kind == "full" else [("frozen", "frozen", 66), trained]))
    d.height = y + 14
    return d


SPARSE = [(0, 4), (1, 1), (2, 6), (3, 3), (4, 4), (5, 0), (6, 5), (7, 3)]


# The first step -----------------------------------------------------------------------


def first_step() -> Drawing:
    d = Drawing(
        "first-step",
        392,
        "What the first step of LoRA and of a sparse adapter sees of an input",
        "Above: LoRA's A turns the input x, of d_in numbers, into Ax, of "
        "r numbers; the first step changes B alone, by the gradient g times Ax, so the "
        "output moves by s squared times the squared length of Ax, along g. Below: a "
        "sparse adapter; row i of the weight has a few trained entries, and the first "
        "step moves output i by the sum of the squares of x at these entries.",
    )
    u, top = 13, 40
    d.text(8, 20, "LoRA: *B* moves along *g*(*Ax*)ᵀ", 15, weight=600)
    d.box(20, top, u, 10 * u, None, 0.2)
    d.text(26, top + 10 * u + 20, "*x*", 16, "middle")
    d.line((40, top + 65), (66, top + 65), arrow=True)
    d.box(74, top + 52, 8 * u, 2 * u, "lowrank", 0.12)
    d.text(126, top + 71, "*A*", 17, "middle")
    d.line((184, top + 65), (208, top + 65), arrow=True)
    d.box(216, top + 52, u, 2 * u, None, 0.2)
    d.text(222, top + 98, "*Ax*", 16, "middle")
    d.line((236, top + 65), (258, top + 65), arrow=True)
    d.box(266, top, 2 * u, 10 * u, "lowrank", 0.6)
    d.text(279, top + 71, "*B*", 17, "middle")
    d.line((298, top + 65), (316, top + 65), arrow=True)
    d.text(321, top + 71, "*s*²‖*Ax*‖²*g*", 14)
    d.text(74, top + 10 * u + 20, "each of the *r* numbers of *Ax* adds its square", 13)
    y = 230
    d.line((8, y - 8), (392, y - 8), width=0.8)
    d.text(
        8,
        y + 16,
        "Sparse: entry (*i*, *j*) moves along *g*_{i} *x*_{j}",
        15,
        weight=600,
    )
    d.frozen(90, y + 34, 10 * u, 6 * u)
    places = [(0, 1), (0, 6), (1, 3), (2, 8), (2, 0), (3, 5), (4, 2), (5, 7), (5, 4)]
    d.cells(92, y + 36, u, places, "sparse", 3)
    d.box(90, y + 34 + 2 * u, 10 * u, u, None, 0.12, 1.5)
    d.text(82, y + 34 + 2 * u + 11, "row *i*", 14, "end")
    d.line((228, y + 73), (252, y + 73), arrow=True)
    d.text(260, y + 78, "Σ *x*_{j}² *g*_{i}", 16)
    d.text(90, y + 134, "over its trained entries, a share *p* of all", 13)
    d.legend(
        y + 156,
        ("frozen", "frozen", 70),
        ("lowrank", "LoRA", 60),
        ("sparse", "sparse", 60),
    )
    return d


# Five masks on one real weight --------------------------------------------------------

SITE, HEAD_ROWS, EVERY, BATCHES = "transformer.h.3.attn.c_attn", slice(384, 416), 32, 2
RULE_WORDS = {
    "struct": "whole rows and the diagonal",
    "rand": "at random",
    "weight": "largest |*W*_{0}|",
    "grad": "largest |∂*L*/∂*W*|",
    "snip": "largest |*W*_{0} ∂*L*/∂*W*|",
}


def five_masks():
    """The mask of each rule on the values of the first head of block 4 of GPT-2 tiny,
    its gradient from two batches of Moby Dick; in float64, for the same ranking on
    every machine.
    """
    import torch

    import hra
    from hra import masks

    model, tok = hra.zoo.gpt2("tiny").double(), hra.zoo.tokenizer("tiny")
    batches = hra.data.lm_batches(hra.data.tokens(tok, "moby_dick"), 8, 128, seed=0)
    probe = hra.probe(model, islice(batches, BATCHES), targets=SITE, progress=False)
    weight = hra.linear.weight(model.get_submodule(SITE)).detach()
    W, G = weight[HEAD_ROWS], probe.mean[SITE][HEAD_ROWS]
    d_out, d_in = W.shape
    struct = masks.struct(d_out, d_in, every=EVERY)
    count = len(struct)
    scores = {"weight": W.abs(), "grad": G.abs(), "snip": (W * G).abs()}
    chosen = {
        "struct": struct,
        "rand": masks.rand(d_out, d_in, count, torch.Generator().manual_seed(0)),
    } | {rule: masks.top(score, count) for rule, score in scores.items()}
    return d_out, d_in, count, chosen, scores


def masks_drawing() -> Drawing:
    import torch

    from hra import sparse
    from hra.analysis import rank

    d_out, d_in, count, chosen, _ = five_masks()
    cell, step, top = 2, 104, 48
    ranks = {
        rule: rank.structural_rank(sparse.scatter(torch.ones(count), k, d_out, d_in))
        for rule, k in chosen.items()
    }
    rows = {rule: len(set((k // d_in).tolist())) for rule, k in chosen.items()}
    columns = {rule: len(set((k % d_in).tolist())) for rule, k in chosen.items()}
    each = "; ".join(
        f"{rule}, entries in {rows[rule]} rows and {columns[rule]} columns, rank at "
        f"most {ranks[rule]}"
        for rule in chosen
    )
    d = Drawing(
        "masks",
        top + 5 * step,
        "Five masks of one weight",
        f"Five masks of {count} entries each on one weight of {d_out} rows and {d_in} "
        "columns: the values of the first attention head in block 4 of GPT-2 tiny, "
        f"with gradients from Moby Dick. {each}. The random mask is spread evenly; the "
        "gradient's crowds into few columns.",
    )
    d.text(8, 18, f"{count} of {d_out} × {d_in} entries, five times", 15, weight=600)
    for n, (rule, index) in enumerate(chosen.items()):
        y = top + n * step
        d.text(8, y, rule, 15, weight=600)
        d.text(78, y, RULE_WORDS[rule], 13)
        d.text(392, y, f"rank at most {ranks[rule]}", 13, "end")
        d.box(7, y + 9, d_in * cell + 2, d_out * cell + 2, None, 0.04, 0.8, 0)
        places = [divmod(int(k), d_in) for k in index]
        d.cells(8, y + 10, cell, places, "sparse")
    return d


# Overwrite against merge --------------------------------------------------------------


def overwrite() -> Drawing:
    d = Drawing(
        "overwrite",
        464,
        "Overwriting K entries against adding a dense matrix",
        "Two ways to put an adapter into a weight. Above, a merge: W0 plus BA is a sum "
        "over all entries, so every entry is read, added to and written; taking the "
        "adapter out subtracts BA and rounds again. Below, an overwrite: K entries of "
        "the weight are replaced by the adapter's and the displaced ones are put "
        "aside; taking the adapter out writes those K entries back, bit for bit.",
    )
    u, rows, columns = 13, 9, 9
    side = u * columns
    everywhere = [(i, j) for i in range(rows) for j in range(columns)]
    few = [(0, 6), (1, 2), (2, 7), (4, 0), (5, 4), (6, 8), (8, 3)]

    d.text(8, 18, "Merge: *W*_{0} + *BA*", 15, weight=600)
    y = 32
    d.frozen(8, y, side, side)
    d.text(8 + side / 2, y + side + 20, "*W*_{0}", 14, "middle")
    d.text(140, y + side / 2 + 6, "+", 20, "middle")
    d.box(156, y, 20, side, "lowrank", 0.7)
    d.box(184, y, 68, 20, "lowrank", 0.7)
    d.text(166, y + side + 20, "*B*", 14, "middle")
    d.text(218, y + 38, "*A*", 14, "middle")
    d.text(266, y + side / 2 + 6, "=", 20, "middle")
    d.cells(282, y, u, everywhere, "lowrank", 1.5)
    d.text(340, y + side + 20, f"all {rows * columns} written", 14, "middle")
    d.text(8, y + side + 46, "and back: subtract *BA*, each entry rounded again", 14)

    d.line((8, 218), (392, 218), width=0.8)
    d.text(8, 244, "Overwrite: *K* entries of *W*_{0}", 15, weight=600)
    y = 258
    d.frozen(8, y, side, side)
    d.cells(8, y, u, few, "sparse", 1.5)
    d.text(8 + side / 2, y + side + 20, f"{len(few)} written", 14, "middle")
    d.line((136, y + 30), (184, y + 30), arrow=True)
    d.line((184, y + 78), (136, y + 78), arrow=True)
    d.text(160, y + 22, "out", 13, "middle")
    d.text(160, y + 98, "back", 13, "middle")
    for k in range(len(few)):
        d.frozen(194, y + k * 16 + 4, 12, 12)
    d.text(216, y + 44, "the *K* displaced entries,", 14)
    d.text(216, y + 63, "put aside", 14)
    d.text(8, y + side + 46, "and back: the same *K* entries, bit for bit", 14)
    d.legend(
        y + side + 78,
        ("frozen", "as pretrained", 100),
        ("lowrank", "LoRA", 50),
        ("sparse", "SHiRA", 50),
    )
    d.height = y + side + 92
    return d


# Two adapters at once -----------------------------------------------------------------


def two_adapters() -> Drawing:
    d = Drawing(
        "two-adapters",
        330,
        "Two adapters of one layer and the products of their outputs",
        "Two cases of two sparse adapters A1 and A2 of the same weight, 6 outputs by 5 "
        "inputs, with the outputs a = A1 x and b = A2 x and their products entry by "
        "entry. Above: no entry is in both and no column either, but rows 1 and 5 "
        "hold entries of both; a and b are both non-zero there, and through an "
        "activation these two outputs have a cross term. Below: A1 has rows 1, 3 and "
        "5, A2 has rows 2, 4 and 6; no output has both, and there is no cross term.",
    )
    u, rows, columns = 14, 6, 5

    def case(y, title, first, second):
        d.text(8, y, title, 15, weight=600)
        top = y + 14
        hit = [sorted({i for i, _ in part}) for part in (first, second)]
        both = [i for i in hit[0] if i in hit[1]]
        for x, part, name in ((8, first, "1"), (100, second, "2")):
            d.frozen(x, top, columns * u, rows * u)
            d.cells(x, top, u, part, "sparse", 1.5)
            d.text(
                x + columns * u / 2,
                top + rows * u + 19,
                f"*A*_{{{name}}}",
                14,
                "middle",
            )
        lines = ((196, hit[0], "*a*"), (226, hit[1], "*b*"), (272, both, "*a* ⊙ *b*"))
        for x, at, name in lines:
            d.box(x, top, u - 1, rows * u, None, 0, 0.8, 0)
            family = None if x == 272 else "sparse"
            d.cells(x, top, u, [(i, 0) for i in at], family, 1.5)
            d.text(x + u / 2, top + rows * u + 19, name, 14, "middle")
        for x in (176, 250):
            d.line((x, top + rows * u / 2), (x + 14, top + rows * u / 2), arrow=True)
        words = f"{len(both)} cross terms" if both else "no cross term"
        d.text(294, top + rows * u / 2 + 5, words, 13)

    few = [(0, 0), (2, 1), (4, 0), (4, 1), (2, 0)]
    other = [(0, 3), (3, 4), (4, 4), (3, 2), (0, 4)]
    case(18, "No entry and no column in common", few, other)
    case(
        168,
        "No output row in common",
        [(i, j) for i in (0, 2, 4) for j in (0, 1, 3)],
        [(i, j) for i in (1, 3, 5) for j in (0, 1, 3)],
    )
    d.legend(316, ("frozen", "frozen", 66), ("sparse", "trained, or not zero", 140))
    return d


# All of them --------------------------------------------------------------------------

ALL = tuple(MATRICES)
BLOCKS = {  # a chapter lights what it adapts
    "block": (None, (), "One transformer block and its four weights"),
    "block-lora": ("lowrank", ALL, "One transformer block with LoRA on four weights"),
    "block-lora-attention": (
        "lowrank",
        ("attn.c_attn", "attn.c_proj"),
        "One transformer block with LoRA on the attention",
    ),
    "block-lora-mlp": (
        "lowrank",
        ("mlp.c_fc", "mlp.c_proj"),
        "One transformer block with LoRA on the MLP",
    ),
    "block-before": (
        "before",
        ALL,
        "One transformer block and the places of four methods before LoRA",
    ),
    "block-sparse": (
        "sparse",
        ALL,
        "One transformer block with sparse adapters on four weights",
    ),
    "block-square": (
        "square",
        ALL,
        "One transformer block with square adapters on four weights",
    ),
    "block-subnet": (
        "subnet",
        ALL,
        "One transformer block with a trained subnet in four weights",
    ),
}


# A pair of UUIDs ----------------------------------------------------------------------


def uuid_pair() -> Drawing:
    d = Drawing(
        "uuid-pair",
        236,
        "A pair of UUIDs, and what of it has to be remembered",
        "Above: the key and the colon are given, the loss is on the value alone. "
        "Below: the value, character by character: 30 of its 32 hexadecimal digits "
        "carry four "
        "random bits each, one says the version and is always 4, one says the variant "
        "and carries two bits, four places are hyphens: 122 random bits in all.",
    )
    d.frozen(8, 34, 176, 30)
    d.plate(60, 40, 72, 18)
    d.text(96, 54, "the key", 15, "middle")
    d.text(192, 54, ":", 18)
    d.box(206, 34, 176, 30, "square", 0.3)
    d.text(294, 54, "the value", 15, "middle")
    d.text(8, 22, "read, no loss", 14)
    d.text(206, 22, "learnt: the loss is here", 14)
    d.line((206, 64), (8, 104), width=0.8)
    d.line((382, 64), (386, 104), width=0.8)
    size = 10.5
    groups = [i for i in range(36) if i not in (8, 13, 18, 23)]
    random_places = [i for i in groups if i not in (14, 19)]
    d.cells(
        8, 106, size, [(k, i) for i in random_places for k in (0, 1)], "square", 1.5
    )
    d.cells(8, 106, size, [(0, 19)], "lowrank", 1.5)
    d.cells(8, 106, size, [(1, 19)], "lowrank", 1.5)
    d.text(8 + 14.5 * size, 122, "4", 14, "middle")
    for i in (8, 13, 18, 23):
        d.text(8 + (i + 0.5) * size, 121, "-", 14, "middle")
    d.line((8 + 14.5 * size, 128), (8 + 14.5 * size, 148), width=0.8)
    d.text(8 + 14.5 * size, 162, "always 4", 13, "end")
    d.line((8 + 19.5 * size, 128), (8 + 19.5 * size, 148), width=0.8, family="lowrank")
    d.text(8 + 18 * size, 162, "8, 9, a or b: 2 bits", 13)
    d.box(8, 180, 14, 12, "square", 0.6)
    d.text(28, 191, "30 digits of 4 random bits", 14)
    d.text(8, 222, "30 × 4 + 2 = 122 random bits in every value", 15, weight=600)
    return d


# Rounds of restarts -------------------------------------------------------------------


def rounds() -> Drawing:
    d = Drawing(
        "rounds",
        196,
        "Restarts: a small adapter trains, is folded in, and begins anew",
        "Three rounds from left to right. In each, a thin pair of factors trains "
        "beside a frozen weight. At the end of a round the pair is folded into the "
        "weight, "
        "which becomes the frozen weight of the next round, and a fresh pair begins. "
        "The rank of what has been folded in grows by at most r a round.",
    )
    for n in range(3):
        x = 8 + 132 * n
        d.text(x, 22, f"round {n + 1}", 15, weight=600)
        d.frozen(x, 34, 62, 62)
        d.plate(x + 12, 54, 38, 20)
        d.text(x + 31, 70, f"*W*_{{{n}}}", 15, "middle")
        d.text(x + 72, 70, "+", 16)
        d.box(x + 86, 34, 9, 62, "lowrank", 0.6)
        d.box(x + 99, 34, 22, 9, "lowrank", 0.6)
        if n < 2:
            d.line(
                (x + 90, 104), (x + 90, 118), (x + 160, 118), (x + 160, 100), arrow=True
            )
    d.text(8, 142, "folded in; then a fresh pair, fresh moments", 14)
    d.text(8, 166, "rank of all that was folded in: at most *r*, 2*r*, 3*r*", 14)
    d.legend(188, ("frozen", "frozen", 70), ("lowrank", "trains", 60))
    return d


# A step on a subnet -------------------------------------------------------------------


def subnet_step() -> Drawing:
    d = Drawing(
        "subnet-step",
        272,
        "A full step, a step on a subnet, and the gap between them",
        "Three pictures of one weight of 6 outputs by 7 inputs. Left: a full step "
        "changes every entry by the rate times the gradient. Middle: a step on a "
        "subnet changes the block of three outputs by four inputs, the other entries "
        "are frozen. Right: the gap between the two is the gradient on all entries "
        "outside the block. Below: the bound says how far apart an input x can come "
        "out.",
    )
    u, m, n, top = 15, 6, 7, 50
    rows, columns = (0, 2, 3), (1, 2, 4, 6)
    block = [(i, j) for i in rows for j in columns]
    every = [(i, j) for i in range(m) for j in range(n)]
    rest = [c for c in every if c not in block]
    for x, places, family, title, under in (
        (8, every, None, "full step", "−*η* *G*"),
        (148, block, "subnet", "subnet's step", "−*η* *G* in the block"),
        (288, rest, None, "the gap", "−*η* *A*"),
    ):
        d.text(x + n * u / 2, top - 14, title, 15, "middle", weight=600)
        d.frozen(x, top, n * u, m * u)
        d.plate(x, top, n * u, m * u) if family is None else None
        d.cells(x, top, u, places, family, 2)
        d.text(x + n * u / 2, top + m * u + 20, under, 14, "middle")
    d.text(130, top + m * u / 2 + 6, "−", 18, "middle")
    d.text(270, top + m * u / 2 + 6, "=", 18, "middle")
    d.line((8, 176), (392, 176), width=0.8)
    d.text(8, 200, "*A*: the gradient *G* outside the block, zero inside", 14)
    d.text(8, 222, "outputs apart by *ηAx*, at most *η* ‖*A*‖ ‖*x*‖", 14)
    d.legend(252, ("frozen", "frozen", 66), ("subnet", "trained", 66))
    return d


# A subnet, and how it moves -----------------------------------------------------------


def subnet_moves() -> Drawing:
    d = Drawing(
        "subnet-moves",
        276,
        "A subnet of a weight, and how its place is chosen",
        "Left: one weight, frozen but for the entries where three chosen rows, outputs "
        "Y_S, cross three chosen columns, inputs X_S; these form the trained matrix "
        "W_S. Right, in the layer's slot: for T steps the dense gradient G gives an "
        "importance for every entry; its running mean and spread are multiplied to a "
        "score; the rows and columns whose block holds most of the score become the "
        "next subnet, and what was learnt stays.",
    )
    size, x, y = 15, 30, 60
    rows, columns = (1, 4, 8), (0, 3, 6)
    d.frozen(x, y, 8 * size, 10 * size)
    d.cells(x, y, size, [(i, j) for i in rows for j in columns], "subnet", 1)
    for i in rows:
        d.box(x - 11, y + i * size + 2, 7, size - 4, "subnet", 0.6, 1)
    for j in columns:
        d.box(x + j * size + 2, y - 11, size - 4, 7, "subnet", 0.6, 1)
    d.text(x + 60, y - 20, "inputs *X*_{S}", 14, "middle")
    d.parts.append('<g transform="rotate(-90 12 135)">')
    d.text(12, 135, "outputs *Y*_{S}", 14, "middle")
    d.parts.append("</g>")
    for k, lines in enumerate(
        (
            ("*T* steps: from *G* and *W*", "the importance *I*"),
            ("its running mean, times", "its spread: the score"),
            ("the block that holds most", "is the next subnet"),
        )
    ):
        top = 34 + 68 * k
        d.box(184, top, 206, 48, "subnet", 0.12, 1.2, 8)
        for n, line in enumerate(lines):
            d.text(287, top + 20 + 18 * n, line, 14, "middle")
        if k < 2:
            d.line((287, top + 48), (287, top + 66), arrow=True)
    d.line((184, 196), (158, 196), arrow=True)
    d.text(287, 22, "in the layer's slot", 14, "middle")
    d.text(184, 240, "what was learnt stays", 14)
    d.legend(266, ("frozen", "frozen", 66), ("subnet", "trained: *W*_{S}", 100))
    return d


def both_factors() -> Drawing:
    d = Drawing(
        "both-factors",
        268,
        "What a step of A and a step of B move in LoRA",
        "From left to right: the input x, a tall column of n numbers; the factor A; "
        "the r numbers Ax; the factor B; the output y. Below A: a step of A moves each "
        "number of Ax by the rate of A times the sum of the n absolute values of x. "
        "Below B: a step of B moves each output by s times the rate of B times the "
        "sum of the r absolute values of Ax.",
    )
    u, top = 13, 34
    d.box(20, top, u, 10 * u, None, 0.2)
    d.text(26, top - 10, "*x*", 16, "middle")
    d.line((40, top + 65), (66, top + 65), arrow=True)
    d.box(74, top + 52, 10 * u, 2 * u, "lowrank", 0.35)
    d.text(139, top + 71, "*A*", 17, "middle")
    d.line((210, top + 65), (234, top + 65), arrow=True)
    d.box(242, top + 52, u, 2 * u, None, 0.2)
    d.text(248, top + 44, "*Ax*", 16, "middle")
    d.line((262, top + 65), (284, top + 65), arrow=True)
    d.box(292, top, 2 * u, 10 * u, "lowrank", 0.6)
    d.text(305, top + 71, "*B*", 17, "middle")
    d.line((324, top + 65), (346, top + 65), arrow=True)
    d.box(354, top, u, 10 * u, None, 0.2)
    d.text(360, top - 10, "*y*", 16, "middle")
    y = top + 10 * u + 26
    d.text(8, y, "a step of *A* moves *Ax* by *η*_{A}‖*x*‖_{1}:", 14, weight=600)
    d.text(8, y + 20, "*n* numbers add up", 14)
    d.text(8, y + 48, "a step of *B* moves *y* by *s η*_{B}‖*Ax*‖_{1}:", 14, weight=600)
    d.text(8, y + 68, "*r* numbers add up", 14)
    return d


# Slots of LoSiA ----------------------------------------------------------------------


def slots() -> Drawing:
    d = Drawing(
        "slots",
        214,
        "Slots: one block after the other watches, moves and re-warms",
        "Three blocks, each a row, over four slots of T steps. Block 1 watches in the "
        "first slot, block 2 in the second, block 3 in the third, block 1 again in the "
        "fourth. At the end of its slot a block's subnet moves, and in the T steps "
        "after that its learning rate rises to where the others are. Every block "
        "trains in every step.",
    )
    left, wide, high = 70, 80, 46
    for k in range(4):
        d.text(left + wide * (k + 0.5), 20, f"slot {k + 1}", 14, "middle")
    for b in range(3):
        y = 32 + high * b
        d.text(8, y + 24, f"block {b + 1}", 14)
        d.line((left, y + 34), (left + 4 * wide, y + 34), family="subnet", width=3)
        for k in range(b, 4, 3):
            x = left + wide * k
            d.box(x, y, wide, 24, "subnet", 0.5)
            d.text(x + wide / 2, y + 17, "watches", 13, "middle")
            if k < 3:
                end = x + wide
                d.line((end, y + 24), (end + wide, y + 13), family="subnet", dash="4 3")
                d.text(end + 6, y + 9, "re-warms", 13)
    d.line((left, 180), (left + wide, 180), family=None)
    d.text(left + wide / 2, 197, "*T* steps", 13, "middle")
    d.text(left + wide + 14, 185, "line below: trains, in every step", 13)
    return d


# One task after another ---------------------------------------------------------------


def sequence() -> Drawing:
    d = Drawing(
        "sequence",
        318,
        "One adapter trained on through three tasks, and one adapter for each",
        "Above: the frozen weight with one adapter, which is trained on task 1, then "
        "trained on with task 2, then with task 3; after each task all tasks so far "
        "are asked, which fills one row of the matrix P up to its diagonal. Below: "
        "the same frozen weight with three adapters, each trained on its own task "
        "from the start and switched by the task that is asked; they give P0.",
    )
    d.text(8, 20, "One adapter, trained on", 15, weight=600)
    d.text(8, 186, "Separate adapters, switched", 15, weight=600)
    for k in range(3):
        x, colour = 8 + 100 * k, "lowrank"
        d.frozen(x, 34, 44, 58)
        d.box(x + 48, 34, 10, 58, colour, 0.25 + 0.25 * k)
        d.text(x + 29, 112, f"task {k + 1}", 13, "middle")
        if k < 2:
            d.line((x + 64, 63), (x + 96, 63), arrow=True)
        for j in range(k + 1):
            d.box(x + 4 + 18 * j, 124, 16, 16, colour, 0.75 if j == k else 0.25)
        d.text(x + 29, 158, f"row {k + 1} of *P*", 13, "middle")
    d.text(296, 58, "later tasks", 13)
    d.text(296, 76, "move the", 13)
    d.text(296, 94, "same numbers", 13)
    d.frozen(8, 200, 44, 58)
    for k in range(3):
        x = 108 + 66 * k
        d.box(x, 200, 10, 58, "lowrank", 0.75)
        d.text(x + 5, 276, f"task {k + 1}", 13, "middle")
        d.line((x - 8, 229), (58 if k == 0 else x - 44, 229), arrow=k == 0, dash="3 3")
    d.text(296, 224, "none moves", 13)
    d.text(296, 242, "another: *P*0", 13)
    d.legend(306, ("frozen", "frozen", 70), ("lowrank", "trained", 70))
    return d


# An image as tokens -------------------------------------------------------------------


def patches() -> Drawing:
    d = Drawing(
        "patches",
        404,
        "A quarter turn before the blocks, and a subnet inside them",
        "Above: an image in four patches of two by two pixels, with a stroke on its "
        "left side, and the same image after a quarter turn. Patch 1 with its pixels "
        "a, b, c, d has moved to the place of patch 3, and its pixels have moved "
        "inside it: b, d, a, c. The patch embedding, which reads them, is frozen. "
        "Below: the tokens, a row of d_in numbers for each patch and one for the class "
        "token, go through a frozen weight whose entries at the subnet's rows and "
        "columns are trained. LoSiA-Pro keeps the subnet's columns of the tokens, "
        "LoSiA all of them.",
    )
    d.text(8, 18, "A turn moves patches, and pixels in them", 15, weight=600)
    u, top = 26, 34
    before = "abefcdghijmnklop"
    grid = [list(before[4 * i : 4 * i + 4]) for i in range(4)]
    turned = [[grid[j][3 - i] for j in range(4)] for i in range(4)]
    for x, letters in ((36, grid), (256, turned)):
        for i, row in enumerate(letters):
            for j, letter in enumerate(row):
                stroke = letter in "acik"
                d.box(x + j * u, top + i * u, u, u, None, 0.3 if stroke else 0, 0.6, 0)
                first = letter in "abcd"
                d.text(
                    x + j * u + u / 2,
                    top + i * u + 18,
                    letter,
                    14,
                    "middle",
                    weight=700 if first else 400,
                )
        for i in (0, 2):
            for j in (0, 2):
                d.box(x + j * u, top + i * u, 2 * u, 2 * u, None, 0, 2, 0)
    d.line((158, top + 52), (236, top + 52), arrow=True)
    d.text(197, top + 42, "turned", 14, "middle")
    for x in (88, 308):
        d.line((x, 144), (x, 172), arrow=True)
    y = 176
    d.frozen(36, y, 324, 28)
    d.plate(120, y + 3, 156, 22)
    d.text(198, y + 19, "patch embedding", 14, "middle")
    d.text(8, 240, "Inside a block", 15, weight=600)
    top, w = 272, 12
    rows, columns, outputs = 5, 8, 6
    kept, chosen = (1, 4, 6), (0, 2, 5)
    d.box(60, top, columns * w, rows * w, None, 0, 1, 0)
    d.cells(60, top, w, [(i, j) for i in range(rows) for j in kept], "subnet", 2)
    d.text(60 + columns * w / 2, top - 8, "*d*_{in} numbers", 13, "middle")
    d.text(54, top + 12, "class", 13, "end")
    d.text(54, top + 40, "patches", 13, "end")
    d.text(60 + columns * w / 2, top + rows * w + 20, "kept by Pro", 13, "middle")
    d.line((166, top + 34), (194, top + 34), arrow=True)
    d.frozen(204, top, columns * w, outputs * w)
    d.cells(204, top, w, [(i, j) for i in chosen for j in kept], "subnet", 2)
    d.text(204 + columns * w / 2, top - 8, "weight", 13, "middle")
    d.text(252, top + outputs * w + 20, "*W*_{S} trained", 13, "middle")
    d.line((308, top + 34), (334, top + 34), arrow=True)
    d.box(344, top, outputs * 6, rows * w, None, 0.06, 1, 0)
    d.text(362, top - 8, "outputs", 13, "middle")
    d.legend(392, ("frozen", "frozen", 70), ("subnet", "trained, kept", 100))
    return d


def few_numbers() -> Drawing:
    d = Drawing(
        "few-numbers",
        326,
        "What VeRA, NOLA and PRANC draw from a seed, and what they train",
        "Three rows. VeRA: a trained column b, one number per output, in front of a "
        "drawn tall matrix B; a trained column d, in front of a drawn wide matrix A; "
        "the model has one A and one B. NOLA: trained coefficients beta in front of a "
        "stack of drawn tall matrices, trained coefficients alpha in front of a stack "
        "of drawn wide matrices. PRANC: trained coefficients c, one vector for the "
        "model, in front of a stack of drawn matrices as large as the weight.",
    )

    def stack(x, y, w, h):
        for k in (2, 1, 0):
            d.plate(x + 6 * k, y - 6 * k, w, h)
            d.frozen(x + 6 * k, y - 6 * k, w, h)

    def row(y, title, *lines):
        d.text(226, y + 14, title, 15, weight=600)
        for k, line in enumerate(lines, 1):
            d.text(226, y + 14 + 20 * k, line, 14)

    y = 24
    d.box(16, y, 10, 66, "lowrank", 0.6)
    d.text(21, y - 8, "*b*", 15, "middle")
    d.frozen(36, y, 34, 66)
    d.text(53, y - 8, "*B*", 15, "middle")
    d.box(90, y, 10, 34, "lowrank", 0.6)
    d.text(95, y - 8, "*d*", 15, "middle")
    d.frozen(110, y, 66, 34)
    d.text(143, y - 8, "*A*", 15, "middle")
    row(y, "VeRA", "one *A*, *B* for the model", "*b*, *d* for each layer")
    y = 136
    d.box(16, y, 10, 34, "lowrank", 0.6)
    d.text(21, y - 8, "*β*", 15, "middle")
    stack(36, y, 18, 66)
    d.text(50, y - 20, "*B*_{j}", 15, "middle")
    d.box(90, y, 10, 34, "lowrank", 0.6)
    d.text(95, y - 8, "*α*", 15, "middle")
    stack(110, y, 66, 18)
    d.text(152, y - 20, "*A*_{i}", 15, "middle")
    row(y, "NOLA", "*A*_{i}, *B*_{j} for each layer", "*α*, *β* for each layer")
    y = 246
    d.box(16, y, 10, 34, "lowrank", 0.6)
    d.text(21, y - 8, "*c*", 15, "middle")
    stack(36, y - 10, 66, 50)
    d.text(76, y - 30, "*Θ*_{i}", 15, "middle")
    row(y - 14, "PRANC", "*Θ*_{i} as large as the weight", "one *c* for the model")
    d.legend(316, ("frozen", "drawn from a seed", 134), ("lowrank", "trained", 66))
    return d


def turn_and_length() -> Drawing:
    d = Drawing(
        "turn-and-length",
        262,
        "A change of a row, taken apart into length and turn",
        "Two arrows from one point: the row w before training, of length c, and the "
        "row w prime after it, longer and turned. The change is the arrow between "
        "their tips. Below, a bar as long as the squared size of the change, in two "
        "pieces: the square of the change in length, which DoRA trains by m, and a "
        "part for the turn, which it trains by B and A.",
    )
    start, old, new = (24, 176), (176, 128), (190, 34)
    d.line(start, old, arrow=True, width=2)
    d.line(start, new, arrow=True, family="lowrank", width=2)
    d.line(old, new, arrow=True, dash="5 4")
    d.text(122, 172, "*w*, length *c*", 14)
    d.text(72, 84, "*w′*, length *c′*", 14, "middle")
    d.text(194, 86, "the change *w′* − *w*", 14)
    c, longer = math.dist(start, old), math.dist(start, new)
    part = 384 * (longer - c) ** 2 / math.dist(old, new) ** 2
    d.box(8, 202, part, 22, "lowrank", 0.6)
    d.box(8 + part, 202, 384 - part, 22, "lowrank", 0.2)
    d.text(8 + part / 2, 218, "(*c′* − *c*)²", 14, "middle")
    d.text(200 + part / 2, 218, "2 *c c′* (1 − cos)", 14, "middle")
    d.text(8, 246, "magnitude: *m*", 14, weight=600)
    d.text(12 + part, 246, "direction: *B* and *A*", 14, weight=600)
    return d


def relatives() -> Drawing:
    d = Drawing(
        "relatives",
        432,
        "The family: what trains beside a frozen weight",
        "Six rows under three headings. A few entries of the weight train: in a fixed "
        "mask (PartialFT, SHiRA, FISH, LT-SFT); in all entries behind gates at first, "
        "then in a fixed mask (DiffPruning); in a mask that moves (SpIEL). Few numbers "
        "in thin factors train: with ranks that go (SoRA), with holes (SparseAdapter). "
        "Both train: factors beside a fixed mask (RoSA).",
    )
    heads = {0: ("Few entries train", "sparse"), 3: ("Thin factors train", "lowrank")}
    heads[5] = ("Both train", None)
    rows = [
        ("PartialFT · SHiRA · FISH · LT-SFT", "fixed: by lot, a score, a first run"),
        ("DiffPruning", "gates on all entries, then fixed"),
        ("SpIEL", "moves: drops the weak, grows the steep"),
        ("SoRA", "a rank goes when its gate is zero"),
        ("SparseAdapter", "the factors themselves have holes"),
        ("RoSA", "factors beside a fixed mask"),
    ]
    some = [(0, 1), (1, 4), (2, 2), (3, 0), (4, 3)]

    def weight(x, y, places=some):
        d.frozen(x, y, 42, 42)
        d.cells(x + 2, y + 2, 8, places, "sparse", 1)

    y = 0
    for k, (names, words) in enumerate(rows):
        if k in heads:
            y += 24
            d.text(8, y, heads[k][0], 15, family=heads[k][1], weight=600)
            y += 10
        if k in (0, 2):
            weight(12, y)
        elif k == 1:
            d.box(12, y, 42, 42, "sparse", 0.25)
            d.cells(14, y + 2, 8, some, "sparse", 1)
        if k == 2:
            d.line((40, y + 22), (30, y + 36), arrow=True, width=2)
        if k == 3:
            for j, fill in enumerate((0.7, 0.0, 0.7)):
                d.box(12 + 9 * j, y, 7, 42, "lowrank", fill, dash="" if fill else "2 2")
                d.box(44, y + 9 * j, 42, 7, "lowrank", fill, dash="" if fill else "2 2")
        elif k == 4:
            for x, w, h in ((12, 24, 42), (44, 42, 24)):
                d.box(x, y, w, h, "lowrank", 0.0)
                down, across = h // 8, w // 8
                holes = [(i, j) for i in range(down) for j in range(across)]
                d.cells(x + 1, y + 1, 8, holes[::2], "lowrank", 1)
        elif k == 5:
            weight(12, y)
            d.box(62, y, 8, 42, "lowrank", 0.7)
            d.box(74, y, 24, 8, "lowrank", 0.7)
        d.text(112, y + 18, names, 14, weight=600)
        d.text(112, y + 36, words, 13)
        y += 54
    return d


def drawings() -> dict[str, str]:
    """File name to SVG."""
    made = [block(name, *rest) for name, rest in BLOCKS.items()]
    made += [factors(), *(holds(kind) for kind in HOLDS), first_step()]
    made += [masks_drawing(), overwrite(), two_adapters(), uuid_pair(), rounds()]
    made += [
        both_factors(),
        few_numbers(),
        subnet_step(),
        subnet_moves(),
        slots(),
        sequence(),
        patches(),
    ]
    made += [turn_and_length(), relatives()]
    return {f"{d.name}.svg": d.svg() for d in made}


def digest(svg: str) -> str:
    return hashlib.sha256(svg.encode()).hexdigest()[:16]


def shows(picture: Path) -> str:
    """The digest of the SVG that a picture was made from, or ""."""
    from PIL import Image

    if not picture.is_file():
        return ""
    with Image.open(picture) as image:
        return image.info.get("svg", "")


def take_pictures(drawn: dict[str, str]) -> None:
    """A picture beside each SVG that has none, or an old one."""
    old = {n: s for n, s in drawn.items() if shows(picture_of(n)) != digest(s)}
    if not old:
        return
    from PIL import Image, PngImagePlugin
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(device_scale_factor=1.2)
        for name, svg in old.items():
            page.set_content(
                '<body style="margin:0;background:#fff;color:#1b1b1b;'
                f'font-family:sans-serif">{svg}</body>'
            )
            shot = page.locator("svg").screenshot()
            image = Image.open(io.BytesIO(shot)).convert("RGB").quantize(64)
            said = PngImagePlugin.PngInfo()
            said.add_text("svg", digest(svg))
            image.save(picture_of(name), pnginfo=said, optimize=True)
        browser.close()


def picture_of(name: str) -> Path:
    return FOLDER / name.replace(".svg", ".png")


def main(argv: list[str]) -> int:
    new = drawings()
    if argv == ["check"]:
        there = {p.name: p.read_text(encoding="utf-8") for p in FOLDER.glob("*.svg")}
        differ = sorted(
            n for n in new.keys() | there.keys() if new.get(n) != there.get(n)
        )
        differ += [
            picture_of(n).name
            for n, s in new.items()
            if shows(picture_of(n)) != digest(s)
        ]
        print("\n".join(f"{n} is not what tools/figures.py writes" for n in differ))
        return bool(differ)
    FOLDER.mkdir(exist_ok=True)
    for name, svg in new.items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
    take_pictures(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
