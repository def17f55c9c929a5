"""Adapter files: whatever is wrong with one is refused, says so, and leaves the model
as it was.
"""

import copy
import json
import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import hra
from hra import io
from hra.adapter import Adapter


def net(seed=0, width=8, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4)).to(dtype)


def tuned_net(method=None, **hyper):
    model = net()
    tuned = hra.attach(model, method or hra.LoRA, **(hyper or {"r": 2}))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in (p for group in tuned.param_groups(1.0) for p in group["params"]):
            p.add_(torch.randn(p.shape, generator=g))
    return tuned


@pytest.fixture
def path(tmp_path):
    tuned_net().save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def parts(path):
    with safe_open(path, framework="pt") as f:
        return load_file(path), dict(f.metadata())


def rewrite(path, tensors=None, **changes):
    """The file with other tensors or metadata; a careless tool would do the same."""
    own, meta = parts(path)
    meta = {k: v for k, v in (meta | changes).items() if v is not None}
    save_file(own if tensors is None else tensors, path, metadata=meta)


def sign(path):
    """Make the checksum right again, so that only the other checks can object."""
    tensors, meta = parts(path)
    rewrite(path, checksum=io.checksum(tensors, meta))


def refused(path, message, model=None, **kw):
    model = net() if model is None else model
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(io.AdapterFileError, match=message):
        hra.load(model, path, **kw)
    assert (
        dict(model.named_modules()) == modules
        and [p.requires_grad for p in model.parameters()] == flags
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_metadata_says_what_is_needed(path):
    tensors, meta = parts(path)
    assert (
        meta["method"] == "LoRA"
        and json.loads(meta["hyper"])
        == {"r": 2, "alpha": 16.0, "dropout": 0.0, "seed": 0}
        and meta["hra_version"] == hra.__version__
    )
    assert json.loads(meta["sites"]) == {"0": [8, 6], "2": [4, 8]}
    assert set(tensors) == {"0.A", "0.B", "2.A", "2.B"}


def test_not_a_safetensors_file(path):
    path.write_bytes(b"PK\x03\x04 a zip, or a pickle in one, more bytes")
    refused(path, "not a safetensors file")
    path.write_bytes(b"")
    refused(path, "not a safetensors file")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        hra.load(net(), tmp_path / "none")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated(path, keep):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw))])
    refused(path, "truncated")


def test_not_of_hra(path):
    rewrite(path, format="pt")
    refused(path, "not written by hra")


def test_unknown_method(path):
    rewrite(path, method="Lora2")
    sign(path)
    refused(path, "unknown method 'Lora2'. Known: .*LoRA")


def test_another_methods_tensors(path):
    rewrite(path, tensors={"0.delta": torch.zeros(8, 6), "2.delta": torch.zeros(4, 8)})
    sign(path)
    refused(path, "another method's tensors")


def test_missing_and_extra_tensors(path):
    tensors, _ = parts(path)
    rewrite(path, tensors={k: v for k, v in tensors.items() if k != "2.B"})
    sign(path)
    refused(path, r"missing, e\.g\. 2\.B")
    rewrite(path, tensors=tensors | {"2.C": torch.ones(1)})
    sign(path)
    refused(path, r"too many, e\.g\. 2\.C")


def test_wrong_shape(path):
    tensors, _ = parts(path)
    rewrite(path, tensors=tensors | {"2.B": torch.zeros(4, 3)})
    sign(path)
    refused(path, r"2\.B has the wrong shape \(4, 3\)")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_or_inf(path, bad):
    tensors, _ = parts(path)
    tensors["0.A"][1, 1] = bad
    rewrite(path, tensors=tensors)
    sign(path)
    refused(path, "0.A holds NaN or Inf")


def test_another_base(path):
    refused(path, "another base: this model's adapted weights differ", net(seed=1))
    refused(path, r"another base: 0 is \(8, 6\) there", net(width=9))
    refused(path, "another base: it adapts '2'", nn.Sequential(nn.Linear(6, 8)))
    hra.load(net(seed=1), path, strict_base=False)


