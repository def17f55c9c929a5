"""Chapters carry the number that their file name begins with.

`notebooks/08_shira_masks` is chapter 8, whichever chapters stand before it in
`_toc.yml`; with it Theorem 8.2, Figure 8.1, Exercise 8.3 and equation (8.1) keep their
numbers while the book grows. Pages without a number in their name have none, and
neither have sections.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles

CHAPTER = re.compile(r"(?:^|/)(\d\d)_[^/]*$")


def chapter(docname: str) -> int | None:
    """8 for `notebooks/08_shira_masks`, None for `book/intro`."""
    found = CHAPTER.search(docname)
    return int(found[1]) if found else None


def assign_section_numbers(self, env) -> list[str]:
    """In place of the collector's count along the toctrees. Returns the pages whose
    number is new."""
    before, env.toc_secnumbers = env.toc_secnumbers, {}
    for docname in sorted(env.tocs):
        number = chapter(docname)
        if number is None:
            continue
        env.titles[docname]["secnumber"] = (number,)
        env.toc_secnumbers[docname] = {}
        for link in env.tocs[docname].findall(nodes.reference):
            anchor = link["anchorname"]  # "" is the page itself, the rest its sections
            link["secnumber"] = () if anchor else (number,)
            env.toc_secnumbers[docname][anchor] = link["secnumber"]
    return [d for d, new in env.toc_secnumbers.items() if before.get(d) != new]


def setup(app):
    TocTreeCollectorWithStyles.assign_section_numbers = assign_section_numbers
    return {"parallel_read_safe": True, "parallel_write_safe": True}
