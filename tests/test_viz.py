"""Widgets: the same numbers in Python and in the browser's script; pages that need no
kernel.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.text import Text

import hra
from hra.viz import RankSlider
from hra.viz.style import VARIABLES

VIZ = Path(hra.__file__).parent / "viz"
node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def javascript(widget, expression):
    """What `expression` is in the page's script: `m` the widget's export, `base` what
    the widgets share.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "widget.mjs"
        path.write_text(f"{widget.script()}\nexport {{ base }};", encoding="utf-8")
        code = (
            f"const {{ default: m, base }} = await import({json.dumps(path.as_uri())});"
            f"console.log(JSON.stringify({expression}))"
        )
        out = subprocess.run(
            ["node", "--input-type=module", "-e", code],
            capture_output=True,
            text=True,
            check=False,
        )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def at_each(widget, choices):
    """`facts` of the script at the widget's state with each of the choices."""
    state = json.dumps(widget.public_state())
    return javascript(
        widget, f"{json.dumps(choices)}.map(c => m.facts({{...{state}, ...c}}))"
    )


def slider(**kw):
    torch.manual_seed(0)
    return RankSlider(torch.randn(20, 12), **kw)


def test_a_small_matrix_needs_no_rank_and_a_large_rank_is_refused():
    w = RankSlider(torch.eye(4))
    assert w.r == 4 and RankSlider(torch.ones(20, 12)).r == 8
    with pytest.raises(ValueError, match=r"r=4000 is out of range: 0 to 4"):
        w.r = 4000
    assert w.r == 4


@node
def test_the_script_computes_what_the_library_computes():
    torch.manual_seed(0)
    W = torch.randn(20, 12)
    w = RankSlider(W)
    choices = [{"r": r} for r in (0, 1, 5, 12)]
    state = json.dumps(w.public_state())
    drawn = javascript(
        w, f"{json.dumps(choices)}.map(c => m.entries({{...{state}, ...c}}))"
    )
    for choice, got, picture in zip(choices, at_each(w, choices), drawn, strict=True):
        w.r = r = choice["r"]
        assert got["energy"] == pytest.approx(w.energy(), abs=1e-9)
        assert got["random"] == pytest.approx(w.energy(w.random), abs=1e-9)
        assert got["bytes"] == w.bytes() == 4 * r * 32 and got["dense"] == 960
        # the picture is the truncated matrix, but for eight bits a factor
        low = hra.analysis.rank.truncate(W, r) if r else 0 * W
        shown = torch.tensor(picture["values"]).reshape(20, 12)
        assert (shown - low).abs().max() < 0.02 * W.abs().max()


def test_the_random_matrix_has_the_shape_and_the_norm():
    W = torch.outer(torch.arange(9.0), torch.ones(5))
    w = RankSlider(W, r=1)
    assert len(w.random) == 5 and w.energy() == pytest.approx(1)
    norm = sum(s * s for s in w.random) ** 0.5
    assert norm == pytest.approx(float(W.norm()), rel=1e-3)
    assert 0.2 < w.energy(w.random) < 0.8 and "random matrix" in w.summary()


def test_the_picture_samples_a_large_matrix_and_leaves_out_a_huge_one():
    w = RankSlider(torch.randn(700, 600))
    assert len(w.picture["left_rows"]) == len(w.picture["right_rows"]) == 20
    assert len(json.dumps(w.public_state())) < 50_000
    assert RankSlider(torch.randn(800, 900)).picture == {}


def test_energy_is_the_share_of_the_truncated_matrix():
    torch.manual_seed(0)
    W = torch.randn(20, 12)
    for r in (1, 4, 11):
        share = hra.analysis.rank.truncate(W, r).square().sum() / W.square().sum()
        assert RankSlider(W, r=r).energy() == pytest.approx(float(share), rel=1e-3)


def test_static_html_is_deterministic_and_loads_nothing():
    a, b = (slider(alt='<"x"></script>').static_html(b"png") for _ in range(2))
    assert a == b and a.lower().count("</script") == 2
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", a)


def test_the_bundle_serves_every_reader():
    data, _ = slider()._repr_mimebundle_()
    # one HTML, with a kernel or without: the view of a live widget is dead when saved
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert data["text/plain"].startswith("rank 8 of 12")
    assert (
        len(json.dumps(slider().public_state())) < 50_000
        and RankSlider._js_path.stat().st_size < 10_000
    )


VIEW = "application/vnd.jupyter.widget-view+json"


def test_code_and_colab_show_the_widgets_own_view(monkeypatch):
    monkeypatch.setenv("VSCODE_PID", "1")
    assert VIEW in slider()._repr_mimebundle_()[0]
    monkeypatch.delenv("VSCODE_PID")
    assert VIEW not in slider()._repr_mimebundle_()[0]
    shell = SimpleNamespace(user_ns={"__vsc_ipynb_file__": "a.ipynb"})
    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell)
    )
    assert VIEW in slider()._repr_mimebundle_()[0]
    monkeypatch.delitem(shell.user_ns, "__vsc_ipynb_file__")
    assert VIEW not in slider()._repr_mimebundle_()[0]


def test_a_rank_out_of_range_is_refused():
    with pytest.raises(ValueError, match="r=13 is out of range: 0 to 12"):
        slider(r=13)
    w = slider()
    for r in (4000, -1):
        with pytest.raises(ValueError, match=f"r={r} is out of range: 0 to 12"):
            w.r = r
        assert w.r == 8
    with pytest.raises(ValueError, match="a matrix is needed"):
        RankSlider(torch.randn(3))
    for more in ({"marks": {"r": {"all": 4000}}}, {"presets": {"all": {"r": 4000}}}):
        with pytest.raises(ValueError, match="r=4000 is out of range: 0 to 12"):
            slider(**more)


