"""Readers' notebooks: the chapters as plain notebooks that run anywhere.

    python tools/lab.py FOLDER [--site LINK] [--html _build/html] [--keep]

Each `notebooks/text/NN_name.md` becomes `FOLDER/NN_name.ipynb`, in Markdown that every
notebook program shows: theorems and exercises under their numbers on the site, sources
in place of `literalinclude`, citations as "Hu et al. (2021)", diagrams attached, the
solutions below a folded heading. The numbers are read from the built site, so `make
book` comes first. Cross-references link to the site: to `--site`, an address or a path
from FOLDER; without one they are words.

The outputs that nbval compares stay; all others are made by whoever runs the notebook.
A directive or role that is not known here is an error. --keep: a notebook that was
changed since it was written is left alone.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import re
import sys
import textwrap
from functools import cache
from pathlib import Path

import jupytext
import nbformat
import pybtex.database
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
OPEN = re.compile(r"^(?P<fence>:{3,}|`{3,})\{(?P<name>[\w:-]+)\} *(?P<arg>.*)$")
OPTION = re.compile(r"^:(?P<key>[\w-]+): *(?P<value>.*)$")
# a role, or code, in which nothing is a role
ROLE = re.compile(
    r"\{(?P<name>[\w:]+)\}`(?P<text>[^`]+)`|^```.*?^```$|`[^`\n]+`", re.S | re.M
)
TARGET = re.compile(r"^\((?P<label>[\w:-]+)\)=$")
LEFT = re.compile(r"^ *:::.*|^ *`{3,}\{.*|\{[a-z:]+\}`|^\([\w:-]+\)=$", re.M)
FMT = {"extension": ".md", "format_name": "myst"}
COLAB = """\
# On Colab this installs what the chapter imports; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install -q "hra[viz,peft]{source}"
"""


class Unknown(ValueError):
    """What cannot be turned into plain Markdown, and where it stands."""


# ---- what the site and the bibliography know


@cache
def labels() -> dict[str, tuple[str, str]]:
    """{label: (page without its ending, the heading below it or "")}."""
    found = {}
    for path in [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/text/*.md")]:
        page = f"{'notebooks' if path.parent.name == 'text' else 'book'}/{path.stem}"
        lines = path.read_text("utf-8").splitlines()
        for i, line in enumerate(lines):
            if target := TARGET.match(line):
                heading = next((s for s in lines[i + 1 :] if s.strip()), "")
                found[target["label"]] = (page, heading.lstrip("# "))
            elif (m := OPTION.match(line)) and m["key"] in ("label", "name"):
                found[m["value"].strip()] = (page, "")
    return found


@cache
def page(html: Path, name: str) -> BeautifulSoup:
    path = html / f"{name}.html"
    if not path.is_file():
        raise Unknown(f"{path} is not there; `make book` writes it.")
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


@cache
def number(html: Path, label: str) -> tuple[str, str]:
    """("Theorem 8.2", anchor) as the page has them; for an equation "(8.1)"."""
    if label not in labels():
        raise Unknown(f"there is no label {label!r}.")
    of = page(html, labels()[label][0])
    plain = label.replace(":", "-")
    for anchor in (label, plain, f"equation-{plain}"):
        at = of.find(id=anchor)
        said = at and at.select_one(".caption-number, .eqno")
        if said:
            return said.get_text().replace("#", "").strip(), anchor
    raise Unknown(f"the page of {label!r} gives it no number.")


@cache
def references() -> dict[str, tuple[str, str]]:
    """{key: ("Hu et al.", "2022")}."""
    found = {}
    path = ROOT / "book/references.bib"
    for key, entry in pybtex.database.parse_file(str(path)).entries.items():
        names = [" ".join(p.last_names) for p in entry.persons["author"]]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        found[key] = (re.sub(r"[{}]", "", who), entry.fields["year"])
    return found


# ---- Markdown


class Chapter:
    """One chapter on its way from MyST to a plain notebook."""

    def __init__(self, path: Path, html: Path, site: str | None) -> None:
        self.path, self.html, self.site = path, html, site
        self.attachments: dict[str, dict[str, str]] = {}

    def link(self, words: str, to: str) -> str:
        return words if self.site is None else f"[{words}]({self.site}{to})"

    def role(self, match: re.Match[str]) -> str:
        name, text = match["name"], match["text"]
        if name is None:
            return match[0]
        if name in ("ref", "doc") and (own := re.match(r"(.*?) *<(.+)>$", text, re.S)):
            words, text = own.groups()
        else:
            words = ""
        if name == "ref":
            if text not in labels():
                raise Unknown(f"there is no label {text!r}.")
            of, heading = labels()[text]
            return self.link(words or heading, f"{of}.html#{text.replace(':', '-')}")
        if name in ("numref", "eq", "prf:ref"):
            said, anchor = number(self.html, text)
            return self.link(said, f"{labels()[text][0]}.html#{anchor}")
        if name == "term":
            return self.link(text, f"book/glossary.html#term-{text.replace(' ', '-')}")
        if name in ("cite", "cite:t", "cite:p"):
            keys = [k.strip() for k in text.split(",")]
            if missing := [k for k in keys if k not in references()]:
                raise Unknown(f"{missing[0]!r} is not in book/references.bib.")
            who = [references()[k] for k in keys]
            if name == "cite:t":
                said = ", ".join(f"{a} ({year})" for a, year in who)
            else:
                said = "(" + "; ".join(f"{a}, {year}" for a, year in who) + ")"
            return self.link(said, "book/bibliography.html")
        raise Unknown(f"the role {{{name}}} is not known to tools/lab.py.")

    def markdown(self, text: str) -> str:
        """Plain Markdown for a piece of MyST."""
        out, lines = [], text.splitlines()
        while lines:
            line = lines.pop(0)
            begin = OPEN.match(line)
            if begin is None:
                out += [] if TARGET.match(line) else [line]
                continue
            fence = begin["fence"]
            try:
                end = next(
                    i
                    for i, s in enumerate(lines)
                    if re.fullmatch(rf"{fence[0]}{{{len(fence)},}}", s.strip())
                )
            except StopIteration:
                raise Unknown(f"{line!r} is not closed.") from None
            body, lines = lines[:end], lines[end + 1 :]
            options = {}
            while body and (option := OPTION.match(body[0])):
                options[option["key"]] = option["value"].strip()
                body.pop(0)
            inner = "\n".join(body).strip("\n")
            out.append(self.directive(begin["name"], begin["arg"], options, inner))
        return ROLE.sub(self.role, "\n".join(out))

    def directive(self, name: str, arg: str, options: dict[str, str], body: str) -> str:
        if name == "math":
            tag = ""
            if label := options.get("label"):
                tag = rf" \tag{{{number(self.html, label)[0].strip('()')}}}"
            return f"$$\n{body}{tag}\n$$"
        if name in ("prf:theorem", "prf:definition", "prf:lemma", "prf:corollary"):
            said = number(self.html, options["label"])[0]
            title = f" ({arg})" if arg else ""
            return f"**{said}{title}.** {self.markdown(body)}"
        if name == "prf:proof" or (name == "admonition" and arg == "Proof"):
            return f"**Proof.** {self.markdown(body)} ∎"
        if name in ("admonition", "note", "tip", "warning", "important"):
            return f"**{arg or name.capitalize()}.** {self.markdown(body)}"
        if name == "exercise-start":
            said = number(self.html, options["label"])[0]
            return f"### {said} ({arg})\n\n{self.markdown(body)}".rstrip()
        if name == "solution-start":
            return f"#### Solution of {number(self.html, arg)[0].lower()}"
        if name in ("exercise-end", "solution-end"):
            return ""
        if name == "figure":
            return self.figure(arg, options, body)
        if name == "literalinclude":
            return self.source(arg, options)
        raise Unknown(f"the directive {{{name}}} is not known to tools/lab.py.")

    def figure(self, arg: str, options: dict[str, str], body: str) -> str:
        picture = (self.path.parents[1] / arg).resolve().with_suffix(".png")
        if not picture.is_file():
            raise Unknown(f"{picture.name} is not there; tools/figures.py writes it.")
        data = base64.b64encode(picture.read_bytes()).decode()
        self.attachments[picture.name] = {"image/png": data}
        said = (
            f"**{number(self.html, options['name'])[0]}.** "
            if "name" in options
            else ""
        )
        alt = options.get("alt", "")
        return f"![{alt}](attachment:{picture.name})\n\n{said}{self.markdown(body)}"

    def source(self, arg: str, options: dict[str, str]) -> str:
        path = (self.path.parents[1] / arg).resolve()
        text = path.read_text("utf-8")
        node: ast.AST = ast.parse(text)
        for part in options["pyobject"].split("."):
            inside = {
                n.name: n
                for n in ast.iter_child_nodes(node)
                if isinstance(n, ast.FunctionDef | ast.ClassDef)
            }
            if part not in inside:
                raise Unknown(f"{arg} has no {options['pyobject']}.")
            node = inside[part]
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        lines = text.splitlines()[first - 1 : node.end_lineno]
        code = textwrap.dedent("\n".join(lines))
        where = path.relative_to(ROOT).as_posix()
        return f"From `{where}`:\n\n```python\n{code}\n```"

    # ---- cells

    def cells(self) -> list[nbformat.NotebookNode]:
        """The cells, with the stored outputs of the committed notebook."""
        stored = self.path.parents[1] / f"{self.path.stem}.ipynb"
        outputs = iter(
            c for c in nbformat.read(stored, 4).cells if c.cell_type == "code"
        )
        made = []
        for cell in jupytext.read(self.path, fmt=FMT).cells:
            if cell.cell_type == "code":
                was = next(outputs)
                if was.source != cell.source:
                    raise Unknown(f"{stored.name} is not its twin; `make notebooks`.")
                new = nbformat.v4.new_code_cell(cell.source, outputs=was.outputs)
                new.execution_count = was.execution_count
                tags = cell.metadata.get("tags", [])
                if tags:
                    new.metadata["tags"] = tags
                if {"hide-input", "hide-cell"} & set(tags):
                    new.metadata["jupyter"] = {"source_hidden": True}
                made.append(new)
                continue
            for part in re.split(
                r"(?m)^(?=:::\{(?:exercise|solution)-start\})", cell.source
            ):
                made += self.text(part)
        return made

    def text(self, source: str) -> list[nbformat.NotebookNode]:
        """One Markdown cell; a solution's heading has one of its own, and is folded."""
        self.attachments = {}
        plain = re.sub(r"\n{3,}", "\n\n", self.markdown(source)).strip()
        if not plain:
            return []
        words = ROLE.sub(lambda m: m[0] if m["name"] else "", plain)
        if left := LEFT.search(words):
            raise Unknown(f"{left[0]!r} is left: {plain[:60]!r}")
        head, _, rest = plain.partition("\n")
        if not head.startswith("#### Solution"):
            cell = nbformat.v4.new_markdown_cell(plain)
            if self.attachments:
                cell["attachments"] = self.attachments
            return [cell]
        folded = nbformat.v4.new_markdown_cell(head)
        folded.metadata["jp-MarkdownHeadingCollapsed"] = True
        return [folded, *self.text(rest)]


