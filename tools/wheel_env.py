"""An environment that holds the wheel and what it asks for, and nothing else.

    .venv/bin/python tools/wheel_env.py FOLDER

Builds the wheel into FOLDER/dist and installs it into an environment in FOLDER. What
`hra[notebook]` requires, what that requires, and what runs the notebooks are the tested
versions of `.venv`: their files are linked, not installed a second time. What is not
there, or has a version that is not asked for, is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, PathDistribution, distributions
from importlib.util import cache_from_source
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
RUNNERS = ("nbval", "pytest", "pytest-xdist", "pyyaml")


class Missing(ValueError):
    """What is required and not there."""


def required(
    asked: list[str], there: dict[str, Distribution]
) -> dict[str, Distribution]:
    """{name: distribution} of the requirements, of what they require, and so on."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "the wheel's environment") for text in asked]
    while todo:
        want, who = todo.pop()
        name = canonicalize_name(want.name)
        if name not in there:
            raise Missing(f"{who} asks for {want}, which requirements.txt does not.")
        has = there[name]
        if not want.specifier.contains(has.version, prereleases=True):
            raise Missing(f"{who} asks for {want}; here is {has.version}.")
        found[name] = has
        for extra in ("", *want.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            offered = has.metadata.get_all("Provides-Extra", [])
            if extra and extra not in map(canonicalize_name, offered):
                raise Missing(f"{name} has no extra {extra!r}, which {who} asks for.")
            for line in has.requires or ():
                need = Requirement(line)
                if need.marker is None or need.marker.evaluate({"extra": extra}):
                    todo.append((need, f"{name} {has.version}"))
    return found


def link(dist: Distribution, to: Path) -> None:
    """Its files and their compiled forms into the site-packages `to`. Not its scripts:
    they name another Python."""
    scripts = Path(sysconfig.get_path("scripts"))
    for file in dist.files or ():
        source = Path(os.path.abspath(dist.locate_file(file)))
        if scripts in source.parents:
            continue
        here = Path(os.path.abspath(to / file))
        pairs = [(source, here)]
        if source.suffix == ".py":
            pairs.append(tuple(Path(cache_from_source(p)) for p in (source, here)))
        for old, new in pairs:
            if old.is_file() and not new.exists():
                new.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(old, new)
                except OSError:  # on another disk
                    shutil.copy2(old, new)


def build(folder: Path) -> Path:
    """The wheel in folder/dist."""
    # what setuptools leaves here would be another state of the book's folder
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", folder / "dist"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", ROOT, *options], check=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    (wheel,) = (folder / "dist").glob("hra-*.whl")
    return wheel


def main(argv: list[str]) -> int:
    (folder,) = map(Path, argv)
    shutil.rmtree(folder, ignore_errors=True)
    wheel = build(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--ignore-installed", wheel], check=True)
    say = "import sysconfig; print(sysconfig.get_path('purelib'))"
    said = subprocess.run([python, "-c", say], check=True, capture_output=True)
    site = Path(said.stdout.decode().strip())
    (info,) = site.glob("hra-*.dist-info")
    there = {canonicalize_name(d.name): d for d in distributions() if d.name}
    there["hra"] = PathDistribution(info)
    try:
        held = required(["hra[notebook]", *RUNNERS], there)
    except Missing as e:
        print(f"wheel: {e}")
        return 1
    for name, dist in held.items():
        if name != "hra":
            link(dist, site)
    print(f"wheel: {wheel.name} and {len(held) - 1} packages that it asks for")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