def test_a_newer_format(path):
    rewrite(path, format_version="3")
    refused(path, "format 3; this hra reads format 2")


def test_the_format_before(path):
    rewrite(path, format_version="1")
    refused(path, "format 1, which did not hold all .* save it again")


@pytest.mark.parametrize(
    "change",
    [
        {"hyper": "{r: 2}"},
        {"hyper": "[2]"},
        {"sites": "no"},
        {"sites": '{"0": "big"}'},
        {"base": None},
        {"method": None},
        {"format_version": "one"},
        {"checksum": None},
    ],
)
def test_metadata_that_does_not_parse(path, change):
    rewrite(path, **change)
    refused(path, "metadata does not parse")


def test_impossible_hyperparameters(path):
    hyper = json.loads(parts(path)[1]["hyper"])
    rewrite(path, hyper=json.dumps(hyper | {"r": 100}))
    sign(path)
    refused(path, r"A has the wrong shape \(2, 6\); LoRA needs \(100, 6\)")
    rewrite(path, hyper=json.dumps(hyper | {"alpha": -1.0}))
    sign(path)
    refused(path, "alpha=-1.0 is out of range")
    rewrite(path, hyper='{"r": 2}')
    sign(path)
    refused(path, "the hyperparameter alpha is missing")


def test_one_flipped_bit(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    refused(path, "checksum")


def test_200_random_corruptions(path):
    raw = path.read_bytes()
    model, want = net(), copy.deepcopy(tuned_net().state_dict())
    rng, refusals = random.Random(0), 0
    base = copy.deepcopy(model.state_dict())
    for _ in range(200):
        bad = bytearray(raw)
        kind = rng.randrange(4)
        if kind == 0:
            for _ in range(rng.choice((1, 1, 8))):
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            bad = bad[: rng.randrange(len(bad))]
        elif kind == 2:
            i = rng.randrange(len(bad))
            bad[i:i] = rng.randbytes(rng.randrange(1, 9))
        else:
            i, n = rng.randrange(len(bad)), rng.randrange(1, 40)
            bad[i : i + n] = rng.randbytes(len(bad[i : i + n]))
        if bytes(bad) == raw:
            continue
        path.write_bytes(bad)
        try:
            tuned = hra.load(model, path)
        except io.AdapterFileError:
            refusals += 1
        else:  # a changed space in the header changes nothing
            assert all(torch.equal(v, want[k]) for k, v in tuned.state_dict().items())
            tuned.detach()
        assert not any(isinstance(m, Adapter) for m in model.modules())
        assert all(torch.equal(v, base[k]) for k, v in model.state_dict().items())
    assert refusals > 180


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    r=st.integers(1, 12),
    data=st.data(),
    dtype=st.sampled_from(
        [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    ),
)
def test_any_shape_and_dtype_round_trips_and_no_truncation_passes(
    tmp_path, m, n, r, data, dtype
):
    model = nn.Sequential(nn.Linear(n, m)).to(dtype)
    if r > min(m, n):
        with pytest.raises(ValueError, match="out of range"):
            hra.attach(model, hra.LoRA, r=r)
        return
    tuned = hra.attach(model, hra.LoRA, r=r)
    nn.init.normal_(tuned.adapters["0"].B)
    want, path = copy.deepcopy(tuned.state_dict()), tmp_path / "p.safetensors"
    tuned.save(path)
    tuned.detach()
    again = hra.load(model, path)
    assert all(
        torch.equal(v, want[k]) and v.dtype == torch.promote_types(dtype, torch.float32)
        for k, v in again.state_dict().items()
    )
    again.detach()
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(io.AdapterFileError):
        hra.load(model, path)


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    raw, tuned = path.read_bytes(), tuned_net()
    with torch.no_grad():
        tuned.adapters["0"].A[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.A holds NaN"):
        tuned.save(path)
    tuned = tuned_net()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        tuned.save(path)
    assert path.read_bytes() == raw and [p.name for p in path.parent.iterdir()] == [
        path.name
    ]


def test_a_file_is_the_same_bytes_each_time(tmp_path):
    for name in "ab":
        tuned_net().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
