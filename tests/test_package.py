"""The package as others install it: what is optional says so, what travels is there."""

import ast
import subprocess
import sys
import tomllib
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
