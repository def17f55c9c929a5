"""The model that runs in the page: packed files, and the same numbers in the browser's
script as in PyTorch.
"""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import hra
from hra.data import digits
from hra.viz import packed

JS = Path(hra.__file__).parent / "viz" / "vit.js"
SITES = r"layers\.\d+\."
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="node is not installed"
)


def node(code, folder, given, **files):
    """What `code` returns, with `vit` (the script), `given` and the files' bytes."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "run.mjs").write_text(
        f"{JS.read_text()}\nimport {{ readFileSync }} from 'node:fs';\n"
        "const read = (name) => new Uint8Array(readFileSync("
        f"{json.dumps(str(folder))} + '/' + name));\n"
        f"const given = {json.dumps(given)};\n"
        f"console.log(JSON.stringify((() => {{ {code} }})()));\n"
    )
    run = subprocess.run(
        ["node", folder / "run.mjs"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def drawn(model, method, **hyper):
    """An adapter of `model` with a ΔW of about the size that training gives."""
    tuned = hra.attach(model, method, targets=SITES, **hyper)
    for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(
            p, std=0.03, generator=torch.Generator().manual_seed(100 + i)
        )
    return tuned


def pick(each=2):
    x, y = digits.digits("test")
    chosen = torch.cat([(y == c).nonzero()[:each, 0] for c in range(10)])
    return (255 * x[chosen]).round() / 255, y[chosen]


@torch.no_grad()
def logits(W, x):
    """PyTorch's, float32, with the weights W."""
    model = hra.zoo.vit("tiny")
    for name, p in model.named_parameters():
        p.copy_(W[name].view_as(p))
    return model(pixel_values=(x - digits.MEAN) / digits.STD).logits


@needs_node
def test_the_page_computes_what_pytorch_computes(tmp_path):
    base = packed.vit(hra.zoo.vit("tiny"))
    few = drawn(hra.zoo.vit("tiny"), hra.SHiRA, density=0.1)
    changes = {
        "low": packed.change(drawn(hra.zoo.vit("tiny"), hra.LoRA, r=8).adapters),
        "few": packed.change(few.adapters),
    }
    x, y = pick()
    used = [
        [],
        [["low", 1.0, 8]],
        [["low", -0.7, 3]],
        [["few", 1.0, 8]],
        [["few", 2.0, 5]],
        [["low", 0.5, 8], ["few", 0.4, 8]],
    ]
    got = node(
        "const m = vit.readModel(read('base')), d = vit.readImages(read('digits'));"
        "const c = { low: vit.readChange(read('low')), few: vit.readChange(read('few'))"
        " };"
        "return { labels: d.map((e) => e.label), numbers: [8, 3].map((k) => "
        "[c.low, c.few].map((e) => vit.numbers(e, k))),"
        "out: given.map((u) => { const W = vit.adapted(m, u.map(([name, alpha, keep]) "
        "=> ({ change: c[name], alpha, keep })));"
        "return d.map((e) => [...vit.forward(m.config, W, e.image)]); }) };",
        tmp_path,
        used,
        base=base,
        digits=packed.images(x, y),
        **changes,
    )
    assert got["labels"] == y.tolist()
    assert got["numbers"][0] == [86016, few.num_trainable]
    assert got["numbers"][1][0] == 3 * 86016 // 8
    for u, out in zip(used, got["out"], strict=True):
        W = packed.adapted(base, [(changes[n], a, k) for n, a, k in u])
        want = logits(W, x)
        gap = (torch.tensor(out) - want).abs().max() / want.abs().max()
        assert gap < 1e-5, (u, gap)


def test_eight_bits_change_a_logit_by_little():
    """Against the model itself: int8 by rows moves logits by half a hundredth of their
    size at most, a thousandth on average, and no answer."""
    x, _ = pick(10)
    model = hra.zoo.vit("tiny")
    want = logits(dict(model.named_parameters()), x)
    got = logits(packed.unpack(packed.vit(model)), x)
    off = (got - want).abs() / want.abs().max()
    assert off.mean() < 1e-3 and off.max() < 5e-3
    assert torch.equal(got.argmax(1), want.argmax(1))


