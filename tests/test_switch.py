"""Switching and fusing: exact to the bit, whatever the order and the number."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import hra


def base(layout="Linear", dtype=torch.float32):
    torch.manual_seed(0)
    layers = (
        [Conv1D(40, 30), Conv1D(30, 40)]
        if layout == "Conv1D"
        else [nn.Linear(30, 40), nn.Linear(40, 30)]
    )
    return nn.Sequential(*layers).to(dtype)


def saved(path, method, seed, layout="Linear", dtype=torch.float32, **hyper):
    """A file of an adapter whose trained numbers are random; and the merged weights."""
    model = base(layout, dtype)
    tuned = hra.attach(model, method, seed=seed, **hyper)
    g = torch.Generator().manual_seed(seed)
    for a in tuned.adapters.values():
        for p in a.parameters():
            if p.requires_grad:
                p.data.copy_(torch.randn(p.shape, generator=g))
    tuned.save(path)
    return path, copy.deepcopy(tuned.merge().state_dict())


@pytest.fixture(params=["Linear", "Conv1D"])
def layout(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_thousand_switches_are_exact(tmp_path, layout, dtype):
    files = [
        saved(tmp_path / f"{i}.safetensors", hra.SHiRA, i, layout, dtype, density=0.1)
        for i in range(2)
    ]
    files.append(saved(tmp_path / "lora.safetensors", hra.LoRA, 5, layout, dtype, r=3))
    model = base(layout, dtype)
    before = copy.deepcopy(model.state_dict())
    switch = hra.Switch(model)
    for k in range(1000):
        switch.to(files[k % 3][0])
        if k < 9 or k > 990:
            for name, W in model.state_dict().items():
                torch.testing.assert_close(
                    W, files[k % 3][1][name], rtol=1e-2, atol=1e-2
                )
                fresh = hra.Switch(base(layout, dtype))
                assert torch.equal(W, fresh.to(files[k % 3][0]).state_dict()[name])
    assert switch.off() is model
    assert all(torch.equal(W, before[n]) for n, W in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [hra.SHiRA, hra.LoRA])
def test_a_strength_scales_the_change_and_none_of_it_is_the_base(
    tmp_path, layout, dtype, method
):
    path, merged = saved(tmp_path / "a.safetensors", method, 1, layout, dtype)
    model = base(layout, dtype)
    before = copy.deepcopy(model.state_dict())
    switch = hra.Switch(model)
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    for strength in (1.0, 0.5, -1.0, 0.0, 2.0, 1.0):
        now = switch.to(path, strength=strength).state_dict()
        for name, W in now.items():
            wanted = before[name] + strength * (merged[name] - before[name])
            torch.testing.assert_close(W, wanted, **near)
            assert strength or torch.equal(W, before[name])
        assert switch.strength == strength
    fresh = hra.Switch(base(layout, dtype)).to(path).state_dict()
    assert all(torch.equal(W, fresh[k]) for k, W in model.state_dict().items())
    with pytest.raises(ValueError, match="strength"):
        switch.to(path, strength=float("nan"))
    assert all(torch.equal(W, fresh[k]) for k, W in model.state_dict().items())
    switch.off()
    assert all(torch.equal(W, before[k]) for k, W in model.state_dict().items())


def test_a_file_stays_in_memory_and_a_bad_one_changes_nothing(tmp_path):
    (a, merged), (b, _) = (
        saved(tmp_path / f"{i}.safetensors", hra.SHiRA, i, density=0.1)
        for i in range(2)
    )
    model = base()
    switch = hra.Switch(model)
    switch.to(a)
    switch.to(b)
    a.unlink()
    switch.to(a)  # from memory
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    houlsby = tmp_path / "h.safetensors"
    hra.attach(base(), hra.Houlsby, r=2).save(houlsby)
    for path, error, words in (
        (tmp_path / "bad.safetensors", ValueError, "not a safetensors"),
        (houlsby, TypeError, "Houlsby, which has no ΔW: .* It cannot be switched"),
        (tmp_path / "absent.safetensors", FileNotFoundError, "does not exist"),
    ):
        with pytest.raises(error, match=words):
            switch.to(path)
        for name, W in model.state_dict().items():
            torch.testing.assert_close(W, merged[name])
    with pytest.raises(ValueError, match="already holds adapters"):
        hra.Switch(hra.attach(base(), hra.LoRA, r=2).model)
    with pytest.raises(TypeError, match=r"Houlsby, which has no ΔW: .* be fused"):
        hra.fuse(base(), {houlsby: 1.0})
    gpt2, prefix = hra.zoo.gpt2("random"), tmp_path / "prefix.safetensors"
    hra.attach(gpt2, hra.PrefixTuning, n=2).save(prefix)
    with pytest.raises(TypeError, match=r"PrefixTuning, which has no ΔW: .* be fused"):
        hra.fuse(hra.zoo.gpt2("random"), {prefix: 1.0})


@pytest.mark.parametrize("mixed", [False, True])
def test_fusing_is_linear_free_of_order_and_exact(tmp_path, layout, mixed):
    a, _ = saved(tmp_path / "a.safetensors", hra.SHiRA, 0, layout, density=0.2)
    other, hyper = (hra.LoRA, {"r": 3}) if mixed else (hra.SHiRA, {"density": 0.2})
    b, _ = saved(tmp_path / "b.safetensors", other, 1, layout, **hyper)
    deltas = []
    for path in (a, b):
        tuned = hra.load(base(layout), path)
        deltas.append({s: x.delta_weight().detach() for s, x in tuned.adapters.items()})
    one = hra.fuse(base(layout), {a: 0.5, b: -2.0})
    two = hra.fuse(base(layout), {b: -2.0, a: 0.5})
    assert one.method is (hra.FullFT if mixed else hra.Entries)
    for s, x in one.adapters.items():
        torch.testing.assert_close(
            x.delta_weight(), 0.5 * deltas[0][s] - 2 * deltas[1][s]
        )
        assert torch.equal(x.delta_weight(), two.adapters[s].delta_weight())
    model = one.model
    one.save(tmp_path / "sum.safetensors")
    again = hra.load(base(layout), tmp_path / "sum.safetensors")
    x = torch.randn(3, 30)
    assert torch.equal(again.model(x), model(x))
    before = base(layout).state_dict()
    assert all(torch.equal(W, before[n]) for n, W in one.detach().state_dict().items())


def test_overlapping_masks_add_up_where_overwriting_twice_would_not(tmp_path):
    a, _ = saved(tmp_path / "a.safetensors", hra.SHiRA, 0, mask="weight", density=0.1)
    b, _ = saved(tmp_path / "b.safetensors", hra.SHiRA, 1, mask="weight", density=0.1)
    tuned = hra.fuse(base(), {a: 1.0, b: 1.0})
    assert all(
        len(x.index) == round(0.1 * x.d_out * x.d_in) for x in tuned.adapters.values()
    )  # the masks are the same
    singles = [hra.load(base(), p).adapters["0"].values for p in (a, b)]
    torch.testing.assert_close(tuned.adapters["0"].values, singles[0] + singles[1])


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, ValueError, "at least one file"),
        ({"a": float("nan")}, ValueError, "weight=nan"),
        ({"a": "1"}, TypeError, "weight='1'"),
        ({"absent": 1.0}, FileNotFoundError, "does not exist"),
    ],
)
def test_bad_sums(files, error, words, untyped):
    model = base()
    with pytest.raises(error, match=words):
        hra.fuse(model, files)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="mask='given'"):
        hra.attach(model, hra.SHiRA, mask="given")
