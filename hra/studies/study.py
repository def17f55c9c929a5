"""Recorded studies: jobs → a record that a killed run resumes → rows, differences.

    python -m hra.studies.NAME [--workers 2] [--folder FOLDER] [--fresh]

A study is a module with a `run(**job)` that returns what one job found, a
`STUDY = Study(...)`, and a `main(study)` that says which jobs there are. Each finished
job is one line of `records/NAME.json`, written at once and atomically. A recorded job
is not run again unless its arguments have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hra.checks import optional

Run = dict[str, Any]  # one job's arguments and what it found; "seed" is among them
RECORDS = files("hra.studies") / "records"


# ---- what a record says


def record(name: str, folder: Any = RECORDS) -> dict[str, Any]:
    """The record `name`, e.g. "lora_moby": a dict whose "runs" maps a job's name to its
    run. Raises ValueError, naming the records that there are, for another name.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir() if p.name.endswith(".json"))
        raise ValueError(
            f"there is no record {name!r} in {folder}. There are: "
            f"{', '.join(p[:-5] for p in there) or 'none'}. To make it: "
            f"python -m hra.studies.{name}"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def select(runs: Iterable[Run], **where: Any) -> list[Run]:
    """The runs whose fields are as given, e.g. `part="test", seed=0`."""
    return [r for r in runs if all(k in r and r[k] == v for k, v in where.items())]


def interval(runs: Iterable[Run], value: str = "bits") -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval of the field `value` over the runs,
    one per seed. Raises ValueError for fewer than two runs or a seed that comes twice.
    """
    t = optional("scipy.stats", "viz").t
    runs = list(runs)
    seeds = [r["seed"] for r in runs]
    if len(runs) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"an interval needs two or more seeds, each once; these runs have {seeds}."
        )
    x = [_field(r, value) for r in runs]
    half = float(t.ppf(0.975, len(x) - 1)) * statistics.stdev(x) / len(x) ** 0.5
    return statistics.mean(x), half


def paired(
    a: Iterable[Run], b: Iterable[Run], value: str = "bits"
) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval of `value` in a − in b, seed by seed:
    what the seeds share (the batches and their order) cancels. Raises ValueError where
    the two do not have the same seeds.
    """
    a, b = list(a), list(b)
    other = {r["seed"]: _field(r, value) for r in b}
    if len(a) != len(b) or {r["seed"] for r in a} != set(other):
        raise ValueError(
            "paired runs need the same seeds on both sides: "
            f"{[r['seed'] for r in a]} and {[r['seed'] for r in b]}."
        )
    return interval(
        [{"seed": r["seed"], value: _field(r, value) - other[r["seed"]]} for r in a],
        value,
    )


def rows(
    runs: Iterable[Run], by: Sequence[str], value: str = "bits", **where: Any
) -> list[dict[str, Any]]:
    """One row per combination of the fields `by`, in order of appearance: those fields,
    `seeds`, `mean`, and `half` as `interval` gives it (None where there is one seed).
    `where` selects runs first.
    """
    out = []
    for fields, group in _groups(select(runs, **where), by):
        mean, half = (
            interval(group, value)
            if len(group) > 1
            else (_field(group[0], value), None)
        )
        seeds = [r["seed"] for r in group]
        out.append({**fields, "seeds": seeds, "mean": mean, "half": half})
    return out


def choose(
    runs: Iterable[Run],
    by: Sequence[str],
    over: str = "lr",
    value: str = "bits",
    best: Callable[..., Any] = min,
    **where: Any,
) -> list[dict[str, Any]]:
    """The field `over` at which `value` is best (a mean where there are several seeds),
    one row per combination of the fields `by`: those fields, `grid`, `values`, `best`,
    and `interior`, whether the best is at neither end of its grid.
    """
    out = []
    for fields, group in _groups(select(runs, **where), by):
        means = sorted((r[over], r["mean"]) for r in rows(group, [over], value))
        grid, values = [g for g, _ in means], [v for _, v in means]
        at = values.index(best(values))
        out.append(
            {
                **fields,
                "grid": grid,
                "values": values,
                "best": grid[at],
                "interior": 0 < at < len(grid) - 1,
            }
        )
    return out


def _field(run: Run, name: str) -> Any:
    if name not in run:
        raise ValueError(f"a run has no field {name!r}; it has {', '.join(run)}.")
    return run[name]


def _groups(
    runs: Iterable[Run], by: Sequence[str]
) -> Iterator[tuple[dict[str, Any], list[Run]]]:
    groups: dict[str, list[Run]] = {}
    for r in runs:
        groups.setdefault(
            json.dumps([_field(r, k) for k in by], sort_keys=True), []
        ).append(r)
    for group in groups.values():
        yield {k: group[0][k] for k in by}, group


# ---- how a record is made


@dataclass
class Study:
    """`run(**job)` for every job, recorded.

    setting: what every run depends on and no job varies; seeds: of the reported runs;
    model: the zoo's folder whose weights the runs start from. workers: processes, each
    on one thread, so that the numbers do not depend on their count.
    """

    name: str
    run: Callable[..., dict[str, Any]]
    setting: dict[str, Any]
    seeds: Sequence[int]
    model: str = "gpt2-tiny"
    folder: Any = RECORDS
    workers: int = 1
    _done: dict[str, Any] = field(default_factory=dict)
    _asked: dict[str, None] = field(default_factory=dict)
    _here: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The recorded study."""
        return record(self.name, self.folder)

    def do(self, jobs: Mapping[str, dict[str, Any]]) -> dict[str, Run]:
        """The runs of `jobs` (name → arguments of `run`), those that are recorded read,
        the others run and recorded one by one.

        Raises ValueError when the record is of another setting or other weights;
        RuntimeError, naming the job, when a run fails: finished jobs stay recorded.
        """
        self._open()
        plain = {k: _plain(k, job) for k, job in jobs.items()}
        self._asked |= dict.fromkeys(plain)
        runs = self._done["runs"]
        todo = {
            k: jobs[k]
            for k, job in plain.items()
            if k not in runs or any(runs[k].get(n) != v for n, v in job.items())
        }
        if todo:
            self._write()  # a folder that cannot be written is noticed now
        from tqdm.auto import tqdm

        with tqdm(
            total=len(jobs), initial=len(jobs) - len(todo), desc=self.name
        ) as bar:
            for key, found in self._results(todo):
                twice = sorted(plain[key].keys() & found.keys())
                if twice:
                    raise ValueError(
                        f"run returns {twice[0]!r}, which is an argument of the job."
                    )
                runs[key] = _plain(key, {**plain[key], **found})
                self._count()
                self._write()
                bar.update()
        return {k: runs[k] for k in jobs}

    def note(self, **facts: Any) -> None:
        """Facts that stand in the record beside the runs."""
        self._open()
        self._done |= _plain("note", facts)
        self._write()

    def protocol(
        self, chosen: list[dict[str, Any]], on: str, over: str = "lr", study: str = ""
    ) -> dict[str, Any]:
        """Note what was tuned on what (`chosen` from `choose`, `on` in words, `study`
        if its record holds the runs); returns it. A chapter shows it as a box, with the
        record's setting and seeds.
        """
        box = {"study": study or self.name, "over": over, "on": on, "chosen": chosen}
        self.note(protocol=box)
        return box

    def start(
        self, main: Callable[[Study], None], argv: list[str] | None = None
    ) -> None:
        """`main` from the command line; at its end the record holds what it asked for
        and nothing else, and is marked complete.
        """
        parser = argparse.ArgumentParser(prog=f"python -m hra.studies.{self.name}")
        parser.add_argument(
            "--workers", type=int, default=self.workers, help="processes (default: 1)"
        )
        parser.add_argument(
            "--folder", type=Path, help="of the record (default: the package's own)"
        )
        parser.add_argument(
            "--fresh", action="store_true", help="forget what is recorded"
        )
        args = parser.parse_args(argv)
        self.workers, self.folder = args.workers, args.folder or self.folder
        self._done, self._asked = {}, {}
        try:
            if args.fresh:
                self._path().unlink(missing_ok=True)
            self._open()
        except (ValueError, OSError) as e:
            raise SystemExit(f"{self.name}: {e}") from None
        main(self)
        runs = self._done["runs"]
        self._done |= {"complete": True, "runs": {k: runs[k] for k in self._asked}}
        self._write()
        print(f"{self._path()}: {len(self._asked)} runs")

    # ---- inside

    def _path(self) -> Path:
        return Path(str(self.folder)) / f"{self.name}.json"

    def _header(self) -> dict[str, Any]:
        weights = files("hra.zoo") / self.model / "model.safetensors"
        return _plain(
            "setting",
            {
                "study": self.name,
                "command": f"python -m hra.studies.{self.name}",
                "complete": False,
                "model": self.model,
                "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
                "setting": self.setting,
                "seeds": self.seeds,
                "sessions": [],
                "runs": {},
            },
        )

    def _open(self) -> None:
        if self._done:
            return
        self._here = {
            "library": library(),
            "machine": machine(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }
        new = self._header()
        old = self.record() if self._path().exists() else new
        for k in ("weights", "setting"):
            if old.get(k) != new[k]:
                raise ValueError(
                    f"{self._path()} has {k} {old.get(k)!r}, this study has "
                    f"{new[k]!r}: the two cannot be mixed. Give another --folder, or "
                    "begin again with --fresh."
                )
        self._done = {**new, **old, "seeds": new["seeds"], "command": new["command"]}

    def _results(
        self, todo: Mapping[str, dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, what was found) of each job as it ends."""
        if self.workers == 1 or len(todo) < 2:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for key, job in todo.items():
                    yield key, self._result(key, partial(self.run, **job))
            finally:
                torch.set_num_threads(threads)
            return
        with ProcessPoolExecutor(
            self.workers,
            mp_context=get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as pool:
            futures = {pool.submit(self.run, **job): key for key, job in todo.items()}
            try:
                for f in as_completed(futures):
                    yield futures[f], self._result(futures[f], f.result)
            finally:
                pool.shutdown(cancel_futures=True)

    def _result(self, key: str, get: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return get()
        except Exception as e:
            raise RuntimeError(
                f"{self.name}: the job {key!r} failed ({type(e).__name__}: {e}). "
                f"{len(self._done['runs'])} runs are recorded and stay; the same "
                "command goes on from there."
            ) from e

    def _count(self) -> None:
        """One more run in this session's line."""
        self._done["complete"] = False
        for s in self._done["sessions"]:
            if {k: v for k, v in s.items() if k != "runs"} == self._here:
                s["runs"] += 1
                return
        self._done["sessions"].append({**self._here, "runs": 1})

    def _write(self) -> None:
        """The record, each run on a line of its own, in the order of the jobs; on any
        failure the file is as it was.
        """
        done, path = self._done, self._path()
        order = [*self._asked, *(k for k in done["runs"] if k not in self._asked)]
        head = [_line(k, v) for k, v in done.items() if k != "runs"]
        runs = [_line(k, done["runs"][k]) for k in order if k in done["runs"]]
        text = ",\n".join([*head, '"runs":{\n' + ",\n".join(runs) + "\n}"])
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write("{" + text + "}\n")
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def machine() -> str:
    """Architecture, CPU model, cores and data caches, as far as the system tells."""
    parts = [platform.machine(), platform.processor(), f"{os.cpu_count()} cores"]
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [s.split(":", 1)[1].strip() for s in info if s.startswith("model name")]
        parts[1:2] = names[:1]
        for i in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
            level, kind, size = (
                (i / n).read_text(encoding="utf-8").strip()
                for n in ("level", "type", "size")
            )
            if kind != "Instruction":
                parts.append(f"L{level} {size}")
    except OSError:  # another system, or one that does not tell
        pass
    return ", ".join(dict.fromkeys(p for p in parts if p))


def library() -> str:
    """Sixteen digits of a hash of the library's source."""
    root = Path(__file__).parents[1]
    source = b"".join(p.read_bytes() for p in sorted(root.rglob("*.py")))
    return hashlib.sha256(source).hexdigest()[:16]


def _plain(what: str, value: Any) -> Any:
    """`value` as it will be read from the file."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise ValueError(f"{what}: {value!r} cannot be recorded: {e}.") from None


def _line(key: str, value: Any) -> str:
    return f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}"
