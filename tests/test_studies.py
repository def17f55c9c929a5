"""Recorded studies: killed and resumed is unbroken; differences are paired by seed;
every record in the package loads, is complete and is of a study that exists.
"""

import importlib
import json
import os
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import hra
from hra import studies
from hra.studies.study import Study

ROOT = Path(__file__).resolve().parents[1]
RECORDS = sorted(
    f.name[:-5]
    for f in (files("hra.studies") / "records").iterdir()
    if f.name.endswith(".json")
)
STUDIES = [n for n in RECORDS if (ROOT / f"hra/studies/{n}.py").exists()]


def double(seed, lr):
    """A run of a study, at the top level so that another process finds it."""
    return {"bits": 2.0 * lr + seed, "threads": torch.get_num_threads()}


def study(folder, run=double, **setting):
    return Study("made_up", run, setting or {"steps": 3}, (0, 1), folder=folder)


JOBS = {f"lr={lr} seed={s}": {"lr": lr, "seed": s} for lr in (0.1, 0.2) for s in (0, 1)}


def main(s):
    runs = s.do(dict(list(JOBS.items())[:2])) | s.do(JOBS)
    s.protocol(studies.choose(runs.values(), by=[]), "itself")


def start(s, *argv):
    s.start(main, list(argv))
    return json.loads((s.folder / "made_up.json").read_text())


def test_killed_and_resumed_is_unbroken(tmp_path):
    whole = start(study(tmp_path / "whole"))
    assert whole["complete"] and list(whole["runs"]) == list(JOBS)
    for k in range(len(JOBS)):
        calls = []

        def killed(seed, lr, calls=calls, k=k):
            if len(calls) == k:
                raise KeyboardInterrupt
            calls.append((seed, lr))
            return double(seed, lr)

        broken = study(tmp_path / str(k), killed)
        with pytest.raises(KeyboardInterrupt):
            start(broken)
        if k:
            left = broken.record()
            assert len(left["runs"]) == k and not left["complete"]
        again = study(
            tmp_path / str(k),
            lambda seed, lr, c=calls: c.append((seed, lr)) or double(seed, lr),
        )
        assert start(again) == whole
        assert len(calls) == len(JOBS) == len(set(calls))
        assert not [f for f in os.listdir(tmp_path / str(k)) if f.endswith(".part")]
    assert (tmp_path / "0/made_up.json").read_bytes() == (
        tmp_path / "whole/made_up.json"
    ).read_bytes()


def test_two_processes_record_the_same(tmp_path):
    one, two = study(tmp_path / "1"), study(tmp_path / "2")
    assert start(one) == start(two, "--workers", "2")
    assert {r["threads"] for r in one.record()["runs"].values()} == {1}


def test_a_job_runs_again_only_when_its_arguments_have_changed(tmp_path):
    calls = []

    def run(seed, lr):
        calls.append(lr)
        return double(seed, lr)

    study(tmp_path, run).do({"a": {"seed": 0, "lr": 0.1}, "b": {"seed": 1, "lr": 0.1}})
    s = study(tmp_path, run)
    runs = s.do({"a": {"seed": 0, "lr": 0.1}, "b": {"seed": 1, "lr": 0.3}})
    assert calls == [0.1, 0.1, 0.3] and runs["b"]["bits"] == 1.6
    start(s)  # what main does not ask for leaves the record
    assert list(s.record()["runs"]) == list(JOBS)


def test_another_setting_is_refused_and_fresh_begins_again(tmp_path):
    start(study(tmp_path))
    before = (tmp_path / "made_up.json").read_bytes()
    with pytest.raises(ValueError, match=r"setting.*cannot be mixed.*--fresh"):
        study(tmp_path, steps=4).do(JOBS)
    with pytest.raises(SystemExit, match="cannot be mixed"):
        start(study(tmp_path, steps=4))
    assert (tmp_path / "made_up.json").read_bytes() == before
    assert start(study(tmp_path, steps=4), "--fresh")["setting"] == {"steps": 4}


def test_a_failing_job_is_named_and_the_others_stay(tmp_path):
    def run(seed, lr):
        if lr == 0.2:
            raise RuntimeError("the loss is nan at step 3")
        return double(seed, lr)

    s = study(tmp_path, run)
    with pytest.raises(RuntimeError, match=r"'lr=0.2 seed=0' failed.*nan.*2 runs are"):
        s.do(JOBS)
    assert len(s.record()["runs"]) == 2


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"bits": float("nan")}, "cannot be recorded"),
        ({"bits": 1.0, "lr": 3}, "'lr', which is an argument"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path, found, words):
    s = study(tmp_path, lambda seed, lr: found)
    with pytest.raises(ValueError, match=words):
        s.do(JOBS)
    assert s.record()["runs"] == {}


