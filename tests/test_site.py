"""The rules of the built pages: each finds the fault that it is for, and no other."""

import functools
import http.server
import importlib.util
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = load(ROOT / "tools/check_site.py")

HEAD = (
    "<!doctype html><html data-theme=dark><style>body{margin:0;background:#121212;"
    "color:#ddd}article{padding:16px}pre{overflow-x:auto;font:8px monospace}"
    "figure{margin:0}</style><main><article><h1>8. Title</h1>"
)
DRAWN = "<svg role=img aria-label=x width=60 height=60><circle cx=30 cy=30 r=9 /></svg>"
CAPTION = "<figcaption><span class=caption-number>Figure 8.1 </span>text</figcaption>"
SHORT = 90 * "x"
EXERCISE = '<div class="exercise admonition"><p class=admonition-title><span class='
THEOREM = (
    '<div class="proof theorem admonition"><p class=admonition-title>'
    "<span class=caption-number>{}</span> (T)</p></div>"
)
WHITE = '<rect width="60" height="60" fill="#fff" />'

GOOD = [
    f"<figure>{DRAWN}{CAPTION}</figure>",
    THEOREM.format("Theorem 8.2 "),
    f"{EXERCISE}caption-number>Exercise 8.1 </span></p></div>",
    f"<div class=highlight><pre>{88 * 'x'}</pre></div>",
    f"<div class=cell_output><div class=highlight><pre>{60 * 'x'}</pre></div></div>",
    f"<div style=overflow-x:auto><table><tr><td>{SHORT}</table></div>",
    '<div class=math><span class=eqno>(8.1)<a href="#">#</a></span></div>',
]
BAD = {
    "a line of code of 90 columns": f"<div class=highlight><pre>{SHORT}</pre></div>",
    "a printed result of 90 columns is cut": "<div class=cell_output>"
    f"<div class=highlight><pre>{SHORT}</pre></div></div>",
    "a table is cut": "<div style=overflow-x:hidden><table><tr><td>"
    f"{SHORT}</table></div>",
    "an equation is cut": "<div class=math><mjx-container>"
    "<svg width=500 height=20></svg></mjx-container></div>",
    "an equation shrinks to 46 %": "<div class=math><mjx-container>"
    '<svg width=780 height=20 style="max-width:100%"></svg></mjx-container></div>',
    "an equation meets its number": "<div class=math><span class=eqno "
    "style=position:absolute>(8.1)</span><mjx-container><svg width=300 height=20>"
    "</svg></mjx-container></div>",
    "a figure without alternative text": f"<figure>{CAPTION}"
    f"{DRAWN.replace('aria-label=x', '')}</figure>",
    "a figure without a caption": f"<figure>{DRAWN}</figure>",
    "a figure without its number": f"<figure>{DRAWN}<figcaption>text</figcaption>"
    "</figure>",
    "a figure is dimmed": f"<figure style=filter:none>{CAPTION}"
    f"{DRAWN.replace('<svg', '<svg style=filter:brightness(.8)')}</figure>",
    "a picture on a pale slab": f"<figure>{CAPTION}"
    f"{DRAWN.replace('<circle', WHITE + '<circle')}</figure>",
    "a theorem without its number": THEOREM.format("Theorem 3 "),
    "an exercise without its number": f"{EXERCISE}x>Exercise</span></p></div>",
    "an equation without its number": "<div class=math><span class=eqno>(1)</span>"
    "</div>",
}


def test_the_home_page_counts_its_findings_and_every_figure_in_them_is_computed():
    home = (ROOT / "book/intro.md").read_text(encoding="utf-8")
    said, found = re.search(
        r"## (\w+) things that we found\n\n(.+?)\n\n", home, re.S
    ).groups()
    items = found.splitlines()
    words = "One Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve"
    words = f"{words} Thirteen Fourteen Fifteen Sixteen".split()
    assert said == words[len(items) - 1]
    assert [i.split(".")[0] for i in items] == [str(k + 1) for k in range(len(items))]
    # one chapter each, in the order of the book
    labels = {}
    for path in sorted((ROOT / "notebooks/text").glob("*.md")):
        labels |= {
            m: path.name for m in re.findall(r"^\((ch:\w+)\)=$", path.read_text(), re.M)
        }
    chapters = [labels[re.search(r"→ \{ref\}`(ch:\w+)`$", i)[1]] for i in items]
    assert chapters == sorted(set(chapters))
    # each figure is computed in a cell of the page, under a name of its own
    named = [a or b for a, b in re.findall(r"^    (\w+)=f?\S|^say\((\w+)=", home, re.M)]
    assert sorted(named) == sorted(set(re.findall(r"\{glue:text\}`(\w+)`", found)))


