"""tools/notebooks.py: a chapter's cells can be run again, and what cannot is named."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

PATH = Path(__file__).parents[1] / "tools/notebooks.py"


@pytest.fixture(scope="module")
def notebooks():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executed(*cells):
    """A notebook of (source, what is stored or None)."""
    nb = nbformat.v4.new_notebook()
    for n, (source, stored) in enumerate(cells, 1):
        cell = nbformat.v4.new_code_cell(source)
        if stored is not None:
            out = nbformat.v4.new_output("stream", name="stdout", text=stored)
            cell.outputs, cell.execution_count = [out], n
            cell.metadata["tags"] = ["nbval-check-output"]
        nb.cells.append(cell)
    return nb


def test_cells_that_can_be_run_twice(notebooks):
    nb = executed(
        ("x = [1]", None),
        ("y = [*x, 2]\nprint(y)", "[1, 2]\n"),
        ("import itertools\ncount = itertools.count()", None),
        ("print(next(count))", None),  # not stored, so it may differ
    )
    assert list(notebooks.twice(nb)) == []
    assert nb.cells[1].execution_count == 2  # the notebook itself is left alone


def test_cells_that_cannot_are_all_named(notebooks):
    nb = executed(
        ("import sys\nx, z = [1], 0", None),
        ("x.append(2)\nprint(x)", "[1, 2]\n"),
        ("z = z or print('once', file=sys.stderr) or 1", None),
        ("del z", None),
        ("print('new')", "old\n"),
    )
    found = list(notebooks.twice(nb))
    for said, words in zip(
        found,
        (
            "code cell 1, the second time: [('printed', '[1, 2, 2]\\n')] is not",
            "code cell 2, the first time: stderr: once",
            "code cell 3, the second time: NameError: name 'z' is not defined",
            "code cell 4, the first time: [('printed', 'new\\n')] is not what",
            "code cell 4, the second time: [('printed', 'new\\n')] is not",
        ),
        strict=True,
    ):
        assert said.startswith(words), said
