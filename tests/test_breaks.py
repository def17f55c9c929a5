"""Broken checks of a chapter are noticed by nbval (notebooks/conftest.py)."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

CONFTEST = Path(__file__).parents[1] / "notebooks" / "conftest.py"


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
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) is noticed, done.stdout
    assert ("did not notice: another sum" in done.stdout) is not noticed
