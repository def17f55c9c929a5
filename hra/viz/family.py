"""A table that its reader sorts and filters: many methods, what each does and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import traitlets

from hra.viz.static import StaticWidget
from hra.viz.table import Table, table

GAP = "–"


class FamilyTable(StaticWidget):
    """`rows` and `columns` as `hra.viz.table` takes them: the first cell of a row names
    it, a pair is mean ± half-width; None, NaN and "" are gaps, shown as
    –, always last.

    filters: titles of the columns that get a menu of their values. `sort`: the column
    to sort by, "" for the order given; `choice`: {filter: value}, a filter that is left
    out takes all. noun: what the rows are. Formats and orders are made here, once: the
    page gets words and ranks. Raises ValueError for a column that does not exist, a row
    of another length, a column of words and numbers.
    """

    _js_path = Path(__file__).with_name("family.js")
    columns: Any = traitlets.List().tag(sync=True)  # [title, is it numeric?]
    cells: Any = traitlets.List().tag(sync=True)  # of each row what is shown
    ranks: Any = traitlets.List().tag(sync=True)  # its places by column, None for a gap
    filters: Any = traitlets.Dict().tag(sync=True)  # title -> its values
    noun = traitlets.Unicode().tag(sync=True)
    sort = traitlets.Unicode().tag(sync=True)
    descending = traitlets.Bool(False).tag(sync=True)
    choice: Any = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        rows: Sequence[Sequence[Any]],
        columns: Sequence[str] | Mapping[str, Any],
        filters: Sequence[str] = (),
        *,
        sort: str = "",
        descending: bool = False,
        choice: Mapping[str, str] | None = None,
        noun: str = "methods",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("title", f"The {noun} beside each other")
        kwargs.setdefault(
            "caption",
            "Press the name of a column to sort by it, again to turn the order; a menu "
            "leaves out rows.",
        )
        kwargs.setdefault("alt", f"A table of {len(rows)} {noun}")
        made = table(
            rows, columns, caption=kwargs["title"]
        )  # refuses what does not fit
        titles, *cells = made.cells
        by_column = [_ranks(t, [r[j] for r in rows]) for j, t in enumerate(titles)]
        for row, given in zip(cells, rows, strict=True):
            row[:] = [GAP if _gap(v) else c for c, v in zip(row, given, strict=True)]
        for title in filters:
            check_column(title, titles)
        super().__init__(
            columns=[[t, right] for t, right in zip(titles, made.right, strict=True)],
            cells=cells,
            ranks=[list(r) for r in zip(*by_column, strict=True)],
            filters={
                t: list(dict.fromkeys(row[titles.index(t)] for row in cells))
                for t in filters
            },
            noun=noun,
            sort=sort,
            descending=descending,
            choice=dict(choice or {}),
            **kwargs,
        )
        self.refuse_over_limit(f"{len(rows)} rows are ", "; leave out some")

    def _titles(self) -> list[str]:
        return [title for title, _ in self.columns]

    @traitlets.validate("sort")
    def _check_sort(self, proposal: Any) -> str:
        if proposal["value"] and self.columns:
            check_column(proposal["value"], self._titles(), "sort")
        return proposal["value"]

    @traitlets.validate("choice")
    def _check_choice(self, proposal: Any) -> dict[str, str]:
        for title, value in proposal["value"].items() if self.columns else ():
            check_column(title, list(self.filters), "choice")
            if value not in self.filters[title]:
                raise ValueError(
                    f"choice={value!r} of {title!r} is none of these: "
                    f"{', '.join(self.filters[title])}; for all leave {title!r} out."
                )
        return proposal["value"]

    def _shown(self) -> list[int]:
        """The rows that are shown, in their order."""
        titles = self._titles()
        rows = [
            i
            for i, row in enumerate(self.cells)
            if all(row[titles.index(t)] == v for t, v in self.choice.items())
        ]
        if not self.sort:
            return rows
        j, sign = titles.index(self.sort), -1 if self.descending else 1
        return sorted(
            rows,  # gaps last in either order
            key=lambda i: (r := self.ranks[i][j], (r is None, sign * (r or 0)))[1],
        )

    def facts(self) -> list[str]:
        """The names of the rows that are shown, in their order."""
        return [self.cells[i][0] for i in self._shown()]

    def summary(self) -> str:
        rows, titles = self._shown(), self._titles()
        chosen = ", ".join(f"{t}: {v}" for t, v in self.choice.items())
        said = f"{len(rows)} of {len(self.cells)} {self.noun}"
        said += f" ({chosen})" if chosen else ""
        names = self.facts()
        if self.sort:
            j = titles.index(self.sort)
            names = [self.cells[i][0] for i in rows if self.ranks[i][j] is not None]
            words = ("A to Z", "Z to A"), ("smallest first", "largest first")
            said += f", by {self.sort}, {words[self.columns[j][1]][self.descending]}"
        ends = names if len(names) < 4 else [names[0], "…", names[-1]]
        gaps = len(rows) - len(names)
        said += f": {', '.join(ends)}" if ends else ""
        return said + (f"; {gaps} without {self.sort}, last" if gaps else "")

    def table(self) -> Table:
        """What is shown, as `hra.viz.table` would show it."""
        right = [numeric for _, numeric in self.columns]
        cells = [self._titles(), *(self.cells[i] for i in self._shown())]
        return Table(cells, right, self.title, self.summary())

    def fallback_figure(self) -> Any:
        from hra.viz.style import figure

        lines = str(self.table()).split("\n")[1:-1]
        width, height = 0.08 * max(map(len, lines)) + 0.1, 0.16 * len(lines) + 0.1
        fig, ax = figure(
            width, height, caption=self.caption or self.alt, alt=self.summary()
        )
        ax.axis("off")
        ax.text(0, 1, "\n".join(lines), family="monospace", fontsize=9.5, va="top")
        return fig


def check_column(title: str, titles: Sequence[str], name: str = "filters") -> None:
    """Raises ValueError that says which columns there are."""
    if title not in titles:
        raise ValueError(f"{name}: no {title!r}; there are {', '.join(titles)}.")


def _gap(cell: Any) -> bool:
    value = cell[0] if isinstance(cell, tuple) else cell
    return value is None or value == "" or value != value


def _ranks(title: str, cells: list[Any]) -> list[int | None]:
    """The place of each cell among the column's different values, None for a gap."""
    keys = [c[0] if isinstance(c, tuple) else c for c in cells]
    some = [k for k, c in zip(keys, cells, strict=True) if not _gap(c)]
    words = {isinstance(k, str) for k in some}
    if len(words) > 1 or not all(isinstance(k, (str, Real)) for k in some):
        raise ValueError(
            f"the column {title!r} has {', '.join(map(repr, some[:6]))}; give words or "
            "numbers, and None for a gap."
        )
    keys = [k.casefold() if isinstance(k, str) else k for k in keys]
    order = {k: i for i, k in enumerate(sorted({k for k in keys if not _gap(k)}))}
    return [order.get(k) for k in keys]