@pytest.fixture(scope="module")
def page():
    chromium = next(filter(None, map(shutil.which, site.BROWSERS)), None)
    if chromium is None and not os.environ.get("HRA_REQUIRE_BROWSER"):
        pytest.skip("no Chromium found")
    with site.browser(chromium) as ctx:
        yield ctx.new_page()


def findings(page, body, rel="notebooks/08_title.html"):
    page.set_content(HEAD + body)
    found = []
    site.check_rules(page, rel, found.append)
    return sorted({re.sub(" at [0-9]+ px", "", text.split(":")[0]) for text in found})


def test_a_page_that_keeps_the_rules(page):
    assert findings(page, "".join(GOOD)) == []


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_is_found_alone(page, fault):
    found = findings(page, BAD[fault])
    assert len(found) == 1 and found[0].startswith(fault)


@pytest.mark.parametrize(
    ("says", "fault"),
    [
        ("`it says ${d}. It gets ${d} of 100`, d", None),
        ("`it says ${d}. Counting`, d", "the model in the page does not answer"),
        ("'it says 7. It gets 9 of 100', 7", "the model in the page says the same"),
    ],
)
def test_a_model_in_the_page_is_asked_by_keyboard(page, says, fault):
    page.set_content(
        "<div class=hra-draw><button>3</button><button>8</button><p role=status></p>"
        "<svg></svg></div><script>{ const show = (text, p) => { "
        "document.querySelector('p').textContent = text; document.querySelector('svg')"
        ".setAttribute('aria-label', `Probabilities ${p}`); };"
        "for (const b of document.querySelectorAll('button')) b.onclick = () => { "
        f"const d = b.textContent; show({says}); }}; }}</script>"
    )
    found = []
    site.check_drawing(page, page.locator(".hra-draw"), found.append, 300)
    assert len(found) == bool(fault) and all(f.startswith(fault) for f in found)


@pytest.mark.parametrize(
    ("says", "moves", "fault"),
    [
        ("The digit is read as 3; 9 of 100", True, None),
        ("Being loaded; 9 of 100", True, "the pad does not answer"),
        ("The digit is read as 3; 9 of 100", False, "the pad does nothing by keyboard"),
    ],
)
def test_a_pad_is_moved_by_keyboard(page, says, moves, fault):
    page.set_content(
        "<div class=hra-two><button>Commit and see</button><p role=status></p>"
        "<svg role=application tabindex=0></svg></div><script>{ const p = "
        "document.querySelector('p'); document.querySelector('button').onclick = () => "
        f"{{ p.textContent = '{says}'; }}; document.querySelector('svg').onkeydown = "
        f"() => {{ p.textContent += '{'!' if moves else ''}'; }}; }}</script>"
    )
    found = []
    site.check_pad(page, page.locator(".hra-two"), found.append, 300)
    assert len(found) == bool(fault) and all(f.startswith(fault) for f in found)


DIM = (
    "<!doctype html><html lang=en data-theme=light><title>x</title><style>"
    "[data-theme=dark]{background:#121212;color:#ddd}[data-theme=dark] .dim{color:#333}"
    "</style><main><article><h1>8. Title</h1><p>Words, <span class=dim>dim in the dark"
    "</span></p><div class=hra-widget><input type=range max=10 value=3>"
    "<p role=status>The slider says nothing</p></div></article></main></html>"
)


