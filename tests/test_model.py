"""attach: what is refused, why, and that a refusal changes nothing."""

import copy

import pytest
import torch
from torch import nn

import hra


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def refused(model, error, message, method=hra.LoRA, **kw):
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(error, match=message):
        hra.attach(model, method, **kw)
    assert (
        dict(model.named_modules()) == modules
        and [p.requires_grad for p in model.parameters()] == flags
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "kw",
    [
        {"r": 0},
        {"r": -1},
        {"r": 5},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": float("nan")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
    ],
)
def test_values_out_of_range(kw):
    name, value = next(iter(kw.items()))
    refused(net(), ValueError, f"{name}={value}.*", **{"r": 2, **kw})


@pytest.mark.parametrize(
    "kw",
    [
        {"r": True},
        {"r": "8"},
        {"r": 2.0},
        {"r": None},
        {"alpha": "16"},
        {"seed": 0.5},
        {"dropout": "none"},
        {"rank": 8},
    ],
)
def test_values_of_the_wrong_type(kw):
    refused(net(), TypeError, next(iter(kw)), **{"r": 2, **kw})


def test_an_unknown_hyperparameter_is_told_the_known_ones():
    refused(
        net(),
        TypeError,
        "LoRA has no hyperparameter 'rank'. It has: r, alpha, dropout, seed",
        rank=3,
    )


def test_targets():
    refused(
        net(),
        ValueError,
        "targets='attn' matches no linear layer. This model has 2, e.g. 0, 2",
        targets="attn",
    )
    refused(net(), ValueError, "'atn' matches no linear layer", targets="0|atn")
    refused(net(), ValueError, "not a regular expression", targets="(")


def test_attach_twice():
    model = net()
    tuned = hra.attach(model, hra.LoRA, targets="0", r=2)
    refused(model, ValueError, "already holds adapters, e.g. at 0", r=2)
    with pytest.raises(TypeError, match="already holds a LoRA"):
        hra.LoRA(tuned.adapters["0"])
    tuned.detach()
    with pytest.raises(RuntimeError, match="gone already"):
        tuned.merge()
    hra.attach(model, hra.LoRA, r=2)


def test_a_bad_rank_at_the_second_site_undoes_the_first():
    refused(net(), ValueError, "r=5.*4 × 8 layer .2.", r=5)


def test_a_tied_weight_is_refused_with_the_reason():
    refused(
        hra.zoo.gpt2("random"),
        ValueError,
        "lm_head.weight is tied.*transformer.wte.weight",
        targets="lm_head",
        r=2,
    )


def test_a_bare_layer_is_pointed_to_the_constructor():
    refused(nn.Linear(4, 4), ValueError, r"hra\.LoRA\(layer\)")


def test_no_linear_layer():
    with pytest.raises(TypeError, match="needs a linear layer"):
        hra.LoRA(nn.LayerNorm(4))


def test_gpt2_end_to_end(tmp_path):
    model = hra.zoo.gpt2("random")
    ids = torch.arange(20)[None]
    y = model(input_ids=ids).logits
    tuned = hra.attach(model, hra.LoRA, targets=r"attn\.c_attn$|mlp\.c_fc$", r=3)
    assert len(tuned.adapters) == 4 and torch.equal(tuned(input_ids=ids).logits, y)
    hra.fit(
        tuned, [{"input_ids": ids, "labels": ids}], steps=5, lr=1e-2, progress=False
    )
    z = model(input_ids=ids).logits
    tuned.save(tmp_path / "x")
    assert tuned.detach() is model and torch.equal(model(input_ids=ids).logits, y)
    torch.testing.assert_close(
        hra.load(model, tmp_path / "x").merge()(input_ids=ids).logits, z
    )