@pytest.mark.parametrize(
    ("method", "hyper"), [(hra.LoRA, {"r": 8}), (hra.SHiRA, {"density": 0.1})]
)
def test_a_whole_change_is_the_adapter(method, hyper):
    tuned = drawn(hra.zoo.vit("tiny"), method, **hyper)
    data = packed.change(tuned.adapters)
    base = packed.vit(hra.zoo.vit("tiny"))
    before, after = packed.unpack(base), packed.adapted(base, [(data, 1.0, 8)])
    for site, a in tuned.adapters.items():
        want = a.delta_weight().detach()
        got = after[f"{site}.weight"] - before[f"{site}.weight"]
        assert (got - want).norm() < 0.015 * want.norm()


def test_a_cut_change_is_the_best_of_its_rank_or_the_largest_entries():
    base = packed.vit(hra.zoo.vit("tiny"))
    plain = packed.unpack(base)
    site = "vit.layers.2.mlp.fc1"
    for method, hyper in ((hra.LoRA, {"r": 8}), (hra.SHiRA, {"density": 0.1})):
        tuned = drawn(hra.zoo.vit("tiny"), method, **hyper)
        data = packed.change(tuned.adapters)
        whole = tuned.adapters[site].delta_weight().detach()
        cut = packed.adapted(base, [(data, 1.0, 3)])[f"{site}.weight"]
        cut = cut - plain[f"{site}.weight"]
        if method is hra.LoRA:
            want = hra.analysis.rank.truncate(whole, 3)
            assert (cut - want).norm() < 0.02 * want.norm()
        else:
            kept = cut.abs() > 1e-7
            assert kept.sum() == round(3 / 8 * int((whole != 0).sum()))
            left = whole[(whole != 0) & ~kept].abs().max()
            assert whole[kept].abs().min() > 0.97 * left  # int8 ties


def test_a_change_that_is_neither_is_refused():
    tuned = drawn(hra.zoo.vit("tiny"), hra.LoRA, r=40)
    with pytest.raises(ValueError, match="rank 40 and no list of entries"):
        packed.change(tuned.adapters)


@needs_node
def test_digits_and_their_shifts_are_the_librarys(tmp_path):
    x, y = pick()
    got = node(
        "return vit.readImages(read('digits')).map((e) => [[...e.image], "
        "...given.map(([k, d]) => [...vit.shift(k, e.image, d)])]);",
        tmp_path,
        [["plain", 0], ["rotated", 90], ["rotated", 45], ["inverted", 0]],
        digits=packed.images(x, y),
    )
    got = torch.tensor(got).view(len(x), 5, 1, 28, 28)
    turned = digits.rotate(x, torch.full((len(x),), 45.0))
    wanted = (x, x, x.rot90(1, (2, 3)), turned, 1 - x)
    for k, want in enumerate(wanted):
        assert_close(got[:, k], want, rtol=0, atol=1e-5)


def arc(x, y, r, start=0, end=360):
    turn = torch.deg2rad(torch.linspace(start, end, 40))
    return torch.stack([x + r * turn.cos(), y + r * turn.sin()], 1).tolist()


STROKES = {
    0: [arc(140, 140, 70)],
    1: [[[140, 60], [140, 220]]],
    7: [[[80, 70], [190, 70], [120, 220]]],
    3: [arc(135, 105, 40, -150, 90), arc(135, 185, 40, -90, 150)],
    4: [[[100, 60], [80, 150], [190, 150]], [[165, 70], [165, 230]]],
}


@needs_node
def test_a_drawing_is_sized_and_centred_as_mnist_is(tmp_path):
    moved = [
        [[[0.4 * px + 31, 0.4 * py + 77] for px, py in s] for s in strokes]
        for strokes in STROKES.values()
    ]
    given = [*STROKES.values(), *moved, [], [[[50, 50]]]]
    got = torch.tensor(
        node("return given.map((s) => [...vit.raster(s)]);", tmp_path, given)
    ).view(-1, 28, 28)
    n = len(STROKES)
    assert_close(
        got[:n], got[n : 2 * n], rtol=0, atol=1e-4
    )  # size and place: no matter
    middle = torch.arange(28) + 0.5
    for image in got[:n]:
        for d in (0, 1):
            assert abs(image.sum(d) @ middle / image.sum() - 14.5) < 0.25
        assert max(int((image.amax(d) > 0).sum()) for d in (0, 1)) in (20, 21)
    assert got[2 * n].abs().sum() == 0 and got[-1].max() > 0.8
    # so are the digits themselves, of as much ink
    x, y = digits.digits("test")
    mass = x.sum((1, 2, 3))
    for d in (2, 3):
        at = x.sum(5 - d).flatten(1) @ middle / mass
        assert at.min() > 13.99 and at.max() < 15.01
    usual = torch.stack([mass[y == c].mean() for c in STROKES]).mean()
    assert 0.85 < got[:n].sum((1, 2)).mean() / usual < 1.15
    model = hra.zoo.vit("tiny")
    said = model(pixel_values=(got[:n, None] - digits.MEAN) / digits.STD).logits
    assert said.argmax(1).tolist() == list(STROKES)


