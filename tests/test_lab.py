"""Readers' notebooks: nothing of MyST is left, and nothing is lost on the way."""

import base64
import importlib.util
import inspect
import json
import textwrap
from pathlib import Path

import nbformat
import pytest

import hra

ROOT = Path(__file__).parents[1]
NUMBERED = {
    "thm:a": "Theorem 7.1",
    "ex:a": "Exercise 7.1",
    "equation-eq-a": "(7.1)",
    "fig-a": "Figure 7.1",
}
CHAPTER = """\
(ch:made-up)=
# Made up

**Why?** As {cite:t}`hu2021` say {cite}`hu2021,kopiczko2023`; `{ref}` is code.

```{figure} ../book/figures/block.svg
:name: fig:a
:alt: A block.

The caption, and {numref}`fig:a`.
```

```{math}
:label: eq:a
y = x
```

:::{prf:theorem} Of {eq}`eq:a`
:label: thm:a
It holds, see {ref}`its own words <ch:made-up>`.
:::

:::{admonition} Proof
:class: dropdown
By {prf:ref}`thm:a`:

```{math}
z = y
```
:::

```{literalinclude} ../hra/methods/lora.py
:pyobject: LoRA.forward
```

```{code-cell}
:tags: [hide-input, nbval-check-output]

print(1)
```

:::{exercise-start} ★ By hand
:label: ex:a
Do it. {ref}`ch:made-up`
:::

:::{exercise-end}
:::

:::{solution-start} ex:a
:class: dropdown
:::

Like this:

```{code-cell}
assert True
```

:::{solution-end}
:::

## Further reading
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """tools/lab.py on a book of one chapter, and the chapter."""
    path = ROOT / "tools/lab.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    lab = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lab)
    for folder in ("notebooks/text", "html/notebooks", "book/figures", "hra/methods"):
        (tmp_path / folder).mkdir(parents=True)
    for name in (
        "book/references.bib",
        "book/figures/block.png",
        "hra/methods/lora.py",
    ):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    marks = "".join(
        f'<div id="{k}"><span class="caption-number">{v} </span></div>'
        for k, v in NUMBERED.items()
    )
    (tmp_path / "html/notebooks/07_made_up.html").write_text(marks, "utf-8")
    monkeypatch.setattr(lab, "ROOT", tmp_path)
    lab.chapter = tmp_path / "notebooks/text/07_made_up.md"
    return lab


def setting(address):
    context = {"html_context": {"repository": address}}
    return json.dumps({"sphinx": {"config": context}})


def made(lab, text=CHAPTER, site="../html/"):
    """The readers' notebook of a text, whose twin holds what it printed."""
    for memory in (lab.labels, lab.number, lab.page, lab.references):
        memory.cache_clear()
    lab.chapter.write_text(text, "utf-8")
    twin = lab.jupytext.read(lab.chapter, fmt=lab.FMT)
    for c in twin.cells:
        if "nbval-check-output" in c.metadata.get("tags", []):
            c.execution_count = 1
            c.outputs = [nbformat.v4.new_output("stream", text="1\n")]
    nbformat.write(twin, lab.chapter.parents[1] / "07_made_up.ipynb")
    return lab.notebook(lab.chapter, lab.ROOT / "html", site)


def test_the_notebook_reads_like_the_page(lab):
    nb = made(lab)
    nbformat.validate(nb)
    text = "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    for said in (
        "As [Hu et al. (2022)](../html/book/bibliography.html) say",
        "(Hu et al., 2022; Kopiczko et al., 2024)",
        "`{ref}` is code",
        "**Figure 7.1.** The caption, and "
        "[Figure 7.1](../html/notebooks/07_made_up.html#fig-a).",
        "$$\ny = x \\tag{7.1}\n$$",
        "**Theorem 7.1 (Of [(7.1)](../html/notebooks/07_made_up.html#equation-eq-a)).",
        "[its own words](../html/notebooks/07_made_up.html#ch-made-up)",
        "**Proof.** By [Theorem 7.1](../html/notebooks/07_made_up.html#thm:a)",
        "$$\nz = y\n$$ ∎",
        "### Exercise 7.1 (★ By hand)\n\nDo it. [Made up]",
        "#### Solution of exercise 7.1",
        "## Further reading",
    ):
        assert said in text, said
    source = textwrap.dedent(inspect.getsource(hra.LoRA.forward)).strip()
    assert f"```python\n{source}\n```" in text
    (picture,) = (c.attachments for c in nb.cells if "attachments" in c)
    assert "![A block.](attachment:block.png)" in text
    assert base64.b64decode(picture["block.png"]["image/png"]) == (
        (ROOT / "book/figures/block.png").read_bytes()
    )