def digest(cells: list[nbformat.NotebookNode]) -> str:
    return hashlib.sha256("\0".join(c.source for c in cells).encode()).hexdigest()[:16]


def notebook(
    path: Path, html: Path, site: str | None = None, source: str = ""
) -> nbformat.NotebookNode:
    """The readers' notebook of a chapter's twin. Raises Unknown, naming the chapter."""
    try:
        cells = Chapter(path, html, site).cells()
    except Unknown as e:
        raise Unknown(f"{path.name}: {e}") from None
    first = nbformat.v4.new_code_cell(COLAB.format(source=source).rstrip())
    first.metadata["jupyter"] = {"source_hidden": True}
    at = 1 + next((i for i, c in enumerate(cells) if c.source.startswith("# ")), -1)
    cells.insert(at, first)
    n = 0
    for i, c in enumerate(cells):
        c.id = f"{i:03d}-" + hashlib.sha256(c.source.encode()).hexdigest()[:8]
        n += c.cell_type == "code"
        if c.cell_type == "code" and c.execution_count is not None:
            c.execution_count = n
            for o in c.outputs:
                if "execution_count" in o:
                    o.execution_count = n
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
            "hra": {"written": digest(cells)},
        }
    )
    return made


def edited(path: Path) -> bool:
    """Whether a reader has changed the notebook since it was written."""
    if not path.is_file():
        return False
    there = nbformat.read(path, 4)
    return there.metadata.get("hra", {}).get("written") != digest(there.cells)


def write(
    folder: Path, html: Path, site: str | None, source: str, keep: bool
) -> list[str]:
    """All chapters into `folder`; returns the names of those that were left alone."""
    texts = sorted((ROOT / "notebooks/text").glob("*.md"))
    made = {p.stem: notebook(p, html, site, source) for p in texts}
    folder.mkdir(parents=True, exist_ok=True)
    left = []
    for name, nb in made.items():
        path = folder / f"{name}.ipynb"
        if keep and edited(path):
            left.append(path.name)
            continue
        path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    return left


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/lab.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--site", help="address of the site, or its path from FOLDER")
    parser.add_argument("--html", type=Path, default=ROOT / "_build/html")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args(argv)
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    address = config["sphinx"]["config"]["html_context"]["repository"]
    source = f" @ git+{address}" if address else ""
    try:
        left = write(args.folder, args.html, args.site, source, args.keep)
    except Unknown as e:
        print(f"tools/lab.py: {e}", file=sys.stderr)
        return 1
    for name in left:
        print(
            f"{args.folder / name} has your changes and is left as it is; delete or "
            "rename it, and the next run writes it anew."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
