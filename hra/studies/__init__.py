"""The book's long runs, a file each; their records travel with the package."""

from hra.studies.study import (
    Study,
    choose,
    interval,
    machine,
    paired,
    record,
    rows,
    select,
)

__all__ = [
    "Study",
    "choose",
    "interval",
    "machine",
    "paired",
    "record",
    "rows",
    "select",
]
