"""The house diagrams: written by the script, readable in both themes and aloud."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hra.viz import style

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "book/figures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def written():
    path = ROOT / "tools/figures.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_writes(written):
    there = {p.name: p.read_text(encoding="utf-8") for p in FILES}
    new = written.drawings()
    differ = sorted(n for n in there.keys() | new.keys() if there.get(n) != new.get(n))
    assert not differ, "run python tools/figures.py"
    old = [
        n
        for n, s in new.items()
        if written.shows(written.picture_of(n)) != written.digest(s)
    ]
    assert not old, "pictures of older drawings: run python tools/figures.py"


def test_the_masks_do_not_hang_on_a_last_bit(written):
    """Next to the last entry that is taken no other has nearly the same score."""
    *_, chosen, scores = written.five_masks()
    for rule, score in scores.items():
        size = score.flatten().sort(descending=True).values
        last, first_left = size[len(chosen[rule]) - 1], size[len(chosen[rule])]
        assert last > first_left * (1 + 1e-6), rule


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_diagram_has_words_and_takes_the_colours_of_the_page(path):
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    title, words = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert len(title.text) > 10 and len(words.text) > 100
    assert root.get("role") == "img"
    assert root.get("aria-describedby") == words.get("id")
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(set(ids)) == len(ids)
    assert all(i.startswith(f"diagram-{path.stem}") for i in ids)
    colours = set(re.findall(r"(?:fill|stroke|color):([^;\"]+)", text))
    fixed = {c for c in colours if not c.startswith(("var(--hra-", "url(#diagram-"))}
    assert fixed <= {"currentColor", "none", "inherit"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_its_text_can_be_read_on_a_phone_of_390_px(path):
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    width = float(root.get("viewBox").split()[2])
    sizes = [float(t.get("font-size")) for t in root.iter(f"{SVG}text")]
    assert min(sizes) * 358 / width >= 11  # 358: the column at 390


def test_a_family_has_the_colour_that_the_plots_give_it(written):
    css = (ROOT / "book/vendor/hra.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--hra-\w+): (#\w{6})", css.split("data-theme")[0]))
    plots = {style.VARIABLES[k]: style.FAMILIES[k] for k in style.VARIABLES}
    assert {f"--hra-{k}": c for k, c in written.COLOURS.items()} == plots
    assert plots.items() <= light.items()


def test_markup(written):
    assert written.text_of("attn.c_attn") == "attn.c_attn"
    assert written.text_of("*W*_{0} < 1") == (
        '<tspan font-style="italic">W</tspan><tspan dy="4" font-size="75%">0</tspan>'
        '<tspan dy="-4"> &lt; 1</tspan>'
    )
