"""Broken checks of a chapter are noticed by nbval (notebooks/conftest.py), and what has
passed is kept for the book (tools/sphinx_ext/hra_book.py).
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = ROOT / "notebooks" / "conftest.py"


# of each chapter: what is broken in a cell of its own, what runs before
NOTICED = [("x + 2", ""), ("x / 0", ""), ("x + 1", "x = 5")]
CHAPTERS = {"01_it": NOTICED, "02_not": [("x + 2", ""), ("1 + x", "")]}


def chapter(broken):
    """A notebook whose cells print `x + 1`, one for each break, and the breaks."""
    cells = [nbformat.v4.new_code_cell("x = 1")]
    for n, _ in enumerate(broken):
        cells.append(nbformat.v4.new_code_cell(f"print(x + 1)  # cell {n}"))
        stored = nbformat.v4.new_output("stream", name="stdout", text="2\n")
        cells[-1].outputs, cells[-1].execution_count = [stored], n + 2
    cells.append(nbformat.v4.new_code_cell("x"))
    shown = nbformat.v4.new_output("execute_result", {"text/plain": "1"})
    shown.execution_count = cells[-1].execution_count = len(broken) + 2
    cells[-1].outputs = [shown]
    breaks = [
        {
            "break": f"another sum, {put}",
            "find": f"print(x + 1)  # cell {n}",
            "put": f"print({put})",
            "first": first,
        }
        for n, (put, first) in enumerate(broken)
    ]
    return nbformat.v4.new_notebook(cells=cells), breaks


def test_a_break_must_change_what_is_printed(tmp_path):
    (tmp_path / "breaks").mkdir()
    (tmp_path / "conftest.py").write_bytes(CONFTEST.read_bytes())
    books = {}
    for name, broken in CHAPTERS.items():
        books[name], breaks = chapter(broken)
        nbformat.write(books[name], tmp_path / f"{name}.ipynb")
        (tmp_path / f"breaks/{name}.yml").write_text(json.dumps(breaks))
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "."]
    env = os.environ | {"HRA_EXECUTED": str(tmp_path / "executed")}
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, env=env)
    # the one that prints the same is told, and no other
    assert "1 failed, 8 passed" in done.stdout, done.stdout
    assert set(re.findall(r"did not notice: (.+)", done.stdout)) == {
        "another sum, 1 + x"
    }
    # a chapter with a break that goes unnoticed is not kept
    kept = tmp_path / "executed"
    assert [path.name for path in kept.iterdir()] == ["01_it.ipynb"]
    check_that_the_book_takes(kept / "01_it.ipynb", books["01_it"])


def test_the_longest_chapters_come_first():
    spec = importlib.util.spec_from_file_location("conftest_of_the_book", CONFTEST)
    book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(book)
    there = {path.stem for path in CONFTEST.parent.glob("*.ipynb")}
    assert set(book.SECONDS) <= there
    cells = [SimpleNamespace(path=Path(f"{n}.ipynb")) for n in ("14_mora", "02_lora")]
    items = [cells[0], cells[0], cells[1], cells[1]]
    book.pytest_collection_modifyitems(items)
    assert items == [cells[1], cells[1], cells[0], cells[0]]


def check_that_the_book_takes(kept, nb):
    pytest.importorskip("sphinx")
    path = ROOT / "tools/sphinx_ext/hra_book.py"
    spec = importlib.util.spec_from_file_location("hra_book_of_test_breaks", path)
    book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(book)
    bare = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(c.source) for c in nb.cells]
    )
    bare.cells.insert(1, nbformat.v4.new_markdown_cell("words"))
    assert book.executed_by_nbval(bare, kept) >= 0
    assert [c.outputs for c in bare.cells if c.cell_type == "code"] == [
        c.outputs for c in nb.cells
    ]
    bare.cells[0].source = "x = 2"
    assert book.executed_by_nbval(bare, kept) is None
