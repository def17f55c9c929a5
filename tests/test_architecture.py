"""Who may import whom: a file imports only from floors below its own (design of the
library).
"""

import ast
import subprocess
import sys
from pathlib import Path

HRA = Path(__file__).resolve().parents[1] / "hra"
FLOOR = {
    "law": 0,
    "linear": 0,
    "bases": 0,
    "masks": 0,
    "sparse": 0,
    "analysis": 0,
    "data": 0,
    "zoo": 0,
    "checks": 0,
    "localise": 1,
    "continual": 0,
    "adapter": 1,
    "also": 2,
    "entries": 2,
    "pruned": 2,
    "restart": 2,
    "whole": 2,
    "methods": 3,
    "schedules": 3,
    "io": 3,
    "model": 4,
    "memory": 4,
    "probe": 4,
    "switch": 4,
    "train": 4,
    "studies": 5,
    "viz": 5,
    "testing": 5,
}
SAME_FLOOR = {
    "methods",
    "memory",
    "analysis",
    "viz",
    "zoo",
    "data",
    "studies",
}  # packages whose own files may import each other
# a log and a bill plot themselves; the zoo knows its data; switching loads; scipy's
# absence is put in words
UP = {
    ("train", "viz"),
    ("memory", "viz"),
    ("zoo", "data"),
    ("switch", "model"),
    ("analysis", "checks"),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "hra":
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "hra."
        ):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (
                a.name.split(".")[1] for a in node.names if a.name.startswith("hra.")
            )


def test_imports_go_down():
    checked = 0
    for path in HRA.rglob("*.py"):
        me = path.relative_to(HRA).with_suffix("").parts[0]
        if me == "__init__":
            continue
        for other in imports(path):
            if other == "__version__":
                continue
            checked += 1
            allowed = (
                FLOOR[other] < FLOOR[me]
                or (other == me and me in SAME_FLOOR)
                or (me, other) in UP
            )
            assert allowed, (
                f"{path.relative_to(HRA)} (floor {FLOOR[me]}) imports hra.{other} "
                f"(floor {FLOOR[other]})"
            )
    assert checked > 15


def test_only_linear_knows_conv1d():
    for path in HRA.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert "fan_in_fan_out" not in names and (
            "Conv1D" not in names or path.name == "linear.py"
        ), path


def test_no_bare_assert_and_no_pickle():
    for path in HRA.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        assert not any(isinstance(n, ast.Assert) for n in nodes), path
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        # that pickles what it has made itself
        assert "pickle" not in names or path.name == "testing.py", path


def test_import_hra_is_light():
    heavy = (
        "transformers",
        "matplotlib",
        "ipywidgets",
        "anywidget",
        "peft",
        "tqdm.auto",
        "scipy",
    )
    code = f"import sys, hra; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=HRA.parent,
        check=True,
    )
    assert out.stdout.strip() == "[]"


def test_every_method_is_in_the_suite():
    import hra
    from tests.test_before_lora import WHOLE
    from tests.test_every_adapter import CASES

    layers = {c[0] for c in CASES.values()}
    assert layers | set(WHOLE) == set(hra.METHODS.values())
    assert all(issubclass(m, hra.Adapter) for m in layers)
    assert not any(issubclass(m, hra.Adapter) for m in WHOLE)