def test_a_page_is_opened_from_a_server_and_from_disk(page, tmp_path):
    (tmp_path / "08_title.html").write_text(DIM)
    serve = functools.partial(site.Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served, disk, axe = [], [], site.load_axe()
    try:
        for base, bad in (
            (f"http://127.0.0.1:{server.server_port}/", served),
            (f"{tmp_path.as_uri()}/", disk),
        ):
            args = page.context, base, "08_title.html", bad, None, axe, None
            assert site.check_page(*args) == 1
    finally:
        server.shutdown()
        server.server_close()
    by_key = "08_title.html: a slider does nothing by keyboard"
    assert disk == [by_key]
    assert {by_key, by_key.replace("keyboard", "mouse")} <= set(served)
    held = [re.search(r"axe, (\w+): ([\w-]+)", text) for text in served]
    found = {m.groups() for m in held if m}
    assert ("dark", "color-contrast") in found
    assert ("light", "color-contrast") not in found
    # a rule that knows no colours is held once
    assert ("light", "label") in found and ("dark", "label") not in found


def test_the_number_is_that_of_the_file(page):
    found = findings(page, THEOREM.format("Theorem 8.2 "), "notebooks/09_title.html")
    assert found == ["a chapter without its number", "a theorem without its number"]
    assert findings(page, THEOREM.format("Theorem 2 "), "book/intro.html") == []


def test_a_page_names_no_live_model():
    book = load(ROOT / "tools/sphinx_ext/hra_book.py")
    context = {"body": f'<div data-hra="1" data-live="{32 * "a"}">x</div>'}
    book.slim_page(None, "a", "page.html", context, None)
    assert context["body"] == '<div data-hra="1">x</div>'


def test_without_a_browser_it_fails_where_one_is_required(monkeypatch, capsys):
    monkeypatch.setattr(site.sys, "argv", ["check_site.py"])
    monkeypatch.setattr(site.shutil, "which", lambda name: None)
    monkeypatch.setattr(site, "BROWSERS", ("no-such-browser",))
    monkeypatch.delenv("HRA_REQUIRE_BROWSER", raising=False)
    assert site.main() == 0
    monkeypatch.setenv("HRA_REQUIRE_BROWSER", "1")
    assert site.main() == 1
    assert "no-such-browser" in capsys.readouterr().out


def test_chapters_are_numbered_by_their_files():
    pytest.importorskip("sphinx_external_toc")
    numbers = load(ROOT / "tools/sphinx_ext/hra_numbers.py")
    assert numbers.chapter("notebooks/08_shira_masks") == 8
    assert numbers.chapter("notebooks/12_shipping") == 12
    assert numbers.chapter("book/intro") is None


def test_what_a_cell_shows_as_a_figure_becomes_one():
    pytest.importorskip("sphinx")
    from docutils import nodes, utils

    figures = load(ROOT / "tools/sphinx_ext/hra_figures.py")
    document = utils.new_document("x")
    raw = nodes.raw(
        text='<figure id="fig:a" class="hra-plot"><svg></svg><figcaption>One <em>two'
        "</em> $x^2$ &amp; three</figcaption></figure>",
        format="html",
    )
    figure = figures.as_figure(document, raw)
    body, caption = figure.children
    assert body.astext() == "<svg></svg>"
    assert caption.astext() == "One two x^2 & three"
    assert [type(c) for c in caption][1::2] == [nodes.emphasis, nodes.math]
    assert figure["ids"] == ["fig-a"] and figure["classes"] == ["hra-plot"]
    assert figures.as_figure(document, nodes.raw(text="<svg></svg>")) is None


WORDS = (
    "<!doctype html><html lang=en><title>x</title><style>body{background:#fff}"
    ".b .c{color:#ddd}</style><main><article><h1>8. Title</h1>"
    "<mjx-container><svg aria-hidden=true width=9 height=9><g /></svg></mjx-container>"
    "<details><summary>Fold</summary><pre><i class=k>if</i></pre></details>"
    "<pre><i class=k>if</i> <i class=k>in</i> <i class=c>a</i> <i class=c>b</i></pre>"
    "<div class=b><pre><i class=c>pale</i> <i class=c>pale</i> <i class=k>or</i>"
    "<i class=k style=color:#eee>own</i></pre></div></article></main></html>"
).replace("<i ", "<span ").replace("</i>", "</span>")  # fmt: skip


def test_axe_is_shown_one_word_of_code_in_each_colour(page):
    axe, left = site.load_axe(), "[...document.querySelectorAll('pre span')]"
    words = "document.querySelector('article').textContent"

    def pale():
        found = axe(page, site.COLOURS)
        assert {v["id"] for v in found} <= {"color-contrast"}
        return [re.sub("<[^>]+>", "", n["html"]) for v in found for n in v["nodes"]]

    page.set_content(WORDS)
    text = page.evaluate(words)
    assert pale() == ["pale", "pale", "own"]
    page.evaluate(site.ONE_OF_EACH)
    assert pale() == ["pale", "own"]
    assert page.evaluate(f"{left}.map((e) => e.textContent)") == [
        *("if", "a"),  # not the one that is folded away
        *("pale", "or", "own"),
    ]
    assert page.evaluate(words) == text
    svg = page.locator("mjx-container svg")
    assert svg.inner_html() == "" and svg.bounding_box()["width"] == 9
