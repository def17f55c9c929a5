"""Book build: the weights of the models that run in the pages.

A cell that shows such a model writes its weights, as scripts, beside the cache of
executed notebooks (`hra.viz.packed`). When the site is built, those that its pages name
are copied to _static/hra, once for all pages. The build warns (with -W: fails) where
one is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from sphinx.util import logging

log = logging.getLogger(__name__)
# `files` of a widget's state, {what it is: name of the script}
NAMED = re.compile(r'"files":(\{[^{}]*\})')


def folder(app):
    cache = app.config.nb_execution_cache_path
    return Path(cache or Path(app.outdir).parent) / "hra_files"


def ask_for_files(app, config):
    os.environ["HRA_SITE_FILES"] = str(folder(app))


def named_in(text):
    """The scripts that a page names."""
    return {n for found in NAMED.findall(text) for n in json.loads(found).values()}


def copy_files(app, exc):
    if exc or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "hra"
    shutil.rmtree(target, ignore_errors=True)
    for page in sorted(Path(app.outdir).rglob("*.html")):
        for name in sorted(named_in(page.read_text(encoding="utf-8"))):
            source = folder(app) / f"{name}.js"
            if source.is_file():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target / source.name)
            else:
                log.warning(
                    "%s needs %s, which no cell has written: delete %s and build again",
                    page.relative_to(app.outdir).as_posix(),
                    source.name,
                    folder(app).parent,
                    type="hra_book",
                    subtype="model",
                )


def setup(app):
    app.connect("config-inited", ask_for_files, priority=200)  # after the cache is set
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