def test_files_are_the_same_every_time_and_small():
    first, again = (packed.vit(hra.zoo.vit("tiny")) for _ in range(2))
    assert first == again
    assert packed.name_of("vit-tiny", first) == packed.name_of("vit-tiny", again)
    low = packed.change(drawn(hra.zoo.vit("tiny"), hra.LoRA, r=8).adapters)
    shown = packed.images(*pick(10))
    assert 4 / 3 * sum(map(len, (first, low, shown))) < 1.3e6


def test_scripts_are_written_where_the_site_wants_them(tmp_path, monkeypatch):
    monkeypatch.delenv(packed.FOLDER, raising=False)
    packed.write_scripts({"a-1": b"\0\1"})
    monkeypatch.setenv(packed.FOLDER, str(tmp_path / "new"))
    packed.write_scripts({"a-1": b"\0\1"})
    packed.write_scripts({"a-1": b"\0\1"})
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a-1.js"]
    text = (tmp_path / "new" / "a-1.js").read_text()
    assert text == '(globalThis.hraFiles ??= {})["a-1"]="AAE=";\n'


# ---- the widget


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {"LoRA": (hra.LoRA, {"r": 4}), "SHiRA": (hra.SHiRA, {"density": 0.05})}
    out = {}
    for task in ("rotated", "inverted"):
        for name, (method, hyper) in kinds.items():
            path = folder / f"{task}-{name}.safetensors"
            drawn(hra.zoo.vit("tiny"), method, **hyper).save(path)
            out.setdefault(task, {})[name] = path
    return out


