"""Book build: what Jupyter Book 1 lacks for a library-backed, kernel-free, offline
book.

* jupyter-cache keys a notebook by its own cells and metadata only. Here the cache
folder's name
  carries a hash of the library (and of numeric package versions), so a change in `hra/`
  re-executes. nb_execution_cache_path has rebuild="env": Sphinx then also re-reads
  every page by itself.
* Notebooks that the cache does not hold are executed before the pages are read, two at
  a time; the build alone would execute one after the other. Those that nbval has just
  executed, with this library, are taken from there.
* Pages need no widget state JSON (the widgets carry text/html), no Thebe bootstrap and
  no names of live models, which would be others in every build.
* The build warns (with -W: fails) where a page would load anything over the network,
  and where a notebook shows a bare ipywidget, which is dead without a kernel.
"""

from __future__ import annotations

import hashlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from sphinx.util import logging

log = logging.getLogger(__name__)
PACKAGES = ("numpy", "torch", "transformers", "matplotlib", "anywidget")


def library_hash(root: Path) -> str:
    h = hashlib.sha256()
    files = (root / "hra").rglob("*")
    for f in sorted(files):
        if f.suffix in {".py", ".js", ".css", ".json", ".xz", ".safetensors"}:
            h.update(
                f.relative_to(root).as_posix().encode() + b"\0" + f.read_bytes() + b"\0"
            )
    for p in PACKAGES:
        try:
            h.update(f"{p}=={version(p)}\n".encode())
        except PackageNotFoundError:
            pass
    return h.hexdigest()[:16]


def cache_folder(root: Path, build: Path) -> Path:
    """Of the notebooks executed with the library as it is now; nbval's in `nbval`."""
    return build / ".jupyter_cache" / library_hash(root)


def set_cache(app, config):
    if config.nb_execution_mode == "cache":
        folder = cache_folder(Path(app.srcdir), Path(app.outdir).parent)
        config.nb_execution_cache_path = str(folder)


def executed_by_nbval(notebook, path: Path) -> float | None:
    """Takes the outputs of the executed notebook at `path` over, if its code is the
    same: the seconds that it took."""
    if not path.is_file():
        return None
    done = nbformat.read(path, as_version=4)
    new, old = ([c for c in n.cells if c.cell_type == "code"] for n in (done, notebook))
    if [c.source for c in new] != [c.source for c in old]:
        return None
    for to, cell in zip(old, new, strict=True):
        to.outputs, to.execution_count = cell.outputs, cell.execution_count
    return done.metadata.hra_seconds


def execute_ahead(app, env, docnames):
    """Fill the cache with the notebooks that will be read. One that fails is left to
    the build, which executes it again and says where.
    """
    config = app.config
    if config.nb_execution_mode != "cache":
        return
    cache, todo = get_cache(config.nb_execution_cache_path), []

    def keep(path, notebook, seconds):
        facts = {"execution_seconds": seconds}
        cache.cache_notebook_bundle(
            CacheBundleIn(notebook, str(path), data=facts),
            check_validity=False,
            overwrite=True,
        )

    for path in (Path(env.doc2path(name)) for name in docnames):
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
            try:
                cache.match_cache_notebook(notebook)
            except KeyError:
                there = Path(config.nb_execution_cache_path) / "nbval" / path.name
                if (seconds := executed_by_nbval(notebook, there)) is None:
                    todo.append((path, notebook))
                else:
                    keep(path, notebook, seconds)

    def execute(path, notebook):
        return single_nb_execution(
            notebook,
            cwd=str(path.parent),
            timeout=config.nb_execution_timeout,
            allow_errors=config.nb_execution_allow_errors,
        )

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(execute, *one) for one in todo]
        for (path, notebook), future in zip(todo, running, strict=True):
            result = future.result()
            log.info("executed %s in %.0f s", path.name, result.time or 0)
            if result.err is None:
                keep(path, notebook, result.time)


def slim_page(app, pagename, template, context, doctree):
    def unwanted(js):
        a = getattr(js, "attributes", {})
        name, body = str(getattr(js, "filename", "") or ""), a.get("body") or ""
        return (
            a.get("type") == "application/vnd.jupyter.widget-state+json"
            or "sphinx-thebe.js" in name
            or body.startswith("const THEBE_JS_URL")
        )

    context["script_files"] = [
        j for j in context.get("script_files", []) if not unwanted(j)
    ]
    if "body" in context:
        context["body"] = LIVE.sub("", context["body"])


LIVE = re.compile(r' data-live="[0-9a-f]{32}"')


def open_elsewhere(app, pagename, template, context, doctree):
    """A chapter's link to Colab, once the project has a public address."""
    who = context.get("repository", "").rstrip("/").removeprefix("https://github.com/")
    if who and pagename.startswith("notebooks/"):
        context["header_buttons"].append(
            {
                "type": "link",
                "url": f"https://colab.research.google.com/github/{who}/blob/gh-pages/"
                f"_sources/{pagename}.ipynb",
                "icon": "fas fa-rocket",
                "tooltip": "Open in Colab",
                "label": "colab-button",
            }
        )


SUBRESOURCE = re.compile(
    r"<(?:script|img|iframe|audio|video|source|embed)\b[^>]*?\bsrc\s*=\s*[\"']((?:https?:)?//[^\"']+)"
    r"|<link\b(?=[^>]*\brel\s*=\s*[\"'](?:stylesheet|preload|modulepreload|icon|preconnect))[^>]*?\bhref\s*=\s*[\"']((?:https?:)?//[^\"']+)",
    re.I,
)
DEAD = "application/vnd.jupyter.widget-view+json"


def check_site(app, exc):
    if exc or app.builder.format != "html":
        return
    for page in sorted(Path(app.outdir).rglob("*.html")):
        rel = page.relative_to(app.outdir).as_posix()
        if rel.startswith("_static/"):
            continue
        text = page.read_text(encoding="utf-8")
        for m in SUBRESOURCE.finditer(text):
            log.warning(
                "%s loads %s", rel, m[1] or m[2], type="hra_book", subtype="network"
            )
        if f'type="{DEAD}"' in text:
            log.warning(
                "%s shows a widget which is dead without a kernel",
                rel,
                type="hra_book",
                subtype="dead_widget",
            )


def setup(app):
    app.connect("config-inited", set_cache, priority=100)
    app.connect("env-before-read-docs", execute_ahead)
    app.connect("html-page-context", slim_page, priority=900)
    app.connect("html-page-context", open_elsewhere, priority=502)
    app.connect("build-finished", check_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":  # ROOT BUILD: where the executed notebooks are kept
    print(cache_folder(*map(Path, sys.argv[1:])))