# of every widget each number and name that may be set: what is refused, what is said
REFUSED = {
    "rank": {"r": (4000, "0 to 12")},
    "mask": {"at": (2, "0 to 1"), "rule": ("x", "one, two"), "other": ("", "one, two")},
    "bill": {
        "model": ("GPT-9", "one layer, GPT-2 small"),
        "method": ("Lora", "FullFT, LoRA"),
        "plan": ("fp8", "fp32"),
        "d_out": (0, "32 to 16384"),
        "d_in": (10**6, "32 to 16384"),
        "r": (4000, "1 to 512"),
        "density": (float("nan"), "0.001 to 0.1"),
        "tokens": (0, "1 to 65536"),
        "images": (1000, "1 to 256"),
    },
    "replay": {
        "at0": (3, "0 to 2"),
        "at1": (-1, "0 to 1"),
        "at2": (1, "0 to 0"),
        "along": (2, "0 to 1"),
    },
    "paint": {"cells": ("01", "144 digits")},
    "forgetting": {"name": ("x", "one, two"), "after": (4, "1 to 3")},
    "switch": {
        "at": (2, "0 to 1"),
        "r": (4000, "1 to 256"),
        "thousandths": (0, "1 to 200"),
        "bandwidth": (0, "1 to 200"),
    },
    "sparserank": {
        "mask": ("x", "rand, struct, weight, by hand"),
        "at": (6, "0 to 5"),
        "r": (17, "0 to 16"),
    },
    "bound": {
        "case": ("x", "real, by hand"),
        "order": ("best", "rows first, columns first, refined, random"),
        "at": (33, "0 to 32"),
    },
    "subnet": {
        "name": ("x", "by hand, 8 × 8, real"),
        "order": ("best", "independent, rows, columns, refined, exact"),
        "sixteenths": (17, "1 to 16"),
    },
    "slots": {
        "period": (0, "1 to 100"),
        "layers": (34, "1 to 33"),
        "steps": (4000, "1 to 3000"),
        "at": (0, "1 to 3000"),
        "schedule": ("fixed", "async, sync"),
        "warmup": (2.0, "0 to 1"),
    },
    "drift": {
        "at": (3, "0 to 2"),
        "run": ("x", "moves, fixed"),
        "other": ("", "first, last"),
    },
    "family": {
        "sort": ("x", "method, mask, trained, bits"),
        "choice": ({"mask": "x"}, "fixed, moves, –; for all leave 'mask' out"),
    },
    "panel": {
        "r": (4000, "1 to 64"),
        "density": (0.9, "0.001 to 0.316"),
        "lr": (1.0, "0.0001 to 0.1"),
        "mask": ("x", "rand, weight, struct"),
        "target": ("x", "attention, attention and MLP"),
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_widget_does_not_have_is_refused(name):
    w = panel() if name == "panel" else WIDGETS[name]()
    js = w._js_path.read_text(encoding="utf-8")
    shown = set(re.findall(r'\b(?:slider|choices|log)\("(\w+)"', js))
    assert shown <= set(REFUSED[name])  # every slider and every menu is among them
    for trait, (value, said) in REFUSED[name].items():
        before = getattr(w, trait)
        with pytest.raises(ValueError, match=said):
            setattr(w, trait, value)
        assert getattr(w, trait) == before


def panel(steps=6, **kw):
    model = lambda: hra.zoo.gpt2("random")  # noqa: E731
    ids = torch.arange(256)
    recorded = hra.Log(
        [{"step": 1, "loss": 2.0, "lr": 1.0, "grad_norm": 1.0, "seconds": 0.0}]
    )
    evaluate = kw.pop("evaluate", lambda m: 3.0)
    return hra.viz.live(
        model,
        lambda: hra.data.lm_batches(ids, 2, 16),
        evaluate,
        recorded,
        steps=steps,
        **kw,
    )


def test_the_live_panel_trains_and_reports():
    p = panel(every=3)
    p.r = 2
    p.start()
    p.wait()
    assert p.error is None and len(p.run.steps) == p.step == 6
    # the level before the first step, then every third
    assert [e["step"] for e in p.run.evaluations] == [0, 3, 6]
    assert "Done" in p.status and p.picture.startswith("<svg") and not p.running


def test_the_live_panel_draws_the_level_before_it_trains():
    p = panel(steps=5000)
    seen = []
    p.observe(lambda change: seen.append((change.new, p.status)), "picture")
    p.make_batches = lambda: seen.append("the first batch is asked for")
    p.start()
    p.wait()
    (picture, status), asked = seen
    assert picture.startswith("<svg") and status == "Starting…"
    assert asked == "the first batch is asked for" and "nan" not in picture
    assert p.run.steps == [] and p.run.evaluations == [{"step": 0, "value": 3.0}]


@pytest.mark.parametrize("level", [float("nan"), float("inf")])
def test_the_live_panel_never_prints_nan(level):
    p = panel(evaluate=lambda m: level)
    said = []
    p.observe(lambda change: said.append(change.new), ["status", "picture"])
    p.start()
    p.wait()
    assert said and not re.search(r"\b(nan|inf)\b", " ".join(map(str, said)))
    assert "Done" in p.status


def test_the_live_panel_says_when_the_rate_is_too_high():
    p = panel(steps=50)
    make = p.make_model

    def diverge(module, given, out):
        out.loss = out.loss * float("nan")

    def torn():
        model = make()
        model.register_forward_hook(diverge)
        return model

    p.make_model, p.evaluate = torn, lambda m: 3.0
    p.start()
    p.wait()
    assert isinstance(p.error, RuntimeError) and not p.running
    assert p.status.startswith("Stopped: the loss is nan at step 1")


def test_the_live_panel_can_be_cancelled():
    p = panel(steps=5000)
    p._show = (
        lambda show: (
            lambda log: (p._stop.set() if len(log.steps) == 3 else None, show(log))[1]
        )
    )(p._show)
    p.start()
    p.wait()
    assert len(p.run.steps) == 3 and "Cancelled after 3 steps" in p.status
    assert "nats per token; before, 3.00 bits" in p.status
    assert "nan" not in p.status


def test_one_panel_trains_at_a_time_and_says_so_at_once():
    begun, go = threading.Event(), threading.Event()
    first = panel(steps=5000)
    make = first.make_model
    first.make_model = lambda: (begun.set(), go.wait(60), make())[2]
    first.start()
    assert begun.wait(60) and first.status == "Starting…" and first.running
    again = panel()  # its cell is run again
    go.set()
    first.wait()
    assert first.run.steps == [] and first.status.startswith("Cancelled before")
    third = panel(steps=5000)
    again.start()
    third.start()  # waits for the one before, which it stops
    third.cancel()
    third.wait()
    assert not again._thread.is_alive() and third.run.steps == []


def test_the_panels_buttons_reach_it():
    p = panel(steps=5000)
    p._handle_custom_msg({"do": "train"}, [])
    assert p.running and p.status == "Starting…"
    p._handle_custom_msg({"do": "cancel"}, [])
    p.wait()
    assert p.status.startswith("Cancelled") and not p.running


def test_the_live_panel_shows_what_went_wrong():
    p = panel()
    p.r = 64  # more than the model's width of 32
    p.start()
    p.wait()
    assert "out of range" in p.status


def test_without_a_kernel_the_panel_shows_what_was_recorded():
    p = panel()
    data, _ = p._repr_mimebundle_()
    assert "that needs a kernel" in data["text/plain"] and VIEW not in data
    assert f"<p>{data['text/plain']}</p><img " in data["text/html"]
    assert base64.b64decode(data["image/png"])[:4] == b"\x89PNG"
    p.recorded = replayed()
    html = p._repr_mimebundle_()[0]["text/html"]
    assert "runs recorded beforehand" in html and 'class="hra-widget"' in html


def test_a_figure_shows_itself_with_words_for_those_who_do_not_see_it():
    fig = hra.viz.intervals(
        {"LoRA r=1": (2.0, 0.1)}, "bits per character", {"before": 3.0}
    )
    bundle = fig._repr_mimebundle_()
    said = "Intervals of bits per character: LoRA r=1 2.00 plus or minus 0.10"
    assert f'aria-label="{said}; before 3.00"' in bundle["text/html"]
    assert bundle["image/png"] and bundle["text/plain"].startswith(said)
    places = {"c_attn": (2.0, 0.1)}
    assert hra.viz.intervals(places, "bits", method="LoRA").svg()
    with pytest.raises(ValueError, match="'c_attn' is no method"):
        hra.viz.intervals(places, "bits")


def explorer(**kw):
    g = torch.Generator().manual_seed(0)
    drawn = {
        "one": [torch.rand(60, 40, generator=g) < p for p in (0.02, 0.2)],
        "two": [torch.eye(60, 40) > 0] * 2,
    }
    return hra.viz.MaskExplorer(drawn, [0.02, 0.2], **kw), drawn


@node
def test_the_mask_explorer_says_what_the_library_says():
    w, drawn = explorer(parts=("q", "k", "v"))
    choices = [
        {"rule": a, "other": b, "at": i} for a in drawn for b in drawn for i in (0, 1)
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        assert got == w.facts()
        one, two = drawn[w.rule][w.at], drawn[w.other][w.at]
        assert got["shared"] == (one & two).sum()
        assert got["chance"] == pytest.approx(float(one.sum() * two.sum() / 2400))
        for mask, said in ((one, got), (two, got["other"])):
            assert said["K"] == mask.sum() and said["rows"] == mask.any(1).sum()
            assert said["structural"] == hra.analysis.rank.structural_rank(mask)
            assert said["parts"] == [int(mask[20 * i :][:20].sum()) for i in range(3)]


def test_the_mask_explorers_fallback_size_and_refusals():
    w, drawn = explorer(at=1)
    assert (
        w.summary().startswith("one: ") and w.fallback_figure().words() == w.summary()
    )
    assert (
        len(w._js_path.read_bytes()) < 10_240
        and len(w.table["one"][0]["cells"]) == 24 * 24
    )
    assert w.table["two"][0]["structural"] == 40 and w.other == "two"
    full = torch.ones(48, 48, dtype=torch.bool)
    masks = {"full": [full], "rand": [full & (torch.arange(48) == 0)]}
    w = hra.viz.MaskExplorer(masks, [1.0])
    assert set(w.table["full"][0]["cells"]) == {"9"}
    # half of each cell of the first column, seen by the root
    assert w.table["rand"][0]["cells"] == ("7" + "0" * 23) * 24
    with pytest.raises(ValueError, match="0 to 1"):
        explorer(at=2)
    with pytest.raises(ValueError, match="'three' is none of these: one, two"):
        explorer(rule="three")
    with pytest.raises(ValueError, match="60 outputs cannot be cut into 7"):
        explorer(parts="abcdefg")
    with pytest.raises(ValueError, match="two rules"):
        hra.viz.MaskExplorer({"one": drawn["one"]}, [0.02, 0.2])
    many = {k: v * 30 for k, v in drawn.items()}
    with pytest.raises(ValueError, match="leave out some densities"):
        hra.viz.MaskExplorer(many, [0.02, 0.2] * 30)


def drift(**kw):
    """A mask of 30 entries that moves in two steps, one of 20 that stays."""
    g = torch.Generator().manual_seed(0)
    lots = torch.rand(60, 40, generator=g).flatten().argsort()
    mask = lambda a, b: torch.zeros(2400).index_fill(0, lots[a:b], 1).view(60, 40) > 0  # noqa: E731
    masks = {
        "moves": [mask(k, k + 30) for k in (0, 10, 35)],
        "fixed": [mask(0, 20)] * 3,
    }
    against = {"first": mask(0, 30), "last": mask(30, 70)}
    return hra.viz.MaskOverTime(masks, [0, 5, 20], against, **kw), masks, against


@node
def test_the_mask_over_time_counts_what_the_masks_have():
    w, masks, against = drift(parts=("q", "k", "v"))
    assert len(w._js_path.read_bytes()) < 10_240
    choices = [
        {"run": run, "other": b, "at": i}
        for run in masks
        for b in against
        for i in range(3)
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        assert got == w.facts()
        of, a = masks[w.run], against[w.other]
        m, before = of[w.at], of[max(w.at - 1, 0)]
        assert got["K"] == m.sum() and got["kept"] == (m & of[0]).sum()
        assert got["changed"] == (m & ~before).sum() and got["shared"] == (m & a).sum()
        assert got["chance"] == pytest.approx(float(m.sum() * a.sum() / m.numel()))
    w.run, w.other, w.at = "moves", "last", 1
    assert w.summary() == (
        "moves, step 5: 20 of the first 30 entries are left; 10 are new since step 0; "
        "10 of 30 are among those of last, by chance 0.5"
    )
    assert w.fallback_figure().words() == w.summary()


@node
def test_the_mask_over_time_draws_the_digits_of_the_mask_explorer():
    from hra.viz.drift import digits
    from hra.viz.mask import reduced

    w, masks, _ = drift()
    assert len(w.pictures) == 4  # the fixed mask's once
    read = javascript(w, f"{json.dumps(w.pictures)}.map(m.digits)")
    assert read == [list(map(list, digits(p))) for p in w.pictures]
    for name, of in masks.items():
        for before, mask, one in zip((of[0], *of), of, w.runs[name], strict=False):
            drawn = [reduced(mask), reduced(mask & ~before)]
            assert read[one["picture"]] == [[int(d) for d in ds] for ds in drawn]


def test_the_mask_over_time_refuses_what_is_no_run(monkeypatch):
    _, masks, against = drift()
    make, steps = hra.viz.MaskOverTime, [0, 5, 20]
    some = torch.ones(60, 40) > 0
    for args, said in (
        (({}, steps, against), "0 runs and 2 masks to compare with"),
        ((masks, steps, {}), "2 runs and 0 masks to compare with"),
        ((masks, [0, 5], against), "moves: 3 masks for 2 steps"),
        ((masks, [5, 0, 20], against), r"steps=\[5, 0, 20\]: give two or more"),
        (({"a": [some]}, [0], against), r"steps=\[0\]: give two or more"),
        (
            (masks, steps, {"a": some.T}),
            r"a is \(40, 60\) of torch.bool; .* \(60, 40\)",
        ),
        ((masks, steps, {"a": some.float()}), "a is .* of torch.float32; all masks"),
        (({"a": [some, some, ~some]}, steps, against), "a, step 20 is empty"),
    ):
        with pytest.raises(ValueError, match=said):
            make(*args)
    with pytest.raises(ValueError, match="60 outputs cannot be cut into 7"):
        drift(parts=tuple("abcdefg"))
    monkeypatch.setattr("hra.viz.static.LIMIT", 3000)
    with pytest.raises(
        ValueError, match=r"2 runs of 3 steps are .* leave out some steps"
    ):
        drift()


ROWS = [
    ["SHiRA", "fixed", 4096, (2.0312, 0.01)],
    ["spiel", "moves", 4096, (2.01, 0.02)],
    ["LoRA", None, 10_000, 2.0],
    ["RoSA", "fixed", 900, None],
    ["FullFT", "", float("inf"), float("nan")],
]


def family(**kw):
    columns = {"method": None, "mask": None, "trained": ",", "bits": ".3f"}
    return hra.viz.FamilyTable(ROWS, columns, ["mask"], **kw)


@node
def test_the_family_table_sorts_and_filters_in_both_languages():
    w = family()
    assert len(w._js_path.read_bytes()) < 10_240
    choices = [
        {"sort": sort, "descending": down, "choice": choice}
        for sort in ("", "method", "mask", "trained", "bits")
        for down in (False, True)
        for choice in ({}, *({"mask": v} for v in w.filters["mask"]))
    ]
    state = json.dumps(w.public_state())
    said = javascript(
        w, f"{json.dumps(choices)}.map(c => m.summary({{...{state}, ...c}}))"
    )
    for choice, got, words in zip(choices, at_each(w, choices), said, strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        assert got == w.facts() and words == w.summary(), choice
    assert w.fallback_figure().words() == w.summary()


def test_the_family_table_is_ordered_by_value_and_gaps_are_last():
    w = family(sort="bits")
    assert w.facts() == ["LoRA", "spiel", "SHiRA", "RoSA", "FullFT"]
    assert w.summary() == (
        "5 of 5 methods, by bits, smallest first: LoRA, spiel, SHiRA; "
        "2 without bits, last"
    )
    w.descending = True
    assert w.facts() == ["SHiRA", "spiel", "LoRA", "RoSA", "FullFT"]
    w.sort = "trained"  # equal ones stay as they were given
    assert w.facts() == ["FullFT", "LoRA", "SHiRA", "spiel", "RoSA"]
    w.descending = False
    assert w.facts() == ["RoSA", "SHiRA", "spiel", "LoRA", "FullFT"]
    w.sort = "method"
    assert w.facts() == ["FullFT", "LoRA", "RoSA", "SHiRA", "spiel"]
    assert ": FullFT, …, spiel" in w.summary() and "A to Z" in w.summary()
    w.sort, w.choice = "", {"mask": "fixed"}
    assert w.facts() == ["SHiRA", "RoSA"]
    assert w.summary() == "2 of 5 methods (mask: fixed): SHiRA, RoSA"
    # formatted once, as a table is
    assert w.table().cells == [
        ["method", "mask", "trained", "bits"],
        ["SHiRA", "fixed", "4,096", "2.031 ± 0.010"],
        ["RoSA", "fixed", "900", "–"],
    ]
    json.loads(json.dumps(w.public_state()), parse_constant=pytest.fail)


def test_the_family_table_refuses():
    make, columns = hra.viz.FamilyTable, ["method", "bits"]
    for kw, said in (
        ({"filters": ["kind"]}, "filters: no 'kind'; there are method, bits"),
        ({"sort": "kind"}, "sort: no 'kind'; there are method, bits"),
        ({"choice": {"bits": "1"}}, "choice: no 'bits'; there are method"),
        ({"choice": {"method": "b"}}, "choice='b' of 'method' is none of these: a"),
        ({"presets": {"x": {"sort": "kind"}}}, "sort: no 'kind'"),
    ):
        with pytest.raises(ValueError, match=said):
            make([["a", 1]], columns, **{"filters": ["method"]} | kw)
    for rows, said in (
        ([], "at least one row"),
        ([["a", 1], ["b"]], "the row of 'b' has 1 cells for 2 columns"),
        ([["a", 1], ["b", "two"]], "the column 'bits' has 1, 'two'; give words or"),
        ([["a" * 60, k] for k in range(1000)], "bytes for the page"),
    ):
        with pytest.raises(ValueError, match=said):
            make(rows, columns)


def switch(**kw):
    recorded = {
        "512": {"bare": 0.1, "dense copy_": 0.05},
        "4096": {"bare": 3.0, "dense copy_": 8.0},
    }
    return hra.viz.SwitchCost(recorded, **kw), recorded


@node
def test_the_switch_explorer_computes_the_librarys_roofline():
    w, _ = switch(d=512)
    choices = [
        {"at": a, "thousandths": t, "r": r, "bandwidth": b}
        for a in (0, 1)
        for t, r, b in ((1, 1, 3), (25, 64, 40), (200, 256, 200))
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        assert got == pytest.approx(w.facts())
    assert (
        "memory alone asks for" in w.summary()
        and w.fallback_figure().words() == w.summary()
    )
    assert len(w._js_path.read_bytes()) < 10_240


def test_the_traffic_counts_lines_of_the_cache_once():
    w, _ = switch(d=512, bandwidth=10)
    n = 512 * 512
    mask = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.05
    lines = int(mask.view(-1, 16).any(1).sum())  # that an actual mask touches
    w.thousandths = 50
    moved = 2 * (128 * lines + 12 * int(mask.sum()))
    assert w.bytes()["sparse"] == pytest.approx(moved, rel=0.01)
    # all entries: both overwrites fetch and write back the whole weight
    assert w.bytes(1.0)["sparse"] == 2 * (8 * n + 12 * n)
    assert w.bytes()["copy"] == 12 * n
    assert w.bytes()["low rank"] == 2 * (8 * n + 8 * 32 * 512)
    # at the crossing both move as much, below it the sparse change moves less
    for other in ("copy", "low rank"):
        p = w.crossing(other)
        assert w.bytes(p)["sparse"] == pytest.approx(w.bytes()[other])
        assert w.bytes(p - 1e-3)["sparse"] < w.bytes()[other]
    assert 0.05 < w.crossing("copy") < w.crossing("low rank")


def test_the_bandwidth_is_that_of_the_measured_copy():
    w, recorded = switch(d=4096)
    for at, d in enumerate(w.sizes):
        w.at = at
        gigabytes = 12 * d * d / recorded[str(d)]["dense copy_"] / 1e6
        assert w.bandwidth == round(gigabytes)
    w.bandwidth = 7
    assert w.roofline()["copy"] == pytest.approx(12 * 4096**2 / 7e6)


@node
def test_the_step_explorer_has_the_librarys_law():
    w = hra.viz.StepSize({("α/r", "SGD"): [(1, 0.44), (8, 0.06)]}, n=192)
    choices = [
        {"rule": rule, "optimizer": o, "r": r, "thousandths": r}
        for rule in ("α/r", "α/√r")
        for o in ("SGD", "Adam")
        for r in (1, 16, 256)
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        assert got == pytest.approx(w.facts())
    for name, value in (("rule", "α"), ("r", 257), ("optimizer", "Lion")):
        with pytest.raises(ValueError, match=str(value)):
            setattr(w, name, value)
    assert w.fallback_figure().words() == w.summary()
    assert len(w._js_path.read_bytes()) < 10_240


@node
def test_the_count_explorer_counts_as_the_library_does():
    w = hra.viz.CountExplorer()
    choices = [
        {"model": model, "lora": r, "vera": 4 * r, "nola": 2 * r, "pranc": 3 * r}
        for model in ("GPT-2 small", "LLaMA-2 7B", "ViT-B/16")
        for r in (1, 8, 1024)
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        assert got == w.facts()
    for name, value in (("model", "GPT-5"), ("vera", 4097), ("lora", 0)):
        with pytest.raises(ValueError, match=str(value)):
            setattr(w, name, value)
    assert w.summary() and w.fallback_figure().words() == w.summary()
    assert len(w._js_path.read_bytes()) < 10_240


def test_the_count_explorer_has_the_counts_of_the_bill(monkeypatch):
    w = hra.viz.CountExplorer(lora=4, vera=32, nola=16, pranc=100)
    hyper = {"LoRA": {"r": 4}, "VeRA": {"r": 32}, "NOLA": {"k": 16, "l": 16}}
    hyper["PRANC"] = {"m": 100}
    for name, known in hyper.items():
        bill = hra.memory.preset_cost(
            "GPT-2 small", hra.METHODS[name], "all", tokens=1, **known
        )
        assert w.facts()[name]["trained"] == bill.trained.numbers, name
    # what is drawn in a step, counted on a model of two layers
    drawn = []
    real = torch.Tensor.uniform_
    monkeypatch.setattr(
        torch.Tensor,
        "uniform_",
        lambda t, *a, **k: drawn.append(t.numel()) or real(t, *a, **k),
    )
    shapes = [[24, 16], [12, 24]]
    w.models = {"GPT-2 small": [1, shapes]}
    for name in ("NOLA", "PRANC"):
        net = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 12))
        tuned = hra.attach(net, hra.METHODS[name], targets=".*", **hyper[name])
        drawn.clear()
        tuned.model(torch.ones(3, 16)).sum().backward()
        assert sum(drawn) == w.facts()[name]["random"], name


HAND = torch.tensor([[0.0, 3, 0], [2, 0, 0], [0, 0, 1]])


def sparse(**kw):
    g = torch.Generator().manual_seed(0)
    weight, full = torch.randn(2, 24, 16, generator=g)
    return hra.viz.SparseRank(weight, full, {"by hand": HAND}, **kw), weight, full


@node
def test_the_sparse_rank_widget_computes_what_the_library_computes():
    w, _, full = sparse()
    choices = [
        {"mask": mask, "at": at, "r": r}
        for mask in w.changes
        for at in (0, 3, 5)
        for r in (0, 1, 5, 16)
    ]
    state = json.dumps(w.public_state())
    drawn = javascript(
        w,
        f"{json.dumps(choices)}.map(c => [m.matrix, m.residual].map(f => "
        f"Array.from(f({{...{state}, ...c}}).values)))",
    )
    rank = hra.analysis.rank
    for choice, got, (change, left) in zip(
        choices, at_each(w, choices), drawn, strict=True
    ):
        for k, v in choice.items():
            setattr(w, k, v)
        S, r = w.matrix(), min(w.r, *w.matrix().shape)
        change, left = (
            torch.tensor(M, dtype=S.dtype).view_as(S) for M in (change, left)
        )
        assert torch.equal(change, S)
        low = rank.truncate(S, r)
        assert (left - (S - low)).abs().max() < 1e-9
        assert got.keys() == w.facts().keys()
        for k, v in w.facts().items():
            assert got[k] == pytest.approx(v, abs=1e-9), k
        # Eckart and Young: what is kept, and both errors
        energy = float(S.square().sum())
        spectral, frobenius = hra.analysis.bounds.eckart_young(S, r)
        kept = 1 - float((S - low).square().sum()) / energy
        assert got["kept"] == pytest.approx(kept, abs=1e-9) and got["r"] == r
        assert got["next"] == pytest.approx(spectral**2 / energy, abs=1e-9)
        if got["left"] is not None:
            assert got["left"] == pytest.approx(frobenius**2 / spectral**2)
        assert (got["left"] is None) == (r >= got["rank"])
        assert got["rank"] == torch.linalg.matrix_rank(S)
        same = S.shape == full.shape
        share = float(rank.captured(full)[r - 1]) if r else 0
        assert got["full"] == (pytest.approx(share, rel=1e-4) if same else None)
        assert got["matched"] * sum(S.shape) == got["K"] == (S != 0).sum()
        assert got["lora"] <= got["matched"] + 0.05 < got["lora"] + 1


def test_the_sparse_rank_widget_draws_the_librarys_masks():
    w, weight, _ = sparse()
    numbers = torch.randn(
        24, 16, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    for at, p in enumerate(w.densities):
        w.at = at
        for rule in ("rand", "struct", "weight"):
            w.mask = rule
            layer = torch.nn.Linear(16, 24, bias=False)
            layer.weight.data = weight
            on = torch.zeros(384).index_fill(
                0, hra.SHiRA(layer, mask=rule, density=p, seed=0).index.long(), 1
            )
            S = w.matrix()
            assert rule == "rand" or torch.equal(S != 0, on.view(24, 16) > 0)
            assert (S != 0).sum() == on.sum()
            assert (S - numbers * (S != 0)).abs().max() < 1e-4
    w.mask, w.r = "by hand", 1
    assert (w.matrix() - HAND).abs().max() < 1e-4
    assert w.facts()["left"] == pytest.approx(5 / 4, abs=1e-4)
    assert w.facts()["kept"] == pytest.approx(9 / 14, abs=1e-4)
    w.r = 16  # as far as another mask goes
    assert w.facts()["r"] == 3 and w.facts()["kept"] == 1


def test_the_sparse_rank_widgets_fallback_size_and_refusals():
    w, weight, full = sparse(mask="by hand")
    for mask in ("by hand", "rand"):
        w.mask = mask
        assert w.fallback_figure().words() == w.summary()
    assert "of a full change" in w.summary()
    assert len(w._js_path.read_bytes()) < 10_000
    big = torch.randn(64, 64)
    assert len(json.dumps(hra.viz.SparseRank(big, big).public_state())) < 50_000
    make = hra.viz.SparseRank
    with pytest.raises(ValueError, match=r"full is \(16, 24\), weight is \(24, 16\)"):
        make(weight, full.T)
    with pytest.raises(ValueError, match=r"weight is \(97, 1\)"):
        make(torch.ones(97, 1), full)
    for bad in (torch.zeros(3, 3), HAND / 0):
        with pytest.raises(ValueError, match="hers is zero, or holds NaN or Inf"):
            make(weight, full, {"hers": bad})
    with pytest.raises(ValueError, match="rand is drawn here"):
        make(weight, full, {"rand": HAND})
    with pytest.raises(ValueError, match="leave out some densities"):
        make(big, big, densities=[0.5] * 10)
    with pytest.raises(ValueError, match="r=17 is out of range: 0 to 16"):
        sparse(marks={"r": {"all": 17}})
    with pytest.raises(ValueError, match="mask='x' is none of these: rand, struct"):
        sparse(presets={"x": {"mask": "x"}})


@node
def test_the_operator_explorer_says_what_the_library_does():
    w = hra.viz.OperatorExplorer()
    from hra.methods.mora import OPERATORS
    from hra.viz.operator import LAYERS

    choices = [
        {"layer": layer, "operator": o, "r": r, "fold": fold}
        for layer in LAYERS
        for o in OPERATORS
        for r in (1, 4, 256)
        for fold in (False, True)
    ]
    state = json.dumps(w.public_state())
    script = (
        f"{json.dumps(choices)}.map((c) => {{ const s = {{...{state}, ...c}}, "
        "f = m.facts(s), K = []; if (f.trained !== null && f.ones < 999) "
        "for (let o = 0; o < f.n_out; o++) for (let i = 0; i < f.n_in; i++) "
        "K.push(+m.reaches(s, f, o, i)); return [f, K]; })"
    )
    g = torch.Generator().manual_seed(0)
    for choice, (got, K) in zip(choices, javascript(w, script), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        f = w.facts()
        assert got == pytest.approx(f), choice
        d_out, d_in = LAYERS[choice["layer"]]
        hyper = {"r": f["r"], "operator": choice["operator"], "fold": choice["fold"]}
        if f["trained"] is None:
            with pytest.raises(ValueError, match=r"needs r̂|truncation needs"):
                hra.MoRA(torch.nn.Linear(d_in, d_out), **hyper)
        elif d_in < 100:
            layer = torch.nn.Linear(d_in, d_out, dtype=torch.float64)
            a = hra.MoRA(layer, **hyper)
            a.M.data.normal_(generator=g)
            D = a.delta_weight().detach()
            assert a.M.numel() == f["trained"] <= f["lora"]
            assert [int(k) for k in a.K().flatten()] == K
            assert sum(K) == f["ones"]
            assert int(torch.linalg.matrix_rank(D)) == f["rank"], choice
            assert float((D != 0).any(0).double().mean()) == f["reach"], choice
        assert w.summary()
    w.layer, w.operator = "16 × 40, wide", "rotation"
    assert w.fallback_figure().words() == w.summary()
    assert len(w._js_path.read_bytes()) < 10_240
    for name, value in (("layer", "5 × 5"), ("r", 257), ("r", 0)):
        with pytest.raises(ValueError, match=str(value)):
            setattr(w, name, value)


def restarted(regroup, rounds=4):
    """Spectra of what a ReMoRA of random M's has folded in, round by round."""
    layer = torch.nn.Linear(64, 64, bias=False, dtype=torch.float64)
    a = hra.ReMoRA(layer, r=2, operator="sharing", every=1, regroup=regroup)
    optimizer, out = torch.optim.SGD(a.parameters(), 0.1), []
    for k in range(rounds):
        a.M.data.normal_(generator=torch.Generator().manual_seed(k))
        out.append(hra.analysis.rank.spectrum(a.delta_weight().detach()).tolist())
        a.after_step(k + 1, optimizer)
    return out


def forgetting(**kw):
    """Three tasks, two methods, one of which was also measured ahead."""
    nan, t = float("nan"), torch.tensor
    P = {
        "one": t([[0.8, nan, nan], [0.6, 0.9, nan], [0.5, 0.7, 0.6]]),
        "two": t([[0.5, 0.1, 0.0], [0.9, 0.4, 0.2], [0.9, 0.5, 0.7]]),
    }
    P0 = {"one": t([0.8, 0.7, 0.7]), "two": t([0.5, 0.5, 0.5])}
    return hra.viz.ForgettingMatrix(["a", "b", "c"], P, P0, **kw), P, P0


@node
def test_the_forgetting_matrix_computes_what_the_library_computes():
    w, P, P0 = forgetting()
    assert len(w._js_path.read_bytes()) < 10_240
    assert len(json.dumps(w.public_state())) < 50_000
    choices = [{"name": k, "after": n} for k in P for n in (1, 2, 3)]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        w.name, w.after = k, n = choice.values()
        f = w.facts()
        lists = "lost", "others"
        for key in f:
            same = got[key] if key in lists else [got[key]]
            assert same == pytest.approx(f[key] if key in lists else [f[key]]), choice
        assert f["AP"] == f["others"][k]
        if n == 1:
            assert f["BWT"] is None and f["lost"] == [0.0] and "BWT" not in w.summary()
        else:
            whole = hra.continual.metrics(P[k][:n, :n], P0[k][:n])
            assert (f["AP"], f["FWT"], f["BWT"]) == pytest.approx(whole, abs=1e-6)
            assert f"BWT {whole.BWT:+.2f}" in w.summary()
        assert w.fallback_figure().words() == w.summary()
    low, high = hra.viz.forgetting.span(w.P)
    values = [low, high, 0.45]
    script = f"{values}.map(m.depth({json.dumps(w.P)}))"
    assert javascript(w, script) == pytest.approx([0.0, 1.0, 0.5])
    assert (low, high) == (0.0, 0.9)


def test_what_is_no_forgetting_matrix_is_refused():
    _, P, P0 = forgetting()
    make = hra.viz.ForgettingMatrix
    with pytest.raises(ValueError, match="3 tasks, and 2 names"):
        make(["a", "b"], P, P0)
    with pytest.raises(ValueError, match="P has one, two, P0 has one"):
        make(["a", "b", "c"], P, {"one": P0["one"]})
    broken = P["one"].clone()
    broken[1, 0] = float("nan")
    with pytest.raises(ValueError, match="one: P holds NaN on or below"):
        make(["a", "b", "c"], {"one": broken}, {"one": P0["one"]})
    with pytest.raises((ValueError, TypeError)):
        make(["a", "b", "c"], {"one": P["one"][:2]}, {"one": P0["one"]})


@node
def test_the_restart_explorer_says_what_the_rounds_add_up_to():
    spectra = {k: restarted(k) for k in ("cycle", "cycle4", "permute")}
    w = hra.viz.RestartExplorer(spectra, least=3.0)
    assert len(w._js_path.read_bytes()) < 10_240
    assert len(json.dumps(w.public_state())) < 50_000
    choices = [{"name": k, "restarts": n} for k in spectra for n in (1, 2, 3, 4)]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        w.name, w.restarts = choice.values()
        assert got == w.facts() and str(got["rank"]) in w.summary()
    # r̂ = 16: two groupings share 4 directions, random ones one (the mean)
    ranks = {k: [] for k in spectra}
    for k, n in ((c["name"], c["restarts"]) for c in choices):
        w.name, w.restarts = k, n
        ranks[k].append(w.facts()["rank"])
    assert ranks["cycle"] == [16, 28, 28, 28] and max(ranks["cycle4"]) == 28
    assert ranks["permute"] == [16, 31, 46, 61]
    assert w.fallback_figure().words() == w.summary()
    with pytest.raises(ValueError, match="there are cycle, cycle4, permute"):
        w.name = "none"
    with pytest.raises(ValueError, match="restarts=5"):
        w.restarts = 5
    with pytest.raises(ValueError, match="as many rounds"):
        hra.viz.RestartExplorer({"a": [[1.0]], "b": [[1.0], [1.0]]})


def subnets(**kw):
    g = torch.Generator().manual_seed(0)
    hand = torch.tensor([[0, 0, 0, 3], [0, 2, 0, 0], [0, 0, 0, 0], [2, 3, 0, 0.0]])
    heavy = lambda *shape: torch.randn(*shape, generator=g).exp()  # noqa: E731
    scores = {"by hand": hand, "8 × 8": heavy(8, 8), "real": heavy(48, 30)}
    return hra.viz.SubnetExplorer(scores, **kw)


@node
def test_the_subnet_explorer_chooses_as_the_library_does():
    w = subnets()
    assert len(w._js_path.read_bytes()) < 10_240
    assert len(json.dumps(w.public_state())) < 50_000
    from hra.viz.subnet import ORDERS

    choices = [
        {"name": name, "order": order, "sixteenths": p}
        for name in w.scores
        for order in ORDERS
        for p in (1, 2, 5, 8, 16)
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        f = w.facts()
        assert got.pop("holds") == pytest.approx(f.pop("holds")), choice
        assert got.pop("ceiling") == pytest.approx(f.pop("ceiling"))
        assert got == f, choice
        assert w.summary()
    # by hand: all three orders hold 6 of 10, refining stays there, the best holds 7
    w.name, w.order, w.sixteenths = "by hand", "exact", 8
    f = w.facts()
    assert list(f["holds"].values()) == pytest.approx([0.6, 0.6, 0.6, 0.6, 0.7])
    assert (f["rows"], f["cols"], f["chance"]) == ([1, 3], [0, 1], 0.25)
    w.name, w.sixteenths = "real", 5
    assert w.facts()["holds"]["exact"] is None and "refined" in w.summary()
    assert w.fallback_figure().words() == w.summary()


def test_the_subnet_explorer_refuses_what_is_no_score():
    for S, said in (
        (torch.ones(49, 3), "2 × 2 to 48 × 48"),
        (torch.ones(3), "2 × 2 to 48 × 48"),
        (-torch.ones(3, 3), "0 or more"),
        (torch.zeros(3, 3), "not all 0"),
        (torch.full((3, 3), float("nan")), "finite"),
    ):
        with pytest.raises(ValueError, match=said):
            hra.viz.SubnetExplorer({"x": S})
    with pytest.raises(ValueError, match="at least one matrix"):
        hra.viz.SubnetExplorer({})
    kept = hra.viz.SubnetExplorer({"x": torch.tensor([[3.0, 1], [0, 2]])})
    assert kept.scores == {"x": [[3, 1], [0, 2]]}
    scaled = hra.viz.SubnetExplorer({"x": torch.tensor([[0.5, 0.25], [0, 0.125]])})
    assert scaled.scores == {"x": [[9999, 5000], [0, 2500]]}


@node
def test_the_slot_timeline_is_the_schedule_of_losia():
    w = hra.viz.SlotTimeline(period=5, layers=3, steps=17, warmup=0.0)
    assert w.facts() == {
        **{"moves": [1, 1, 1], "never": [], "enough": 15},
        **{"watching": [1], "warming": []},
    }
    assert len(w._js_path.read_bytes()) < 10_240
    choices = [
        {"period": T, "layers": L, "steps": N, "at": at, "schedule": s, "warmup": u}
        for T, L, N, s, u in (
            *((5, 3, 17, "async", 0.0), (5, 3, 40, "sync", 0.0)),
            *((4, 2, 30, "async", 0.3), (7, 1, 20, "async", 0.1)),
            *((5, 3, 9, "async", 0.1), (5, 3, 4, "sync", 0.1)),
        )
        for at in (1, 6, 7, 10, 11, 16, 99)
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for name, value in choice.items():
            setattr(w, name, value)
        assert got == w.facts(), choice
        assert f"{len(got['never'])} blocks never" in w.summary()
    assert w.fallback_figure().words() == w.summary()


@pytest.mark.parametrize("schedule", ["async", "sync"])
def test_losia_keeps_the_timeline(schedule):
    """Adapters driven through a run do in each step what the widget says."""
    T, L, N = 4, 3, 31
    w = hra.viz.SlotTimeline(period=T, layers=L, steps=N, schedule=schedule, warmup=0.2)
    names = tuple("abc")
    run = {"period": T, "schedule": schedule, "blocks": names, "warmup": 0.2}
    blocks = [hra.LoSiA(torch.nn.Linear(4, 4), 0.5, slot=i, **run) for i in range(L)]
    opt = torch.optim.SGD([p for a in blocks for p in a.parameters()], lr=0.0)
    for a in blocks:
        a.begin(N)
    for step in range(N):
        w.at = step + 1
        f = w.facts()
        assert f["watching"] == [i + 1 for i, a in enumerate(blocks) if a.observing()]
        rates = {i + 1: round(a.rate(step), 4) for i, a in enumerate(blocks)}
        assert f["warming"] == [[i, r] for i, r in rates.items() if r < 1]
        for a in blocks:
            a.observe(torch.rand(4, 4))
            a.after_step(step + 1, opt)
    assert f["moves"] == [int(a.counts[1]) for a in blocks]
    short = hra.viz.SlotTimeline(period=T, layers=L, steps=9, schedule="async")
    assert short.facts()["never"] == [3] and short.facts()["enough"] == 12
    with pytest.raises(ValueError, match=r"^c: 1 of 3 blocks .* after 12,"):
        hra.LoSiA(torch.nn.Linear(4, 4), 0.5, T, blocks=names).begin(9)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_switch_explorer_does_not_contradict_the_record(threads):
    record = hra.studies.record("switch")
    w = hra.viz.SwitchCost(record["milliseconds"][threads])
    assert record["density"] == w.thousandths / 1000
    assert "L2" in record["machine"]  # cache lines are spoken of
    for at, d in enumerate(w.sizes):
        w.at = at
        row, least = w.recorded[str(d)], w.roofline()
        assert least["copy"] == pytest.approx(row["dense copy_"], rel=0.05)
        # no traffic that takes longer than the change that was measured
        for name in ("two bare overwrites", "hra.Switch"):
            assert least["sparse"] <= row[name], (d, name)
        assert least["low rank"] <= row["PEFT LoRA"]
        # what the page concludes at 1 % is what was measured
        assert least["sparse"] < least["copy"] < least["low rank"]
        assert row["two bare overwrites"] < row["dense copy_"] < row["PEFT LoRA"]


def test_the_switch_explorer_refuses():
    with pytest.raises(ValueError, match="512, 4096"):
        switch(d=100)
    with pytest.raises(ValueError, match="record again: python -m benchmarks"):
        hra.viz.SwitchCost({"512": {"bare": 0.1}}, d=512)
    w, _ = switch()
    for name, value, words in (
        ("at", 2, "0 to 1"),
        ("r", 0, "1 to 256"),
        ("thousandths", 201, "1 to 200"),
        ("bandwidth", 0, "1 to 200"),
    ):
        with pytest.raises(ValueError, match=words):
            setattr(w, name, value)


@node
def test_the_gap_between_guess_and_answer_in_words():
    ask = hra.viz.prediction(
        "How many?", 12, low=1, high=192, unit="directions", why="So it is."
    )
    choice = hra.viz.prediction("Which?", "a", choices=["a", "b"])
    said = javascript(
        RankSlider,
        f"[...[96, 12, 11].map(g => base.gap({json.dumps(ask)}, g)),"
        f"...['a', 'b'].map(g => base.gap({json.dumps(choice)}, g))]",
    )
    assert said == [
        "You said 96 directions; the answer is 12 directions: "
        "84 too high, 8 times too large. So it is.",
        "You said 12 directions; the answer is 12 directions: exactly right. So it is.",
        "You said 11 directions; the answer is 12 directions: 1 too low. So it is.",
        "You said a, and so it is.",
        "You said b; it is a.",
    ]


def test_a_prediction_needs_an_answer_on_its_scale():
    with pytest.raises(ValueError, match="around it"):
        hra.viz.prediction("?", 12, low=20, high=30)
    with pytest.raises(ValueError, match="around it"):
        hra.viz.prediction("?", 12)
    with pytest.raises(ValueError, match="no scale"):
        hra.viz.prediction("?", 12, low=0, high=30, step=0)
    with pytest.raises(ValueError, match="starts above 0"):
        hra.viz.prediction("?", 12, low=0, high=30, log=True)
    with pytest.raises(ValueError, match="among the choices"):
        hra.viz.prediction("?", "c", choices=["a", "b"])


def test_marks_and_presets_name_what_the_widget_has():
    slider(marks={"r": {"LoRA": 8}}, presets={"full": {"r": 12}})
    with pytest.raises(ValueError, match="no 'rank' to set; there are"):
        slider(presets={"full": {"rank": 12}})


def test_a_kernel_gets_the_shared_script_too():
    shared = (VIZ / "base.js").read_text()
    w = slider()
    assert w._esm.startswith(shared) and "function render(" in w._esm
    for script in (w.script(), w._esm):
        assert len(re.findall("^export default", script, flags=re.M)) == 1


def lines(**kw):
    words = {"caption": "Both fall.", "alt": "Loss from 3 to 2."}
    fig, ax = hra.viz.figure(5, 3, **words | kw)
    for k, name in enumerate(("LoRA", "DoRA", "SHiRA", "before")):
        y = [3 - step / 10 + k / 100 for step in range(11)]
        ax.plot(range(11), y, label=f"{name} <r = 8>", **hra.viz.look(name))
    ax.set(xlabel="step 0.123456", ylabel="loss", yscale="log")
    return fig, ax


def test_a_figure_needs_caption_and_alt():
    with pytest.raises(TypeError):
        hra.viz.figure(6, 3)
    with pytest.raises(ValueError, match=r"caption=.*in a sentence"):
        lines(caption=" ")
    with pytest.raises(ValueError, match="alt=''"):
        lines(alt="")


def test_a_figure_goes_into_the_page_as_svg_in_its_own_ink():
    fig, ax = lines(caption='"A" < B', alt="A & B")
    hra.viz.label_lines(ax)
    svg, page = fig.svg(), fig._repr_mimebundle_()["text/html"]
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "A & B" and root.get("role") == "img"
    assert page.startswith("<figure ") and page.endswith("</figure>")
    assert "<figcaption>&quot;A&quot; &lt; B</figcaption>" in page
    # text, axes and baselines are in the page's colour, on no ground of their own
    paint = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    own = {f"var({v},{hra.viz.FAMILIES[k]})" for k, v in VARIABLES.items()}
    assert paint <= {"none", "currentColor", "#808080", *own} | {
        f"var(--hra-before,{hra.viz.FAMILIES['before LoRA']})"
    }
    # a number in a label keeps its digits; coordinates have two
    assert "step 0.123456" in svg
    assert not re.search(r"\d\.\d{3}", re.sub(r">[^<]*<", "><", svg))
    assert "LoRA &lt;r = 8&gt;" in svg and "<metadata" not in svg


def test_a_figure_is_the_same_in_every_run_and_its_ids_are_its_own():
    fig, ax = lines()
    hra.viz.label_lines(ax)
    again, ax = lines()
    hra.viz.label_lines(ax)
    assert fig.svg() == fig.svg() == again.svg() and fig.png() == again.png()
    other = lines(alt="Another.")[0].svg()
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (fig.svg(), other)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((fig.svg(), other), ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= own


def test_labels_stand_apart_at_the_ends_of_the_lines():
    fig, ax = lines()
    hra.viz.label_lines(ax)
    fig.draw_without_rendering()
    boxes = [Text.get_window_extent(t) for t in ax.texts]  # without the leaders
    assert len(boxes) == 4 and all(b.x0 >= ax.bbox.x1 for b in boxes)
    assert all(0 <= b.x0 and b.x1 <= fig.bbox.x1 for b in boxes)
    assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)
    # the order of the labels is that of the ends
    ends = sorted(ax.get_lines(), key=lambda line: line.get_ydata()[-1])
    tops = sorted(ax.texts, key=lambda t: Text.get_window_extent(t).y0)
    assert [t.get_text() for t in tops] == [line.get_label() for line in ends]


def test_a_line_that_ends_early_has_its_label_there():
    _, ax = lines()
    ax.plot([0, 4], [2.9, 2.8], label="short")
    hra.viz.label_lines(ax)
    (short,) = [t for t in ax.texts if t.get_text() == "short"]
    assert short.xy[0] < 0.6


def test_every_method_has_a_family_and_its_own_look():
    looks = [tuple(hra.viz.look(m).items()) for m in hra.METHODS]
    assert len(set(looks)) == len(hra.METHODS)
    for name, method in hra.METHODS.items():
        assert method.family in hra.viz.FAMILIES
        assert hra.viz.colour(name) == hra.viz.FAMILIES[method.family]
    for name in ("Lora", "ordinary", ""):
        with pytest.raises(ValueError, match="no method; there are FullFT, LoRA"):
            hra.viz.colour(name)
    masks = [hra.viz.look("SHiRA", variant=k) for k in range(5)]
    assert len({m["marker"] for m in masks}) == 5
    assert len({m["color"] for m in masks}) == 1


def luminance(colour):
    c = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    c = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in c]
    return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]


def oklab(colour):
    c = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in c)
    lms = (
        0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b,
        0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b,
        0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b,
    )
    x, y, z = (v ** (1 / 3) for v in lms)
    return torch.tensor(
        [
            0.2104542553 * x + 0.793617785 * y - 0.0040720468 * z,
            1.9779984951 * x - 2.428592205 * y + 0.4505937099 * z,
            0.0259040371 * x + 0.7827717662 * y - 0.808675766 * z,
        ]
    )


def test_the_palette_is_seen_on_white_and_on_black_and_told_apart():
    colours = [c for c in hra.viz.FAMILIES.values() if c != hra.viz.INK]
    colours += hra.viz.PARTS.values()
    dark = luminance("#14181e")
    for c in colours:
        assert 1.05 / (luminance(c) + 0.05) >= 3
        assert (luminance(c) + 0.05) / (dark + 0.05) >= 3
    for a, b in combinations(colours, 2):
        assert (oklab(a) - oklab(b)).norm() > 0.08


@node
def test_widgets_and_figures_have_one_palette():
    page = javascript(RankSlider, "base.palette")
    ours = {
        k: f"var({VARIABLES[k]},{c})" if k in VARIABLES else c
        for k, c in hra.viz.FAMILIES.items()
    }
    assert page["families"] == ours | {"full": "currentColor"}
    assert page["parts"] == hra.viz.PARTS


def test_a_table_says_the_same_to_everybody():
    rows = [["LoRA <8>", 147_456, (2.0449, 0.012), True], ["before", 0, 2.39, None]]
    columns = {
        "setting": None,
        "trained": None,
        "bits": ".2f",
        "ahead": lambda b: "yes" if b else "no",
    }
    table = hra.viz.table(rows, columns, caption="A & B", verdict="It gains < 1 bit.")
    assert str(table).splitlines() == [
        "A & B",
        "setting   trained         bits  ahead",
        "-------------------------------------",
        "LoRA <8>  147,456  2.04 ± 0.01    yes",
        "before          0         2.39",
        "It gains < 1 bit.",
    ]
    root = ElementTree.fromstring(table.html())
    (frame,) = root.findall("div")
    assert frame.get("role") == "region" and frame.get("tabindex") == "0"
    assert "overflow-x:auto" in frame.get("style")
    scopes = [th.get("scope") for th in root.iter("th")]
    assert scopes == ["col"] * 4 + ["row"] * 2
    assert root.find(".//caption").text == "A & B"
    assert root.findall("p")[0].text == "It gains < 1 bit."
    numbers = root.findall(".//td")
    assert all("text-align:right" in td.get("style") for td in numbers)
    assert [td.text for td in numbers[:2]] == ["147,456", "2.04 ± 0.01"]


def test_a_table_of_a_mapping_and_its_refusals():
    table = hra.viz.table(
        {"LoRA r=8": (2.0449, 0.012), "FullFT": (1.9, 0.1)},
        ["setting", "bits"],
        caption="Bits",
    )
    assert table.cells[1:] == [["LoRA r=8", "2.04 ± 0.01"], ["FullFT", "1.90 ± 0.10"]]
    form = {"setting": None, "gap": "+.1f"}
    signed = hra.viz.table([["a", (0.5, 0.1)]], form, caption="A sign")
    assert signed.cells[1] == ["a", "+0.5 ± 0.1"]
    with pytest.raises(ValueError, match="'a' has 2 cells for 3 columns"):
        hra.viz.table([["a", 1]], ["x", "y", "z"], caption="c")
    with pytest.raises(ValueError, match="caption"):
        hra.viz.table([["a", 1]], ["x", "y"], caption=" ")
    with pytest.raises(ValueError, match="at least one row"):
        hra.viz.table([], ["x", "y"], caption="c")


def runs(points=200):
    """A record of 3 rates × 2 ranks; one run was not made, one diverged."""
    curves = {
        (lr, r): [3 - lr * 10 - r * k / 1000 for k in range(points)]
        for lr in (0.03, 0.003, 0.01)
        for r in (8, 2)
        if (lr, r) != (0.003, 2)
    }
    curves[0.03, 8][points // 2 :] = [float("nan")] * (points - points // 2)
    return curves


def replayed(**kw):
    more = {"ylabel": "loss", "baseline": {"full": [3.0, 2.0], "before": 2.9}}
    return hra.viz.replay(["learning rate", "rank r"], runs(), **more | kw)


@node
def test_the_replay_says_what_was_recorded():
    w, curves = replayed(), runs()
    assert w.axes == [["learning rate", [0.003, 0.01, 0.03]], ["rank r", [2, 8]]]
    choices = [{"at0": a, "at1": b} for a in range(3) for b in range(2)]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        key = tuple(w.axes[i][1][choice[f"at{i}"]] for i in range(2))
        assert got == w.facts() and got["recorded"] == (key in curves)
        if key not in curves:
            assert "not recorded" in w.summary()
        elif key == (0.03, 8):
            assert got["end"] is None and "diverged" in w.summary()
        else:
            y = curves[key]
            assert got["first"] == pytest.approx(y[0], rel=1e-3)
            assert got["end"] == got["last"] == pytest.approx(y[-1], rel=1e-3)
            assert got["gaps"] == pytest.approx(
                {"full": got["end"] - 2.0, "before": got["end"] - 2.9}
            )
        assert w.fallback_figure().words() == w.summary()


def test_a_replay_is_judged_by_its_ends_and_keeps_recorded_points():
    curves = runs()
    ends = {key: 10 * key[0] for key in curves}
    w = replayed(
        ends=ends,
        end="bits",
        baseline={"full": ([3.0, 2.0], 0.2), "no end": [3.0]},
        start={"rank r": 2, "learning rate": 0.01},
        marks={"rank r": {"wide": 8}},
        presets={"fast": {"learning rate": 0.03}},
    )
    assert w.facts()["end"] == pytest.approx(0.1)
    assert w.facts()["gaps"] == pytest.approx({"full": -0.1})
    assert w.marks == {"at1": {"wide": 1}} and w.presets == {"fast": {"at0": 2}}
    grid, y = w.curves[w.place]
    assert len(y) == len(w.grids[grid]) == 60 and w.grids[grid][-1] == 200
    for x, v in zip(w.grids[grid], y, strict=True):
        assert v == pytest.approx(curves[0.01, 2][int(x) - 1], rel=1e-3)


def test_a_replay_of_many_runs_stays_small_or_is_refused(untyped):
    curve = [2 + 1 / (k + 3) for k in range(1000)]
    many = {(a, b, c): curve for a in range(5) for b in range(5) for c in range(5)}
    w = hra.viz.replay(["a", "b", "c"], many, ylabel="loss")
    assert len(json.dumps(w.public_state())) < 50_000
    assert len(w._js_path.read_bytes()) < 10_240
    short = curve[:20]
    many = {(a, b, c): short for a in range(9) for b in range(9) for c in range(20)}
    with pytest.raises(ValueError, match="leave out an axis"):
        hra.viz.replay(["a", "b", "c"], many, ylabel="loss")


def test_a_replay_refuses_what_it_does_not_know():
    for kw, words in (
        ({"start": {"rank": 8}}, "'rank' is no axis; there are learning rate, rank r"),
        ({"start": {"rank r": 4}}, r"rank r has no 4; there are \[2, 8\]"),
        ({"marks": {"rank r": {"x": 5}}}, "rank r has no 5"),
        ({"ends": {(0.01, 2): 1.0}}, "ends has no number"),
        ({"method": "Lora"}, "no method"),
    ):
        with pytest.raises(ValueError, match=words):
            replayed(**kw)
    with pytest.raises(ValueError, match="no curve"):
        hra.viz.replay(["a"], {}, ylabel="loss")
    with pytest.raises(ValueError, match="one to three"):
        hra.viz.replay([], {(): [1.0]}, ylabel="loss")
    with pytest.raises(ValueError, match="a value for each"):
        hra.viz.replay(["a", "b"], {1: [1.0]}, ylabel="loss")
    with pytest.raises(ValueError, match="a curve has a 1"):
        hra.viz.replay({"a": [2, 3]}, {1: [1.0]}, ylabel="loss")


@node
def test_the_painter_finds_matching_cover_and_spectrum():
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import structural_rank

    w, g = hra.viz.MaskPainter(), torch.Generator().manual_seed(0)
    masks = [torch.rand(12, 12, generator=g) < p / 20 for p in range(21) for _ in "ab"]
    masks += [torch.eye(12) > 0, torch.ones(12, 12) > 0, w.mask()]
    cells = ["".join("01"[int(v)] for v in m.flatten()) for m in masks]
    for mask, got in zip(masks, at_each(w, [{"cells": c} for c in cells]), strict=True):
        w.cells = "".join("01"[int(v)] for v in mask.flatten())
        ours = w.facts()
        assert got["K"] == ours["K"] == mask.sum()
        assert got["rank"] == ours["rank"]
        assert got["rank"] == structural_rank(csr_matrix(mask.int().numpy()))
        # the matching is one, the cover covers, and they are equally many
        pairs = got["pairs"]
        assert all(mask[i, j] for i, j in pairs) and len(pairs) == got["rank"]
        assert all(len({p[k] for p in pairs}) == len(pairs) for k in (0, 1))
        left = mask.clone()
        left[got["rows"]] = False
        left[:, got["columns"]] = False
        assert not left.any()
        assert len(got["rows"]) + len(got["columns"]) == got["rank"]
        assert got["sigma"] == pytest.approx(ours["sigma"], abs=1e-9)
        above = sum(s > 1e-9 for s in got["sigma"])
        assert above == got["rank"]  # generic numbers reach the structural rank


def test_the_painters_tasks_can_be_solved_and_it_refuses():
    w = hra.viz.MaskPainter()
    assert w.summary() == "10 entries, rank at most 3"
    assert w.fallback_figure().words() == w.summary()
    w.cells = "".join("1" if k % 13 == 0 else "0" for k in range(144))
    assert [w.facts()["rank"], w.facts()["K"]] == w.tasks[0] == [12, 12]
    w.cells = "1" * 30 + "0" * 114
    assert [w.facts()["rank"], w.facts()["K"]] == w.tasks[1] == [3, 30]
    # no button of the widget gives a solution away
    for preset in w.presets.values():
        w.cells = preset["cells"]
        assert [w.facts()["rank"], w.facts()["K"]] not in w.tasks
    assert len(w._js_path.read_bytes()) < 10_240
    for cells in ("01", "2" * 144):
        with pytest.raises(ValueError, match="144 digits 0 or 1"):
            w.cells = cells
    with pytest.raises(ValueError, match="a square of 1 to 16 rows"):
        hra.viz.MaskPainter(torch.zeros(3, 4, dtype=torch.bool))


def bound(**kw):
    g = torch.Generator().manual_seed(0)
    G, x = (torch.randn(*s, generator=g) for s in ((12, 10), (7, 10)))
    hand = torch.tensor([[3.0, 2, 2], [1, 0, 0]]), torch.eye(3)
    cases = {"real": (G * torch.rand(10, generator=g), x), "by hand": hand}
    return hra.viz.BoundExplorer(cases, **kw), cases


@node
def test_the_bound_widget_computes_what_the_library_computes():
    from hra import localise
    from hra.viz.bound import ORDERS

    w, cases = bound()
    choices = [
        {"case": case, "order": order, "at": at}
        for case in cases
        for order in ORDERS
        for at in (0, 1, 4, 11, 17, 22, 31, 32)
    ]
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        ours, (G, x) = w.facts(), (M.double() for M in cases[w.case])
        assert got["rows"] == ours["rows"] and got["cols"] == ours["cols"], choice
        for k in ("kept", "apart", "spectral", "frobenius"):
            assert got[k] == pytest.approx(ours[k], abs=1e-9), (choice, k)
        kept = torch.zeros(G.shape, dtype=torch.bool)
        kept[torch.tensor(ours["rows"], dtype=torch.long)[:, None], ours["cols"]] = True
        library = hra.analysis.bounds.losia(G, x, kept, 0.3)
        unit = hra.analysis.bounds.losia(G, x, torch.zeros_like(kept), 0.3)[2]
        found = [ours[k] * unit for k in ("apart", "spectral", "frobenius")]
        assert found == pytest.approx(library, rel=1e-3, abs=1e-9 * unit)
        if ours["rows"] and w.order == "refined":
            best = localise.best(
                w.grad().square(), len(ours["rows"]), len(ours["cols"])
            )
            assert [t.tolist() for t in best] == [ours["rows"], ours["cols"]]
    w.case, w.order, w.at = "by hand", "rows first", 22
    f = w.facts()
    assert (f["rows"], f["cols"]) == ([0], [0, 1]) and f["kept"] == 13 / 18
    assert f["frobenius"] == 5 / 18 and f["spectral"] == pytest.approx(4 / 18)


def test_the_bound_widgets_fallback_size_and_refusals():
    from hra.viz.bound import excerpt

    w, cases = bound(at=9)
    for case in cases:
        w.case = case
        assert w.fallback_figure().words() == w.summary()
    assert len(w._js_path.read_bytes()) < 10_000
    G, x = excerpt(torch.randn(576, 192), torch.randn(1024, 192))
    assert G.shape == (32, 32) and x.shape == (1024, 32)
    whole = torch.arange(6.0).view(2, 3)
    assert all(torch.equal(a, whole) for a in excerpt(whole, whole))
    w = hra.viz.BoundExplorer({"c_attn": (G, x)})
    assert len(json.dumps(w.public_state())) < 50_000
    for bad, said in (
        ({}, "at least one case"),
        ({"a": (torch.zeros(3, 3), torch.ones(1, 3))}, "a gradient of zero"),
        ({"a": (torch.ones(3, 41), torch.ones(1, 41))}, "1 to 40 rows and columns"),
        ({"a": (torch.ones(3, 3), torch.ones(1, 2))}, "and 3 columns"),
    ):
        with pytest.raises(ValueError, match=said):
            hra.viz.BoundExplorer(bad)


CHROMIUM = next(
    (p for name in ("chromium", "chromium-browser") if (p := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None and not os.environ.get("HRA_REQUIRE_BROWSER"):
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def reader(browser, tmp_path):
    """open(html) → a page read from disk on a phone; anything amiss fails the test."""
    amiss, pages = [], []

    def read(html, width=390):
        path = tmp_path / "page.html"
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title>'
        path.write_text(f"{head}<body>{html}</body></html>", encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda m: m.type == "error" and amiss.append(m.text))
        page.on("pageerror", lambda e: amiss.append(str(e)))
        url = path.as_uri()
        page.on("request", lambda r: r.url == url or amiss.append(r.url))
        page.goto(url)
        page.wait_for_selector("figure")
        pages.append(page)
        return page

    yield read
    for page in pages:
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= page.viewport_size["width"]
        page.close()
    assert amiss == []


WIDGETS = {
    "rank": lambda: slider(marks={"r": {"three": 3}}, presets={"all": {"r": 12}}),
    "mask": lambda: explorer(parts=("q", "k", "v"))[0],
    "bill": hra.viz.BillCalculator,
    "replay": lambda: replayed(),
    "paint": hra.viz.MaskPainter,
    "switch": lambda: switch()[0],
    "forgetting": lambda: forgetting()[0],
    "sparserank": lambda: sparse(presets={"by hand": {"mask": "by hand", "r": 1}})[0],
    "bound": lambda: bound()[0],
    "subnet": lambda: subnets(presets={"by hand": {"name": "by hand"}}, name="8 × 8"),
    "slots": lambda: hra.viz.SlotTimeline(caption="Whose turn it is"),
    "drift": lambda: drift(parts=("q", "k", "v"), at=1)[0],
    "family": lambda: family(presets={"moving": {"choice": {"mask": "moves"}}}),
}


FOCUSED = "e => e === document.activeElement"


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_works_by_keyboard_on_a_phone_from_disk(reader, name):
    page = reader(WIDGETS[name]().static_html(b""))
    status, inputs = page.locator("[role=status]"), page.locator("input[type=range]")
    assert page.locator(".hra-title").inner_text()
    assert page.locator("figcaption").inner_text()
    first = status.inner_text()
    assert first and page.locator("input[type=range], th button").count()
    for head in page.locator("th button").all():
        before = status.inner_text()
        head.press("Enter")
        assert status.inner_text() != before and head.evaluate(FOCUSED)
    for i in range(inputs.count()):
        before = status.inner_text()
        inputs.nth(i).focus()
        for key in ("ArrowRight", "ArrowLeft"):
            page.keyboard.press(key)
            if status.inner_text() != before:
                break
        assert status.inner_text() != before, f"slider {i} says nothing"
        assert page.locator(f"label[for='{inputs.nth(i).get_attribute('id')}']").count()
    page.get_by_role("button", name="Reset").press("Enter")
    assert status.inner_text() == first
    for picture in page.locator("svg, canvas").all():
        hidden = picture.get_attribute("aria-hidden") == "true"
        assert hidden or picture.get_attribute("aria-label")


# as base.js `enlist` does when a kernel opens the model of a widget
LIVE = """([name, state]) => {
  const on = {}, base = globalThis.hraModels ??= new Map();
  globalThis.kernel = { sent: [], state };
  base.set(name, {
    get: (k) => state[k], save_changes() {}, send: (m) => kernel.sent.push(m),
    set(k, v) { state[k] = v; (on[`change:${k}`] || []).forEach((f) => f()); },
    on(e, f) { (on[e] ??= []).push(f); }, off() {},
  });
  document.dispatchEvent(new CustomEvent("hra-live", { detail: name }));
}"""


def test_one_output_is_live_with_a_kernel_and_static_without(reader):
    w, other = slider(), slider()
    page = reader(w.static_html(b"", live=True) + other.static_html(b"", live=True))
    inputs = page.locator("input[type=range]")
    inputs.nth(0).press("ArrowRight")  # no kernel: it moves all the same
    assert [e.input_value() for e in inputs.all()] == ["9", "8"]
    page.evaluate(LIVE, [w._live, w.public_state() | {"r": 4}])
    assert [e.input_value() for e in inputs.all()] == ["4", "8"]
    inputs.nth(0).press("ArrowLeft")
    assert page.evaluate("kernel.state.r") == 3 and other._live != w._live
    page.evaluate(f"hraModels.get('{w._live}').set('r', 6)")  # the kernel sets it
    assert [e.input_value() for e in inputs.all()] == ["6", "8"]
    # a module that anywidget loads puts its model there
    assert "initialize: ({ model }) => base.enlist(model)" in w._esm


@node
def test_a_kernels_model_is_there_under_its_name_until_it_is_closed():
    w = slider()
    told = javascript(
        w,
        "(() => { const said = []; globalThis.CustomEvent = class { constructor(t, o) {"
        " this.detail = o.detail; } }; globalThis.document = { dispatchEvent: (e) => "
        "said.push(e.detail) }; const close = base.enlist({ get: (k) => k });"
        "said.push(hraModels.size); close(); return [...said, hraModels.size]; })()",
    )
    assert told == ["_live", 1, 0]


def test_the_panel_shows_its_run_once_there_is_a_kernel(reader):
    p = panel()
    p.recorded = replayed()
    page = reader(p.static_html(b"", live=True))
    assert "needs a kernel" in page.locator("p").first.inner_text()
    moved = page.locator("input[type=range]").first
    before = moved.input_value()
    moved.press("ArrowLeft")
    assert moved.input_value() != before  # the replay in its place
    page.evaluate(LIVE, [p._live, p.public_state() | {"running": False}])
    status = page.locator("[role=status]")
    assert status.inner_text() == "Press Train." and page.locator("figure").count() == 1
    for button in ("Train", "Cancel"):
        page.get_by_role("button", name=button, exact=True).press("Enter")
    assert page.evaluate("kernel.sent") == [{"do": "train"}, {"do": "cancel"}]
    lr = page.get_by_label("Learning rate:")
    lr.press("End")
    assert page.evaluate("kernel.state.lr") == 0.1
    for name, value in (("picture", p.fallback_figure().svg()), ("status", "Step 1")):
        page.evaluate(
            "([n, k, v]) => hraModels.get(n).set(k, v)", [p._live, name, value]
        )
    assert page.locator("figure svg").count() == 1 and status.inner_text() == "Step 1"


def test_marks_and_presets_move_the_slider(reader):
    page = reader(WIDGETS["rank"]().static_html(b""))
    out = page.locator("output")
    for button, r in (("three", "3"), ("all", "12"), ("Reset", "8")):
        page.get_by_role("button", name=button).press("Enter")
        assert out.inner_text() == r
    assert page.locator("[aria-pressed=true]").count() == 0


def test_a_table_is_sorted_and_filtered_by_keyboard(reader):
    page = reader(family().static_html(b""))
    names = page.locator("tbody th")
    assert names.all_inner_texts() == [row[0] for row in ROWS]
    bits = page.get_by_role("button", name="bits", exact=True)
    head = page.locator("th", has=bits)
    assert head.get_attribute("aria-sort") == "none"
    for key, order, down in (
        ("Enter", "LoRA spiel SHiRA RoSA FullFT", "ascending"),
        ("Space", "SHiRA spiel LoRA RoSA FullFT", "descending"),
    ):
        bits.press(key)
        assert names.all_inner_texts() == order.split()
        assert head.get_attribute("aria-sort") == down
    menu = page.get_by_label("mask:")
    menu.press("f")  # fixed
    assert names.all_inner_texts() == ["SHiRA", "RoSA"]
    assert page.locator("[role=status]").inner_text() == (
        "2 of 5 methods (mask: fixed), by bits, largest first: SHiRA; "
        "1 without bits, last."
    )
    menu.press("Home")  # all
    assert names.count() == 5
    # the frame scrolls, the names stay
    frame = page.locator("[role=region]")
    frame.evaluate("e => { e.style.width = '200px'; e.scrollLeft = 60; }")
    left = frame.bounding_box()["x"]
    assert frame.evaluate("e => e.scrollLeft") == 60
    assert names.first.bounding_box()["x"] == pytest.approx(left, abs=1)


@pytest.mark.parametrize("kind", ["number", "choice"])
def test_the_reader_commits_to_a_guess_before_the_widget_is_shown(reader, kind):
    ask = {
        "number": hra.viz.prediction("How many of 12?", 3, low=0, high=12),
        "choice": hra.viz.prediction("Which?", "b", choices=["a", "b"], why="So."),
    }[kind]
    page = reader(slider(predict=ask).static_html(b""))
    status = page.locator("[role=status]")
    assert page.locator("input[type=range]").count() == (kind == "number")
    assert page.locator("figcaption").count() == 0  # nothing of the widget yet
    page.locator(".hra-guess button").press("Enter")
    if kind == "choice":  # it needs one
        assert status.inner_text() == "Choose one first."
        page.locator("input[type=radio]").first.focus()
        page.keyboard.press("Space")
        assert status.inner_text() == "Your guess: a."
        page.keyboard.press("Enter")
        said = "You said a; it is b. So."
    else:
        said = "You said 6; the answer is 3: 3 too high, 2 times too large."
        marks = page.locator(".hra-gap svg").text_content()
        assert marks == "your guess: 6answer: 3"
    assert page.locator(".hra-gap p").inner_text() == said
    assert page.evaluate("document.activeElement.textContent") == said
    assert page.locator("figcaption").count() == 1 and status.count() == 1
    assert "keeps" in status.inner_text()


def test_the_mask_is_painted_by_keyboard_and_by_mouse(reader):
    page = reader(hra.viz.MaskPainter().static_html(b""))
    status, grid = page.locator("[role=status]"), page.locator(".hra-paint button")
    page.get_by_role("button", name="Clear").press("Enter")
    grid.first.focus()
    for i in range(12):
        page.keyboard.press("Space")
        if i < 11:
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowRight")
    assert "Task 1 is solved" in status.inner_text()
    assert grid.nth(143).get_attribute("tabindex") == "0"
    grid.nth(1).click()
    assert status.inner_text().startswith("13 entries: rank at most 12.")
    grid.nth(1).click()
    assert status.inner_text().startswith("12 entries: rank at most 12.")
    page.get_by_role("button", name="Clear").click()
    a, b = grid.nth(24).bounding_box(), grid.nth(28).bounding_box()
    page.mouse.move(a["x"] + 4, a["y"] + 4)
    page.mouse.down()
    page.mouse.move(b["x"] + 4, b["y"] + 4, steps=20)
    page.mouse.up()
    assert status.inner_text().startswith("5 entries: rank at most 1. row 3 holds")
    assert "Task 1 is solved" in status.inner_text()


def test_figures_and_tables_fit_a_phone(reader):
    fig, ax = lines()
    hra.viz.label_lines(ax)
    row = [
        "a setting with a long name",
        1_234_567,
        (2.0, 0.1),
        "behind, intervals apart",
    ]
    names = ["setting", "trained numbers", "bits per character", "against LoRA"]
    table = hra.viz.table([row], names, caption="A wide one")
    page = reader(fig._repr_mimebundle_()["text/html"] + table.html())
    box = page.locator("figure svg").bounding_box()
    assert 300 < box["width"] <= 390
    frame = page.get_by_role("region", name="A wide one")
    assert frame.evaluate("e => e.scrollWidth > e.clientWidth")
