"""The widgets of two adapters: the same numbers in the page as in the library."""

import json

import pytest
import torch

import hra
from hra.data import digits
from hra.viz import packed
from tests.test_draw import drawn, pick
from tests.test_draw import node as with_vit
from tests.test_viz import at_each, javascript, node


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    out = {}
    for task in ("rotated", "inverted"):
        for name, hyper in (("LoRA", {"r": 4}), ("SHiRA", {"density": 0.05})):
            path = folder / f"{task}-{name}.safetensors"
            drawn(hra.zoo.vit("tiny"), hra.METHODS[name], **hyper).save(path)
            out.setdefault(task, {})[name] = path
    return out


@pytest.fixture(scope="module")
def pad(adapters):
    return hra.viz.AdapterPad(adapters)


def test_the_counts_are_the_models_own(pad, adapters):
    """Both adapters merged into one model, against the page's weights (int8)."""
    x, y = pick(10)
    for one, two in ((1.0, 0.5), (0.0, 0.0), (-1.0, 2.0)):
        model = hra.zoo.vit("tiny")
        for task, alpha in (("rotated", one), ("inverted", two)):
            tuned = hra.load(hra.zoo.vit("tiny"), adapters[task]["SHiRA"])
            for site, a in tuned.adapters.items():
                model.get_submodule(site).weight.data += alpha * a.delta_weight()
        at = [pad.strengths.index(v) for v in (one, two)]
        counted = pad.counts["SHiRA"][at[0] * len(pad.strengths) + at[1]]
        for shown, n in zip((x.rot90(1, (2, 3)), 1 - x), counted, strict=True):
            assert abs(100 * digits.accuracy(model, shown, y) - n) < 2.5


@node
def test_the_page_takes_the_grid_point_that_the_library_takes(pad):
    places = [(-1.0, 2.0), (0.2, 0.3), (0.7, 0.8), (1.0, 1.0), (-0.3, 1.7)]
    choices = [
        {"kind": k, "one": one, "two": two}
        for one, two in places
        for k in ("LoRA", "SHiRA")
    ]
    for choice, got in zip(choices, at_each(pad, choices), strict=True):
        pad.kind, pad.one, pad.two = choice.values()
        assert got == pad.facts()
        assert pad.kind in pad.summary()
    assert len({tuple(map(tuple, c)) for c in pad.counts.values()}) == 2


@node
def test_the_page_adds_both_changes_up(pad, tmp_path):
    """Its quick sum of three models is the packed files' W0 + α1 ΔW1 + α2 ΔW2."""
    names = [pad.files[f"{task} LoRA"] for task in pad.kinds]
    first, second = (pad._data[n] for n in names)
    base = pad._data[pad.files["model"]]
    mixed = javascript(pad, "m.mixed.toString()")
    got = with_vit(
        f"const mixed = {mixed}; const net = vit.readModel(read('base'));"
        "const alone = ['one', 'two'].map((n) => vit.adapted(net, "
        "[{ change: vit.readChange(read(n)), alpha: 1 }]));"
        "return given.map((a) => [...mixed(net.W, alone, a)"
        "['vit.layers.1.mlp.fc1.weight'].data]);",
        tmp_path,
        [[1.0, 1.0], [0.3, -0.7]],
        base=base,
        one=first,
        two=second,
    )
    for (a, b), values in zip([(1.0, 1.0), (0.3, -0.7)], got, strict=True):
        want = packed.adapted(base, [(first, a, 8), (second, b, 8)])
        want = want["vit.layers.1.mlp.fc1.weight"].flatten()
        assert (torch.tensor(values) - want).abs().max() < 1e-6
    assert got[0] != got[1]


def test_the_pad_serves_every_reader(pad, tmp_path, monkeypatch):
    monkeypatch.setenv(packed.FOLDER, str(tmp_path))
    data, _ = pad._repr_mimebundle_()
    assert {"text/html", "image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == pad.summary() == pad.fallback_figure().words()
    assert {p.stem for p in tmp_path.iterdir()} == set(pad.files.values())
    assert len(json.dumps(pad.public_state())) < 8_000
    assert "sketch" in pad.script() and "function sketch(" in pad._esm


def test_a_pad_of_one_task_or_of_unlike_kinds_is_refused(pad, adapters):
    with pytest.raises(ValueError, match="two tasks with the same kinds"):
        hra.viz.AdapterPad({"rotated": adapters["rotated"]})
    few = {"LoRA": adapters["inverted"]["LoRA"]}
    with pytest.raises(ValueError, match="two tasks with the same kinds"):
        hra.viz.AdapterPad({"rotated": adapters["rotated"], "inverted": few})
    with pytest.raises(ValueError, match=r"one=2\.5"):
        hra.viz.AdapterPad(adapters, one=2.5)
    with pytest.raises(ValueError, match=r"two=-1\.5 is out of range: -1 to 2"):
        pad.two = -1.5


# ---- the painted pair


@node
def test_the_page_computes_the_cross_terms_of_the_library():
    w = hra.viz.CrossTerms()
    choices = [
        {**values, "z": z, "activation": name}
        for values in w.presets.values()
        for z in (-1.25, 0.0, 2.0)
        for name in ("identity", "ReLU", "GELU")
    ]
    crossed = 0
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for key, value in choice.items():
            setattr(w, key, value)
        for key, want in w.facts().items():
            assert got[key] == pytest.approx(want, abs=1e-6), (choice, key)
        hit = any(abs(c) > 1e-6 for c in got["cross"])
        assert not (hit and choice["activation"] == "identity")
        crossed += hit
    assert 5 < crossed < len(choices) / 2


def test_the_presets_are_what_they_are_called():
    def cross(preset, activation="ReLU"):
        w = hra.viz.CrossTerms(activation=activation)
        for key, value in w.presets[preset].items():
            setattr(w, key, value)
        return w.facts(), w

    apart, w = cross("orthogonal outputs")
    assert apart["awom"] == 0 and apart["cross"] == [0, -1, 0, 0]
    assert w.summary().startswith("AWOR 1.00, AWOM 0.00; through ReLU at z = 0, 1 of 4")
    rows, _ = cross("disjoint rows", "GELU")
    assert rows["cross"] == [0] * 4 and any(rows["both"])
    columns, w = cross("disjoint columns")
    A1, A2 = w.matrices()
    assert not (A1 * A2).any() and all(columns["cross"])
    same, _ = cross("A₁ = A₂ = I")
    assert same["awor"] == 0.75 and all(same["cross"])
    data, _ = w._repr_mimebundle_()
    assert data["text/plain"] == w.summary() == w.fallback_figure().words()


def test_a_pair_that_is_none_is_refused():
    with pytest.raises(ValueError, match="four rows of four"):
        hra.viz.CrossTerms(a="+000 +000 0000")
    with pytest.raises(ValueError, match="four rows of four"):
        hra.viz.CrossTerms(b="+000 +000 0000 000x")
    with pytest.raises(ValueError, match="there are identity, ReLU, GELU"):
        hra.viz.CrossTerms(activation="tanh")
    with pytest.raises(ValueError, match=r"z=4\.0 is out of range"):
        hra.viz.CrossTerms(z=4)
