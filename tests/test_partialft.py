"""Partial fine-tuning: which entries a row, a column, a block or a choice is."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hra
from hra import memory
from hra.methods.partialft import UNITS


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 10)).double()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(UNITS), st.integers(1, 20), st.integers(1, 20), st.data())
def test_the_units_are_a_partition_and_a_choice_trains_exactly_its_own(
    unit, d_out, d_in, data
):
    size = data.draw(st.integers(1, 6))
    layer = nn.Linear(d_in, d_out)
    whole = hra.PartialFT(layer, unit, 1.0, size=size)
    assert len(whole.index) == d_out * d_in
    down, across, h, w = whole.grid()
    one = data.draw(st.integers(0, down * across - 1))
    mask = torch.zeros(d_out, d_in)
    i, j = one // across * h, one % across * w
    mask[i : i + h, j : j + w] = 1
    a = hra.PartialFT(layer, unit, size=size, chosen=[one, one])
    assert torch.equal(a.index, mask.flatten().nonzero()[:, 0])
    a.values.data.fill_(1.0)
    assert torch.equal(a.delta_weight().detach(), mask)


@pytest.mark.parametrize("unit", UNITS)
def test_the_law_before_anything_is_drawn(unit):
    """On a layer that the blocks divide, for rows, columns and blocks exactly."""
    given = {"unit": unit, "size": 4, "density": 0.25}
    a = hra.PartialFT(nn.Linear(16, 24), **given)
    plain = memory.law(hra.PartialFT, **given)
    values = plain.values(d_out=24, d_in=16, **given)
    assert memory.bill.total(plain.trained, values) == len(a.index) == 24 * 16 // 4
    assert len(a.columns) <= values["columns"] <= 16
    bill = memory.cost(hra.PartialFT, 24, 16, 8, **given)
    assert bill == memory.cost(hra.PartialFT, 24, 16, 8, adapter=a, **given)


def test_a_choice_is_in_the_file_and_a_draw_is_not(tmp_path):
    sizes = []
    for hyper in ({"chosen": {"0": [3, 5], "2": [0]}}, {"count": 2}):
        tuned = hra.attach(net(), hra.PartialFT, **hyper)
        for a in tuned.adapters.values():
            nn.init.normal_(a.values)
        tuned.save(tmp_path / "p")
        again = hra.load(net(), tmp_path / "p")
        x = torch.randn(3, 10).double()
        assert torch.equal(again(x), tuned(x))
        sizes.append([a.packed({})[0].keys() for a in again.adapters.values()])
    (first, _), (second, _) = sizes
    assert "gaps" in first and "gaps" not in second
    rows = tuned.adapters["0"].index // 10
    assert rows.unique().numel() == 2 and len(rows) == 20


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"unit": "head"}, "unit='head' does not exist"),
        ({"chosen": [14]}, "holds 14 to 14; 0 has 14 units of the kind 'row', 0 to 13"),
        ({"chosen": {"9": [1]}}, "names no row of 0"),
        ({"chosen": [0.5]}, "give integers"),
        ({"count": 15}, "count=15 is out of range: 1 to 14"),
    ],
)
def test_what_cannot_be_is_refused_in_words(hyper, words, untyped):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        hra.attach(model, hra.PartialFT, **hyper)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
