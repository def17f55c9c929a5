"""tools/check_lab.py sees what is broken in a notebook; that it passes sound ones,
`make site` shows.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

TOOLS = Path(__file__).parents[1] / "tools"
WIDGET = "import torch\nfrom hra import viz\nviz.RankSlider(torch.eye(6), r=2)"
STUCK = """\
import itertools, types, torch
from hra import viz

class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)  # its batches have 8 columns

    def forward(self, x):
        return types.SimpleNamespace(loss=self.layer(x).square().mean())

x = torch.ones(2, 8)
viz.live(Toy, lambda: itertools.repeat({"x": x}), lambda m: m(x).loss.item(),
         viz.RankSlider(torch.eye(4)), targets={"all": "layer"}, steps=10**6)"""
# the module of a live widget no longer takes its name in the page (base.js, enlist)
NAMELESS = """\
from hra import viz
right = viz.RankSlider._esm
viz.RankSlider._esm = right.replace("models.set(name, model);", "")
assert viz.RankSlider._esm != right"""
UNBOUND = """\
import sys
sys.modules["hra.viz.live"].BOUNDS["lr"] = (1e-4, 10.0)"""
LOUD = """\
import sys
from IPython.display import HTML
print("a warning", file=sys.stderr)
HTML("<script>console.error('ours')</script><img src='http://elsewhere.invalid/x'>")"""
BROKEN = [NAMELESS, UNBOUND, LOUD, WIDGET, STUCK, "1 / 0"]
SEEN = (
    "broken: cell 2: stderr: a warning",
    "broken: cell 5: ZeroDivisionError: division by zero",
    "broken: widget 1, slider 1 does not reach the kernel",
    "broken: the panel does not train: 'Stopped: mat1",
    "broken: a learning rate of 5 is not refused",
    "broken: console: ours",
)


@pytest.fixture(scope="module")
def check_lab():
    sys.path.insert(0, str(TOOLS))  # it imports its neighbours
    try:
        spec = importlib.util.spec_from_file_location(
            "check_lab", TOOLS / "check_lab.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(TOOLS))


def test_what_is_broken_is_seen(check_lab, tmp_path, monkeypatch):
    found = next((b for b in check_lab.BROWSERS if shutil.which(b)), None)
    if found is None and "HRA_REQUIRE_BROWSER" not in os.environ:
        pytest.skip("no Chromium found")
    from playwright.sync_api import sync_playwright

    def write(folder, *_):
        folder.mkdir()
        cells = [nbformat.v4.new_code_cell(s) for s in BROKEN]
        nb = nbformat.v4.new_notebook(cells=cells)
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(nb, folder / "broken.ipynb")

    monkeypatch.setattr(check_lab.lab, "write", write)
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=shutil.which(found), args=check_lab.ARGS
        )
        jupyter = check_lab.Lab(tmp_path, browser)
        try:
            bad = check_lab.check(jupyter, "broken", browser, None, True)
        finally:
            jupyter.close()
            browser.close()
    for words in SEEN:
        assert any(b.startswith(words) for b in bad), (words, bad)
    assert set(jupyter.outside) == {"http://elsewhere.invalid/x"}
