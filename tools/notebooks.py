"""Keep notebooks/*.ipynb and their reviewable twins notebooks/text/*.md in step.

    python tools/notebooks.py refresh [name ...]   text -> ipynb, executed
    python tools/notebooks.py pull    [name ...]   ipynb (edited in Jupyter) -> text
    python tools/notebooks.py check                changes nothing; no kernel
    python tools/notebooks.py twice   [name ...]   each cell run twice; changes nothing

An output is kept only in a cell tagged `nbval-check-output`, together with its
execution count: without the count nbval compares nothing, or fails with "Unrun
reference cell has outputs".

`check` holds every chapter to its twin, its committed form, its lines and columns, and
asks that each of its checks (a stored output, or an assert) is broken once in
notebooks/breaks (see notebooks/conftest.py).

`twice` runs each code cell, and at once again, as a reader does who changes one number
in it: no error, nothing on stderr, and the second time a kept output is what is stored.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1] / "notebooks"
TEXT = ROOT / "text"
KEEP = "nbval-check-output"
KERNEL = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
LIMIT = 100_000  # bytes of one committed notebook
LINES, COLUMNS = 15, 88  # of a cell that is not hidden, of any
FMT = {"extension": ".md", "format_name": "myst"}


def tags(cell):
    return cell.metadata.get("tags", [])


def merged(outputs):
    """One text for what a cell printed: where the kernel cuts it is chance."""
    out = []
    for o in outputs:
        if o.output_type == "stream" and out and out[-1].get("name") == o.name:
            out[-1].text += o.text
        else:
            out.append(o)
    return out


def clean(nb):
    """The one committed form of a notebook."""
    nb = nbformat.from_dict(nb)
    nb.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    nb.nbformat, nb.nbformat_minor = 4, 5
    n = 0
    for i, c in enumerate(nb.cells):
        c.id = f"{i:03d}-" + hashlib.sha256(c.source.encode()).hexdigest()[:8]
        c.metadata = nbformat.from_dict(
            {k: c.metadata[k] for k in ("mystnb", "tags") if c.metadata.get(k)}
        )
        if c.cell_type != "code":
            continue
        n += 1
        if KEEP in tags(c) and c.get("outputs"):
            c.execution_count = n
            c.outputs = merged(c.outputs)
            for o in c.outputs:
                if "execution_count" in o:
                    o.execution_count = n
                o.pop("transient", None)
        else:
            c.outputs, c.execution_count = [], None
    return nb


def source(nb):
    return [
        (c.cell_type, c.source, tags(c), c.metadata.get("mystnb")) for c in nb.cells
    ]


def breaks(chapter, nb):
    """What notebooks/breaks/NN_name.yml lacks, or has and should not."""
    cells = [c for c in nb.cells if c.cell_type == "code"]
    checks = {
        i for i, c in enumerate(cells) if KEEP in tags(c) or "assert " in c.source
    }
    path = ROOT / "breaks" / f"{chapter}.yml"
    given = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else []
    broken = set()
    for b in given:
        where = {i for i, c in enumerate(cells) if b["find"] in c.source}
        if len(where) != 1 or not where <= checks:
            what = "is no check" if len(where) == 1 else f"is in {len(where)} cells"
            yield f"break {b['break']!r}: what it looks for {what}"
        broken |= where
    for i in sorted(checks - broken):
        yield f"code cell {i} is a check that no break tries: {cells[i].source[:60]!r}"


def problems(nb_path):
    nb = nbformat.read(nb_path, as_version=4)
    md = TEXT / (nb_path.stem + ".md")
    if not md.exists():
        yield "has no text twin"
    elif source(jupytext.read(md, fmt=FMT)) != source(nb):
        yield f"differs from {md.relative_to(ROOT.parent)}"
    if nbformat.writes(clean(nb)) + "\n" != nb_path.read_text(encoding="utf-8"):
        yield "is not in its committed form (outputs, metadata or ids)"
    if nb_path.stat().st_size > LIMIT:
        yield f"is over {LIMIT} bytes"
    yield from breaks(nb_path.stem, nb)
    for i, c in enumerate(c for c in nb.cells if c.cell_type == "code"):
        lines = c.source.splitlines()
        if len(lines) > LINES and not {"hide-cell", "hide-input"} & set(tags(c)):
            yield f"code cell {i} stands open and has {len(lines)} lines, over {LINES}"
        if max(map(len, lines), default=0) > COLUMNS:
            yield f"code cell {i} has a line over {COLUMNS} columns"
        if KEEP in tags(c):
            if not c.outputs or c.execution_count is None:
                yield f"code cell {i} is tagged {KEEP} but keeps no output"
            if c.source.rstrip().endswith(";"):
                yield f"code cell {i}: nbval ignores the closing semicolon"
        if any(w in c.source for w in ("NBVAL_", "ipywidgets")):
            yield f"code cell {i}: tags, not NBVAL comments; hra.viz, not ipywidgets"


def said(outputs):
    """What a cell printed, and the texts that it showed."""
    texts = [("printed", o.text) for o in merged(outputs) if o.output_type == "stream"]
    for o in outputs:
        texts += [
            kv for kv in sorted(o.get("data", {}).items()) if kv[0][:5] == "text/"
        ]
    return texts


def twice(nb):
    """What goes wrong when each code cell of an executed notebook is run twice."""
    from nbclient import NotebookClient

    nb = nbformat.from_dict(nb)
    folder = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(nb, timeout=600, kernel_name="python3", resources=folder)
    client.allow_errors = True  # all that is wrong, not the first alone
    with client.setup_kernel():
        code = [(i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code"]
        for n, (i, cell) in enumerate(code):
            stored = said(cell.outputs)
            for time in ("first", "second"):
                client.execute_cell(cell, i)
                where = f"code cell {n}, the {time} time: "
                for o in cell.outputs:
                    if o.output_type == "error":
                        yield f"{where}{o.ename}: {o.evalue}"
                    elif o.get("name") == "stderr":
                        yield f"{where}stderr: {o.text}"
                again = said(cell.outputs)
                if KEEP in tags(cell) and again != stored:
                    yield f"{where}{again} is not what is stored: {stored}"


def main(argv):
    cmd, names = (argv[0] if argv else "check"), argv[1:]
    if cmd == "refresh":
        from nbclient import NotebookClient

        for md in sorted(TEXT.glob("*.md")):
            if names and md.stem not in names:
                continue
            nb = jupytext.read(md, fmt=FMT)
            nb.metadata["kernelspec"] = KERNEL
            NotebookClient(
                nb,
                timeout=600,
                kernel_name="python3",
                resources={"metadata": {"path": str(ROOT)}},
            ).execute()
            (ROOT / (md.stem + ".ipynb")).write_text(
                nbformat.writes(clean(nb)) + "\n", encoding="utf-8"
            )
        return 0
    if cmd == "pull":
        for p in sorted(ROOT.glob("*.ipynb")):
            if not names or p.stem in names:
                nb = clean(nbformat.read(p, as_version=4))
                jupytext.write(nb, TEXT / (p.stem + ".md"), fmt=FMT)
                p.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
        return 0
    if cmd == "twice":
        bad = []
        for p in sorted(ROOT.glob("*.ipynb")):
            if not names or p.stem in names:
                found = [f"{p.name} {m}" for m in twice(nbformat.read(p, as_version=4))]
                print("\n".join(found) or f"{p.name}: each cell runs twice", flush=True)
                bad += found
        return bool(bad)
    bad = [f"{p.name} {m}" for p in sorted(ROOT.glob("*.ipynb")) for m in problems(p)]
    bad += [
        f"text/{m.name} has no notebook"
        for m in sorted(TEXT.glob("*.md"))
        if not (ROOT / (m.stem + ".ipynb")).exists()
    ]
    print("\n".join(bad) or "notebooks: ok")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
