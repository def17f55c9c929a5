"""A table that a page, a screen reader, a terminal and a test can read."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any


class Table:
    """`html()` for the page, `str()` for a terminal: the same in every run."""

    def __init__(
        self, cells: list[list[str]], right: list[bool], caption: str, verdict: str
    ) -> None:
        self.cells, self.right = cells, right  # the first row holds the columns' names
        self.caption, self.verdict = caption, verdict

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(w) if right else cell.ljust(w)
                for cell, w, right in zip(row, widths, self.right, strict=True)
            ).rstrip()
            for row in self.cells
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([self.caption, *lines, *([self.verdict] * bool(self.verdict))])

    __repr__ = __str__

    def html(self) -> str:
        pad = "padding:.2rem .7rem;vertical-align:baseline"
        num = (
            f"{pad};text-align:right;font-variant-numeric:tabular-nums;"
            "white-space:nowrap"
        )
        style = [num if r else f"{pad};text-align:left" for r in self.right]
        e = html.escape
        line = "border-bottom:1px solid rgba(128,128,128,.5)"
        head = "".join(
            f'<th scope="col" style="{s};{line}">{e(c)}</th>'
            for c, s in zip(self.cells[0], style, strict=True)
        )
        body = "".join(
            f'<tr><th scope="row" style="{style[0]};font-weight:inherit">{e(row[0])}'
            "</th>"
            + "".join(
                f'<td style="{s}">{e(c)}</td>'
                for c, s in zip(row[1:], style[1:], strict=True)
            )
            + "</tr>"
            for row in self.cells[1:]
        )
        verdict = f'<p class="hra-verdict">{e(self.verdict)}</p>' * bool(self.verdict)
        name = e(self.caption, quote=True)
        return (
            f'<div class="hra-table" style="margin:1rem 0"><div role="region" '
            f'aria-label="{name}" tabindex="0" style="overflow-x:auto">'
            '<table style="border-collapse:collapse;margin:0">'
            f'<caption style="caption-side:top;text-align:left;color:inherit">'
            f"{e(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
            f"{verdict}</div>"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": str(self)}


def table(
    rows: Sequence[Sequence[Any]] | Mapping[Any, Any],
    columns: Sequence[str] | Mapping[str, Any],
    *,
    caption: str,
    verdict: str = "",
) -> Table:
    """An accessible table with its caption above and the verdict below, which the cell
    writes from the numbers.

    `rows`: lists, the first cell of each names the row; or {name: list of
    cells, or one cell}.
    `columns`: names; or {name: format}, a format being a spec (".2f", ",") or a
    function. Without one, whole numbers are grouped, others have three digits, a pair
    is mean ± half-width, None is an empty cell.
    """
    if not caption.strip():
        raise ValueError(f"caption={caption!r}: say what the table shows.")
    if isinstance(rows, Mapping):
        listed = [
            [name, *(cells if isinstance(cells, list) else [cells])]
            for name, cells in rows.items()
        ]
    else:
        listed = [list(row) for row in rows]
    if not listed:
        raise ValueError("a table needs at least one row.")
    formats = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns)
    names = list(formats)
    for row in listed:
        if len(row) != len(names):
            raise ValueError(
                f"the row of {row[0]!r} has {len(row)} cells for {len(names)} columns: "
                f"{', '.join(names)}."
            )
    cells = [
        [_text(cell, form) for cell, form in zip(row, formats.values(), strict=True)]
        for row in listed
    ]
    right = [
        j > 0 and all(not isinstance(row[j], str) for row in listed)
        for j in range(len(names))
    ]
    return Table([names, *cells], right, caption, verdict)


def _text(cell: Any, form: str | Callable[[Any], str] | None) -> str:
    if cell is None:
        return ""
    if callable(form):
        return form(cell)
    if isinstance(cell, tuple) and len(cell) == 2:
        form = form or ".2f"  # a sign is the mean's
        return f"{_text(cell[0], form)} ± {_text(cell[1], form.replace('+', ''))}"
    if isinstance(cell, str) or isinstance(cell, bool):
        return str(cell)
    if form:
        return format(cell, form)
    if isinstance(cell, Integral):
        return f"{cell:,}"
    return f"{float(cell):.3g}" if isinstance(cell, Real) else str(cell)