def test_paired_differences_on_a_hand_example():
    # seeds differ by 1.0; b is 0.1, 0.2 and 0.3 worse: mean 0.2, deviation 0.1, and
    # t(0.975, 2) = 4.303: half-width 4.303 * 0.1 / sqrt(3) = 0.2484
    a = [{"seed": s, "bits": 2.0 + s} for s in range(3)]
    b = [{"seed": s, "bits": 2.0 + s + 0.1 * (s + 1)} for s in (2, 0, 1)]
    mean, half = studies.paired(b, a)
    assert mean == pytest.approx(0.2) and half == pytest.approx(0.2484, abs=1e-4)
    assert studies.paired(a, b)[0] == pytest.approx(-0.2)
    # unpaired, the seeds' spread of 1.0 hides it: 4.303 * 1.0 / sqrt(3) = 2.484
    assert studies.interval(a)[1] == pytest.approx(2.484, abs=1e-3)
    with pytest.raises(ValueError, match="same seeds"):
        studies.paired(a, b[:2])
    with pytest.raises(ValueError, match="each once"):
        studies.interval([a[0], a[0]])
    with pytest.raises(ValueError, match="two or more"):
        studies.interval(a[:1])


def test_rows_and_the_choice_of_a_rate():
    runs = [
        {"m": m, "lr": lr, "seed": s, "part": "test", "bits": b + s / 10}
        for m, lr, b in (("x", 1, 3.0), ("x", 3, 2.0), ("x", 2, 2.5), ("y", 1, 1.0))
        for s in (0, 1)
    ]
    rows = studies.rows([*runs, {"part": "validation"}], ["m", "lr"], part="test")
    assert [(r["m"], r["lr"]) for r in rows] == [("x", 1), ("x", 3), ("x", 2), ("y", 1)]
    assert rows[0]["seeds"] == [0, 1] and rows[0]["mean"] == pytest.approx(3.05)
    assert studies.rows(runs, ["lr"], m="y", seed=1)[0]["half"] is None
    with pytest.raises(ValueError, match="no field 'rank'; it has m, lr, seed"):
        studies.rows(runs, ["rank"])
    x, y = studies.choose(runs, ["m"])
    assert x["grid"] == [1, 2, 3] and x["best"] == 3 and not x["interior"]
    (up,) = studies.choose(runs, ["m"], best=lambda v: sorted(v)[1], m="x")
    assert up["best"] == 2 and up["interior"] and not y["interior"]


def test_a_grid_grows_until_its_best_lies_inside_or_the_ladder_ends(tmp_path):
    from hra.studies import moby

    best = {"inside": 3.0, "above": 6.0, "top": 99.0, "below": -99.0}
    seen = []

    def run(setting, task, seed, lr, part):
        seen.append((setting, lr))
        assert (task, seed, part) == ("text", moby.TUNING, "validation")
        return {"off": abs(lr - best[setting])}

    s = study(tmp_path, run)
    ladder = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    chosen = moby.search(
        s, dict.fromkeys(best, ladder[1:4]), ladder, "off", task="text"
    )
    got = {c["setting"]: (c["grid"], c["best"], c["interior"]) for c in chosen}
    assert got == {
        "inside": ([2, 3, 4], 3, True),
        "above": ([2, 3, 4, 5, 6, 7], 6, True),
        "top": ([2, 3, 4, 5, 6, 7], 7, False),
        "below": ([1, 2, 3, 4], 1, False),
    }
    assert len(seen) == len(set(seen)) == sum(len(g) for g, *_ in got.values())


def test_a_record_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ValueError, match=r"no record 'lora'.*lora_moby"):
        studies.record("lora")


