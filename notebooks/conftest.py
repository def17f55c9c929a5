"""Each check of a chapter is broken on purpose, and has to notice.

notebooks/breaks/NN_name.yml lists the breaks: `break` says what is wrong, `find` is a
text that stands in one code cell of the chapter and `put` what stands there instead;
`first` is code to run before the cell. When nbval comes to that cell, the broken one is
run in a forked copy of the kernel, and must raise, or print something else than what is
stored.

The longest chapters come first, so that no process is left with one of them at the end.

A chapter that passes is kept as it was executed, in the folder HRA_EXECUTED: `make book`
shows it, and does not execute it a second time.
"""

import json
import os
import time
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
import yaml

HERE = Path(__file__).parent
# Seconds of the chapters, for their order alone. A new one begins early.
SECONDS = {
    "02_lora": 211,
    "11_two_adapters": 150,
    "01_cost": 128,
    "17_losia_bound": 120,
    "15_uuid_pairs": 75,
    "03_memory": 104,
    "04_scales": 100,
    "10_low_rank": 83,
    "08_shira_masks": 79,
    "16_restarts": 76,
    "09_scale": 57,
    "20_one_after_another": 41,
    "14_mora": 40,
    "18_subnet": 40,
    "12_shipping": 36,
    "19_losia": 31,
    "21_does_it_see": 29,
}
# in the kernel: True where the broken cell is not told from the right one
BROKEN = """
def _goes_unnoticed(source, stored):
    import os
    from IPython.utils.capture import capture_output

    read, write = os.pipe()
    if not (child := os.fork()):
        same = b"0"
        try:
            with capture_output() as said:
                done = get_ipython().run_cell(source, store_history=False)
            shown = "".join(o.data.get("text/plain", "") for o in said.outputs)
            same = b"%d" % (done.success and said.stdout + shown == stored)
        finally:
            os.write(write, same)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        answer = told.read()
    os.waitpid(child, 0)
    return answer != b"0"


if _goes_unnoticed({source}, {stored}):
    raise AssertionError("unnoticed")
"""


def breaks_of(chapter: str) -> list[dict[str, str]]:
    path = HERE / "breaks" / f"{chapter}.yml"
    return yaml.safe_load(path.read_text("utf-8")) if path.is_file() else []


def stored(cell) -> str:
    """What the cell printed, and then what it showed, as text."""
    printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    return printed + "".join(
        o.data.get("text/plain", "") for o in cell.outputs if "data" in o
    )


def keep(path: Path, read, outputs, seconds: float) -> None:
    """The notebook `read` with the outputs of its code cells, if they are asked for."""
    if not (folder := os.environ.get("HRA_EXECUTED")):
        return
    done = deepcopy(read)
    cells = [c for c in done.cells if c.cell_type == "code"]
    for n, (cell, new) in enumerate(zip(cells, outputs, strict=True), 1):
        cell.outputs, cell.execution_count = new, n
        for output in new:
            if output.output_type == "execute_result":
                output.execution_count = n
    done.metadata.hra_seconds = seconds
    to = Path(folder) / path.name
    to.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(done, to.with_suffix(".part"))
    to.with_suffix(".part").replace(to)


RAN: dict[Path, tuple[list, list[float]]] = {}  # of each file: outputs, seconds


def pytest_collection_modifyitems(items):
    """By file, the longest first; the cells of a file stay in their order."""
    items.sort(key=lambda item: -SECONDS.get(item.path.stem, 150))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if type(item).__name__ == "IPyNbCell":
        kernel, cell = item.parent.kernel, item.cell
        for broken in breaks_of(item.path.stem):
            if broken["find"] not in cell.source:
                continue
            source = cell.source.replace(broken["find"], broken.get("put", ""))
            source = broken.get("first", "") + "\n" + source
            code = BROKEN.replace("{source}", json.dumps(source))
            told = kernel.kc.execute_interactive(
                code.replace("{stored}", json.dumps(stored(cell))),
                store_history=False,
                allow_stdin=False,
                stop_on_error=False,
                timeout=item.config.option.nbval_cell_timeout,
                output_hook=lambda message: None,
            )
            if told["content"]["status"] != "ok":
                item.raise_cell_error(f"A check did not notice: {broken['break']}")
    begun = time.perf_counter()
    result = yield
    if type(item).__name__ == "IPyNbCell":
        outputs, seconds = RAN.setdefault(item.path, ([], []))
        outputs.append(item.test_outputs)
        seconds.append(time.perf_counter() - begun)
        read = item.parent.nb
        if len(outputs) == sum(c.cell_type == "code" for c in read.cells):
            keep(item.path, read, outputs, sum(seconds))
    return result