def test_what_is_folded_hidden_and_kept(lab):
    nb = made(lab)
    assert nb.cells[0].source.startswith("# Made up")
    assert '"google.colab" in sys.modules' in nb.cells[1].source
    code = [c for c in nb.cells if c.cell_type == "code"]
    hidden = [c.metadata.get("jupyter", {}).get("source_hidden") for c in code]
    assert hidden == [True, True, None]
    assert [len(c.outputs) for c in code] == [0, 1, 0]
    assert code[1].execution_count == 2  # after the cell for Colab
    assert code[1].metadata.tags == ["hide-input", "nbval-check-output"]
    folded = [c for c in nb.cells if c.metadata.get("jp-MarkdownHeadingCollapsed")]
    # the heading alone: what stands below it is what is folded
    assert [c.source for c in folded] == ["#### Solution of exercise 7.1"]
    assert nbformat.writes(nb) == nbformat.writes(made(lab))


def test_without_a_site_references_are_words(lab):
    text = "\n".join(c.source for c in made(lab, site=None).cells)
    assert "](" not in text.replace("](attachment:", "")
    assert "Do it. Made up" in text and "As Hu et al. (2022) say" in text


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        ("{abbr}`x`", r"07_made_up.md: the role \{abbr\}"),
        (":::{tab-set}\nx\n:::", r"the directive \{tab-set\}"),
        ("{ref}`ch:none`", "no label 'ch:none'"),
        ("{prf:ref}`ch:made-up`", "gives it no number"),
        ("{cite}`nobody1999`", "'nobody1999' is not in"),
        ("```{figure} ../book/figures/none.svg\n```", "none.png is not there"),
        (
            "```{literalinclude} ../hra/methods/lora.py\n:pyobject: LoRA.none\n```",
            "has no LoRA.none",
        ),
        ("```{math}\nx", "is not closed"),
        ("  :::{note}\n  x\n  :::", "is left"),
    ],
)
def test_what_it_does_not_know_is_an_error(lab, piece, said):
    with pytest.raises(lab.Unknown, match=said):
        made(lab, CHAPTER + "\n" + piece)


def test_a_readers_changes_are_left_alone(lab, tmp_path, monkeypatch):
    made(lab)
    (tmp_path / "_config.yml").write_text(setting(""))
    folder = tmp_path / "lab"
    run = [str(folder), "--html", str(tmp_path / "html"), "--keep"]
    assert lab.main(run) == 0
    path = folder / "07_made_up.ipynb"
    first = path.read_bytes()
    nb = nbformat.read(path, 4)
    nb.cells[2].outputs, nb.cells[2].execution_count = [], 7  # run, not edited
    nbformat.write(nb, path)
    assert lab.main(run) == 0 and path.read_bytes() == first
    nb.cells[0].source += "\n\nMy note."
    nbformat.write(nb, path)
    mine = path.read_bytes()
    assert lab.main(run) == 0 and path.read_bytes() == mine
    assert lab.main(run[:-1]) == 0 and path.read_bytes() == first
    # a failure writes nothing
    lab.chapter.write_text(CHAPTER + "{abbr}`x`", "utf-8")
    assert lab.main(run[:-1]) == 1 and path.read_bytes() == first


def test_the_address_is_one_setting(lab, tmp_path):
    made(lab)
    for url, source in (
        ("", '"hra[viz,peft]"'),
        ("https://a.b/c", "git+https://a.b/c"),
    ):
        (tmp_path / "_config.yml").write_text(setting(url))
        args = [str(tmp_path / "lab"), "--html", str(tmp_path / "html")]
        assert lab.main(args) == 0
        cells = nbformat.read(tmp_path / "lab/07_made_up.ipynb", 4).cells
        assert source in cells[1].source


def test_a_page_opens_elsewhere_once_there_is_an_address():
    path = ROOT / "tools/sphinx_ext/hra_book.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(book)

    def buttons(page, address):
        context = {"header_buttons": [], "repository": address}
        book.open_elsewhere(None, page, "page.html", context, None)
        return [b["url"] for b in context["header_buttons"]]

    assert buttons("notebooks/02_lora", "https://github.com/a/b/") == [
        "https://colab.research.google.com/github/a/b/blob/gh-pages/"
        "_sources/notebooks/02_lora.ipynb"
    ]
    assert buttons("book/intro", "https://github.com/a/b") == []
    assert buttons("notebooks/02_lora", "") == []