def test_the_widget_serves_every_reader(adapters, tmp_path, monkeypatch):
    monkeypatch.setenv(packed.FOLDER, str(tmp_path))
    w = hra.viz.DrawDigit(adapters)
    data, _ = w._repr_mimebundle_()
    vit = (Path(hra.viz.__file__).parent / "vit.js").read_text(encoding="utf-8")
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert data["text/plain"] == w.summary() == w.fallback_figure().words()
    written = {p.stem for p in tmp_path.iterdir()}
    assert written == set(w.files.values()) and len(written) == 6
    assert len(json.dumps(w.public_state())) < 5_000
    assert len(data["text/html"]) < 120_000 and vit in w._esm
    assert w.kinds["inverted"]["LoRA"] == {
        "ranks": 4,
        "numbers": [10752 * ((k + 1) // 2) for k in range(9)],
        "family": "low rank",
    }


def test_a_kernel_sends_the_file_that_the_page_asks_for(adapters):
    w, sent = hra.viz.DrawDigit(adapters), []
    w.send = lambda content, buffers=None: sent.append((content, buffers))
    for name in (w.files["rotated SHiRA"], "another"):
        w._handle_custom_msg({"file": name}, [])
    [(content, [data])] = sent
    assert content == {"file": w.files["rotated SHiRA"]}
    assert packed.name_of("rotated-shira", data) == content["file"]


def test_a_subnet_and_a_square_stand_on_the_page_too(tmp_path):
    """Each in its family's colour: a subnet as entries, a square as factors."""
    kinds = {"LoSiA": (hra.LoSiA, {"p": 1 / 6}), "MoRA": (hra.MoRA, {"r": 2})}
    files = {}
    for name, (method, hyper) in kinds.items():
        files[name] = tmp_path / f"{name}.safetensors"
        drawn(hra.zoo.vit("tiny"), method, **hyper).save(files[name])
    w = hra.viz.DrawDigit({"rotated": files})
    about = w.kinds["rotated"]
    assert [about[k]["family"] for k in kinds] == ["subnet", "square"]
    assert [about[k]["ranks"] for k in kinds] == [0, 27]
    assert about["LoSiA"]["numbers"][8] == 21_168
    model = hra.load(hra.zoo.vit("tiny"), files["MoRA"]).merge()
    want = logits(dict(model.named_parameters()), w._x)
    got = w.logits(w._x, kind="MoRA")
    assert (got - want).abs().max() < 0.03 * want.abs().max()


def test_the_counts_are_the_models_own(adapters):
    w = hra.viz.DrawDigit(adapters, degrees=45.0)
    x, y = pick(10)
    turned = digits.rotate(x, torch.full((100,), 45.0))
    got, before = w.right(), w.right(0.0)
    model = hra.load(hra.zoo.vit("tiny"), adapters["rotated"]["LoRA"]).merge()
    for m, counts in ((model, got), (hra.zoo.vit("tiny"), before)):
        for images, n in zip((x, turned), counts, strict=True):
            assert abs(100 * digits.accuracy(m, images, y) - n) < 1.5  # int8
    assert before != got


def test_what_does_not_exist_is_refused(adapters, tmp_path):
    with pytest.raises(ValueError, match="knows the shifts rotated, inverted"):
        hra.viz.DrawDigit({"mirrored": adapters["rotated"]})
    with pytest.raises(ValueError, match="needs a file"):
        hra.viz.DrawDigit({"rotated": {}})
    with pytest.raises(ValueError, match="keep=9 is out of range: 0 to 8"):
        hra.viz.DrawDigit(adapters, keep=9)
    with pytest.raises(FileNotFoundError):
        hra.viz.DrawDigit({"rotated": {"LoRA": tmp_path / "absent"}})
    w = hra.viz.DrawDigit(adapters)
    for name, value, said in (
        ("alpha", 3.0, "-1 to 2"),
        ("keep", -1, "0 to 8"),
        ("sample", 10, "0 to 9"),
        ("task", "mirrored", "rotated, inverted"),
        ("kind", "DoRA", "LoRA, SHiRA"),
        ("shown", "mirrored", "plain, rotated, inverted"),
    ):
        before = getattr(w, name)
        with pytest.raises(ValueError, match=said):
            setattr(w, name, value)
        assert getattr(w, name) == before
    only = {"rotated": {"LoRA": adapters["rotated"]["LoRA"]}, "inverted": {}}
    only["inverted"]["SHiRA"] = adapters["inverted"]["SHiRA"]
    with pytest.raises(ValueError, match="'SHiRA' is no adapter for rotated"):
        hra.viz.DrawDigit(only, kind="SHiRA")


def test_modules_in_full_are_refused(tmp_path):
    model = hra.zoo.vit("tiny")
    path = tmp_path / "also.safetensors"
    hra.attach(model, hra.LoRA, SITES, also="classifier", r=2).save(path)
    with pytest.raises(ValueError, match="classifier in full"):
        hra.viz.DrawDigit({"rotated": {"LoRA": path}})


def test_the_site_gets_the_files_that_its_pages_name(tmp_path, monkeypatch):
    from types import SimpleNamespace as Some

    path = Path(__file__).parents[1] / "tools/sphinx_ext/hra_models.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    warned = []
    monkeypatch.setattr(models.log, "warning", lambda *a, **k: warned.append(a[1:3]))
    app = Some(
        config=Some(nb_execution_cache_path=str(tmp_path / "cache")),
        outdir=tmp_path / "html",
        builder=Some(format="html"),
    )
    monkeypatch.setenv(packed.FOLDER, "")
    models.ask_for_files(app, app.config)
    packed.write_scripts({"used-1": b"\0", "unused-2": b"\0"})
    page = tmp_path / "html/notebooks/a.html"
    page.parent.mkdir(parents=True)
    page.write_text('{"files":{"model":"used-1"},"x":1} {"files":{"a":"gone-3"}}')
    models.copy_files(app, None)
    assert [p.name for p in (tmp_path / "html/_static/hra").iterdir()] == ["used-1.js"]
    assert warned == [("notebooks/a.html", "gone-3.js")]
