"""Broken checks of a chapter are noticed by nbval (notebooks/conftest.py), and what has
passed is kept for the book (tools/sphinx_ext/hra_book.py).
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = ROOT / "notebooks" / "conftest.py"


@pytest.mark.parametrize(
    ("put", "first", "noticed"),
    [
        ("x + 2", "", True),
        ("x / 0", "", True),
        ("x + 1", "x = 5", True),
        ("1 + x", "", False),
    ],
)
def test_a_break_must_change_what_is_printed(tmp_path, put, first, noticed):
    stored = nbformat.v4.new_output("stream", name="stdout", text="2\n")
    cells = [nbformat.v4.new_code_cell(s) for s in ("x = 1", "print(x + 1)", "x")]
    cells[1].outputs, cells[1].execution_count = [stored], 2
    cells[2].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "1"})]
    cells[2].execution_count = cells[2].outputs[0].execution_count = 3
    nb = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(nb, tmp_path / "01_it.ipynb")
    (tmp_path / "breaks").mkdir()
    (tmp_path / "breaks" / "01_it.yml").write_text(
        f"- break: another sum\n  find: x + 1\n  put: {put}\n  first: {first!r}\n"
    )
    (tmp_path / "conftest.py").write_bytes(CONFTEST.read_bytes())
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "."]
    env = os.environ | {"HRA_EXECUTED": str(tmp_path / "executed")}
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert (done.returncode == 0) is noticed, done.stdout
    assert ("did not notice: another sum" in done.stdout) is not noticed
    kept = tmp_path / "executed/01_it.ipynb"
    assert kept.is_file() is noticed
    if noticed:
        check_that_the_book_takes(kept, nb)


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
