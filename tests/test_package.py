"""The package as others install it: what is optional says so, what travels is there."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def without(missing, code):
    """What `code` says in a Python that has no `missing`."""
    gone = dict.fromkeys(missing.split())
    begin = f"import sys; sys.modules.update({gone}); import hra, torch\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + code], capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout + done.stderr.strip().split("\n")[-1]


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("matplotlib", "hra.Log().plot()"),
        ("anywidget", "hra.viz.RankSlider(torch.eye(3))"),
        ("scipy", "hra.analysis.rank.structural_rank(torch.eye(3))"),
        ("scipy", "hra.studies.study.interval([{'seed': 0}, {'seed': 1}])"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(missing, code):
    said = without(missing, code)
    assert said.startswith("ModuleNotFoundError: this needs")
    assert missing in said and said.endswith("pip install 'hra[viz]'")


def test_training_needs_no_extra():
    code = (
        "m = hra.zoo.gpt2('random'); t = hra.attach(m, hra.LoRA, targets='c_attn')"
        "\nb = hra.data.lm_batches(torch.arange(99), 2, 8)"
        "\nprint(hra.fit(t, b, steps=2))"
    )
    missing = "matplotlib anywidget ipywidgets scipy"
    assert without(missing, code).startswith("Log(2 steps")


def test_what_the_library_imports_is_a_dependency_or_in_an_extra():
    given = [*PROJECT["project"]["dependencies"]]
    for extra in ("viz", "peft"):
        given += PROJECT["project"]["optional-dependencies"][extra]
    known = {g.split(">")[0].split("<")[0] for g in given} | {"hra"}
    # transformers', anywidget's, matplotlib's
    with_those = {"tokenizers", "traitlets", "IPython", "PIL"}
    for path in (ROOT / "hra").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in (n.split(".")[0] for n in names):
                assert name in known | with_those | sys.stdlib_module_names, (
                    path,
                    name,
                )


def test_every_extra_is_there():
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"viz", "notebook", "book", "test", "peft"}
    assert "build/" in (ROOT / ".gitignore").read_text().splitlines()


def test_fit_interrupted_returns_its_log_and_writes_nothing_to_a_pipe():
    code = (
        "m = hra.zoo.gpt2('random'); t = hra.attach(m, hra.LoRA, targets='c_attn')\n"
        "def stop(log):\n"
        "    if len(log.steps) == 3: raise KeyboardInterrupt\n"
        "b = hra.data.lm_batches(torch.arange(99), 2, 8)\n"
        "log = hra.fit(t, b, steps=9, callback=stop)\n"
        "print(len(log.steps), log.interrupted, log is t.log)"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import hra, torch\n" + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == ("3 True True\n", "")


def test_the_wheel_holds_what_the_chapters_need(tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    empty.mkdir()
    shutil.copytree(
        ROOT / "hra",
        source / "hra",
        ignore=shutil.ignore_patterns("__pycache__", "checkpoint.pt"),
    )
    (source / "hra/zoo/gpt2-tiny/checkpoint.pt").write_bytes(b"a run's, not a reader's")
    (source / "hra/zoo/__pycache__").mkdir()
    (source / "hra/zoo/__pycache__/zoo.cpython-311.pyc").write_bytes(b"left here")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "pip wheel . -q --no-deps --no-build-isolation -w".split()
    subprocess.run(
        [sys.executable, "-m", *build, str(tmp_path)], cwd=source, check=True
    )
    (wheel,) = tmp_path.glob("hra-*.whl")
    assert wheel.stat().st_size <= 25e6
    with zipfile.ZipFile(wheel) as z:
        held = {n for n in z.namelist() if n.startswith("hra/")}
        z.extractall(tmp_path / "installed")
    ours = {
        p.relative_to(source).as_posix()
        for p in (source / "hra").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert ours - held == {"hra/zoo/gpt2-tiny/checkpoint.pt"} and held <= ours
    # away from the repository everything is there
    code = (
        "import hra; hra.zoo.gpt2(), hra.zoo.vit(), hra.zoo.tokenizer()\n"
        "[hra.data.documents(c) for c in hra.data.CORPORA]; hra.data.digits.digits()\n"
        "names = [p.stem for p in hra.studies.study.RECORDS.glob('*.json')]\n"
        "print(hra.__file__, len([hra.studies.record(n) for n in names]) > 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
    )
    assert done.stdout == f"{tmp_path}/installed/hra/__init__.py True\n", done.stderr


@pytest.fixture(scope="module")
def wheel_env():
    spec = importlib.util.spec_from_file_location("_", ROOT / "tools/wheel_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Made(Distribution):
    """A distribution of which there is only this."""

    def __init__(self, name, version="1.0", *lines):
        said = (f"Name: {name}", f"Version: {version}", *lines)
        self.text = "\n".join(("Metadata-Version: 2.1", *said))

    def read_text(self, filename):
        return self.text if filename == "METADATA" else None

    def locate_file(self, path):
        raise FileNotFoundError(path)


def made(*distributions):
    return {d.name: d for d in distributions}


def test_the_wheels_environment_holds_what_is_asked_for_and_no_more(wheel_env):
    us = Made(
        "us",
        "1.0",
        "Provides-Extra: all",
        "Provides-Extra: some",
        "Requires-Dist: plain>=1",
        "Requires-Dist: other; python_version < '3'",
        "Requires-Dist: us[some]; extra == 'all'",
        "Requires-Dist: deep-down; extra == 'some'",
    )
    ring = Made("deep-down", "2.0", "Requires-Dist: us")
    there = made(us, ring, Made("plain"), Made("other"), Made("unasked"))
    assert set(wheel_env.required(["us"], there)) == {"us", "plain"}
    assert set(wheel_env.required(["us[all]"], there)) == {"us", "plain", "deep-down"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("none", "asks for none, which requirements.txt does not"),
        ("us>=2", "asks for us>=2; here is 1.0"),
        ("us[all]", "us has no extra 'all'"),
        ("us", "us 1.0 asks for plain, which"),
    ],
)
def test_what_the_wheel_asks_for_and_is_not_there_is_an_error(wheel_env, asked, words):
    there = made(Made("us", "1.0", "Requires-Dist: plain"))
    with pytest.raises(wheel_env.Missing, match=words):
        wheel_env.required([asked], there)