# ---- the records of the package


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_loads_anywhere_and_says_how_it_was_made(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    record = studies.record(name)
    module = record["command"].removeprefix("python -m ")
    folder = module.split(".")[0]  # hra, or benchmarks, which is not installed
    if (ROOT / folder).is_dir():
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    assert module.split(".")[-1] == name
    text = json.dumps(record)
    assert "NaN" not in text and "Infinity" not in text
    said = record["sessions"] if name in STUDIES else [record]
    assert all(s["machine"] and s["date"] for s in said)


@pytest.mark.parametrize("name", STUDIES)
def test_every_studys_record_is_complete(name):
    record, module = (
        studies.record(name),
        importlib.import_module(f"hra.studies.{name}"),
    )
    own = module.STUDY
    assert record["study"] == own.name == name and record["complete"]
    header = own._header()
    for k in ("command", "model", "weights", "setting", "seeds"):
        assert record[k] == header[k], k
    runs = record["runs"]
    assert len(runs) <= sum(s["runs"] for s in record["sessions"])
    # every reported setting has every seed, or, beside a grid's best, the first alone
    reported, groups = studies.select(runs.values(), part="test"), {}
    for key, r in runs.items():
        if r["part"] == "test":
            groups.setdefault(key.rpartition(" seed=")[0], []).append(r["seed"])
    assert all(g in ([*own.seeds], [own.seeds[0]]) for g in groups.values()), groups
    box = record["protocol"]
    other = studies.record(box["study"])["runs"].values()
    tuning = studies.select(other, part="validation")
    assert tuning and not {r["seed"] for r in tuning} & set(own.seeds)
    for c in box["chosen"]:
        assert c["best"] in c["grid"] and len(c["grid"]) == len(c["values"]) >= 3
        is_ = {k: c[k] for k in c if k not in ("grid", "values", "best", "interior")}
        if "task" in is_ and "lrs" in reported[0]:  # two adapters a run
            task = is_.pop("task")
            pair, place = next(
                (p, tasks.index(task))
                for p, tasks in module.PAIRS.items()
                if task in tasks
            )
            best = studies.select(reported, pair=pair, **is_)
            best = [r for r in best if r["lrs"][place] == c["best"]]
        else:
            best = studies.select(reported, lr=c["best"], **is_)
        assert {r["seed"] for r in best} == {*own.seeds}, c


def test_runs_that_two_records_hold_agree():
    held = {}
    for name in STUDIES:
        for r in studies.record(name)["runs"].values():
            if r.get("targets", r"c_attn|c_proj|c_fc") != r"c_attn|c_proj|c_fc":
                continue  # lora_moby's other places
            if "lr" not in r or "task" in r or "steps" in r:
                continue  # one of two adapters, or both; another task or course
            rank = f" r={r['hyper']['r']}" if r.get("hyper") else ""
            setting = r.get("setting") or r["method"] + rank + r.get("kind", "")
            key = setting, r["lr"], r["seed"], r["part"]
            held.setdefault(key, {})[name] = r.get("bits"), r["trained"]
    twice = {k: v for k, v in held.items() if len(v) > 1}
    assert len(twice) >= 30
    for key, by_name in twice.items():
        bits, trained = zip(*by_name.values(), strict=True)
        assert max(bits) - min(bits) < 0.005 and len(set(trained)) == 1, (key, by_name)


def test_a_study_does_again_what_it_has_recorded():
    """Two steps of a run of the record, here: the losses of the same seed agree."""
    from hra.studies import moby

    run = studies.record("lora_moby")["runs"]["LoRA r=8 seed=1"]
    model = hra.zoo.gpt2("tiny")
    tuned = moby.attach(model, moby.tokens(), "LoRA", 1, run["hyper"])
    losses = []
    hra.fit(
        tuned,
        moby.batches(1),
        moby.STEPS,
        run["lr"],
        progress=False,
        callback=lambda log: losses.append(log.losses[-1]) or len(losses) < 3,
    )
    assert losses == pytest.approx(run["losses"][:3], abs=2e-3)
    assert tuned.num_trainable == run["trained"]


# ---- the adapters that travel with the package


@pytest.mark.parametrize(
    "name", sorted(f.name for f in (ROOT / "hra/studies/records").glob("*.safetensors"))
)
def test_every_adapter_of_a_record_loads(name):
    model = hra.zoo.gpt2 if name.startswith("intruders") else hra.zoo.vit
    tuned = hra.load(model("tiny"), ROOT / "hra/studies/records" / name)
    changed = (a.delta_weight().abs().max() > 0 for a in tuned.adapters.values())
    assert any(changed)


@pytest.mark.parametrize("method", ["LoRA", "SHiRA"])
@pytest.mark.parametrize("kind", ["rotated", "inverted"])
def test_the_digit_adapters_are_those_of_the_record(kind, method):
    from hra.studies import digit_shifts as d

    path = Path(str(d.adapter(method, kind)))
    assert path.stat().st_size < 400_000
    vit = hra.zoo.vit("tiny")
    tuned = hra.load(vit, path)
    run = d.record()["runs"][f"{method} {kind} seed={d.SEEDS[0]}"]
    assert tuned.num_trainable == run["trained"] == 86_016
    assert type(next(iter(tuned.adapters.values()))) is hra.METHODS[method]
    now = d.scores(vit, "test")
    assert now == pytest.approx(run["accuracies"], abs=0.01)
    tuned.detach()
    before = d.scores(vit, "test")
    assert before == pytest.approx(d.record()["before"], abs=0.01)
    assert now[kind] > 0.9 > 0.3 > before[kind]


@pytest.mark.parametrize("name", ["LoRA r=2", "SHiRA rand", "SHiRA grad"])
def test_the_text_adapters_are_those_of_the_record(name):
    from hra.studies import intruders, moby

    path = Path(str(intruders.adapter(name)))
    assert path.stat().st_size < 250_000 and name in intruders.FILES
    runs = intruders.STUDY.record()["runs"].values()
    (run,) = studies.select(runs, setting=name, seed=0, part="test")
    tuned = hra.load(hra.zoo.gpt2("tiny"), path)
    assert tuned.num_trainable == run["trained"]
    assert moby.bits(tuned.model) == pytest.approx(run["bits"], abs=0.005)
