"""What SHiRA claims: exact masks, a support that never grows, three forms with one
trajectory, small files.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

import hra
from hra import entries, masks, memory, sparse
from hra.methods import shira


def layer(layout="Linear", d_in=12, d_out=20, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    made = Conv1D(d_out, d_in) if layout == "Conv1D" else nn.Linear(d_in, d_out)
    nn.init.normal_(made.weight)
    return made.to(dtype)


def net(layout="Linear"):
    return nn.Sequential(layer(layout), nn.Tanh(), layer(layout, 20, 12, seed=1))


def train(tuned, opt, steps=6):
    x = torch.randn(
        7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    for step in range(1, steps + 1):
        F.mse_loss(tuned.model(x), torch.sin(3 * x)).backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()


# ---- masks
# ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.001, 1.0), st.integers(0, 5))
def test_counts_are_exact_and_indices_sound(d_out, d_in, density, seed):
    K = masks.budget(d_out, d_in, density)
    g = torch.Generator().manual_seed(seed)
    index = masks.rand(d_out, d_in, K, g)
    assert (
        len(masks.check(index, d_out, d_in, K))
        == K
        == max(1, round(density * d_out * d_in))
    )
    assert (
        len(
            masks.check(
                masks.top(torch.randint(3, (d_out, d_in)).float(), K), d_out, d_in
            )
        )
        == K
    )  # many ties
    assert torch.equal(sparse.unpack(sparse.pack(index), K, d_out * d_in), index)


@pytest.mark.parametrize(
    ("axis", "every", "offset", "diagonal"),
    [("row", 4, 0, True), ("row", 7, 3, False), ("column", 5, 2, True)],
)
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
def test_struct_has_the_count_of_the_formula(axis, every, offset, diagonal, shape):
    lines, length = shape if axis == "row" else shape[::-1]
    R = range(offset, lines, every)
    expected = len(R) * length + diagonal * (
        min(shape) - sum(i < min(shape) for i in R)
    )
    index = masks.struct(*shape, every, axis, offset, diagonal)
    assert len(masks.check(index, *shape)) == expected


def test_weight_mask_ignores_scale_and_its_offsets_do_not_meet():
    W = torch.randn(20, 12)
    first, second = masks.top(W.abs(), 50), masks.top(W.abs(), 50, offset=1)
    assert torch.equal(first, masks.top((7 * W).abs(), 50))
    assert not set(first.tolist()) & set(second.tolist())
    assert W.abs().flatten()[first].min() >= W.abs().flatten()[second].max()


def test_snip_ignores_a_change_of_units_and_grad_the_loss_scale():
    W, G, c = (
        torch.randn(20, 12).double(),
        torch.randn(20, 12).double(),
        torch.rand(20, 12).double() + 0.5,
    )
    assert torch.equal(
        masks.top((W * G).abs(), 30), masks.top(((W * c) * (G / c)).abs(), 30)
    )
    a = shira.SHiRA(layer(), mask="grad", count=30, gradients=G)
    assert torch.equal(
        a.index, shira.SHiRA(layer(), mask="grad", count=30, gradients=5 * G).index
    )


def test_random_masks_differ_by_seed_site_and_adapter():
    model = nn.Sequential(layer(d_in=40, d_out=40), layer(d_in=40, d_out=40))
    tuned = hra.attach(model, hra.SHiRA, density=0.1)
    a, b = (set(x.index.tolist()) for x in tuned.adapters.values())
    tuned.detach()
    c = set(
        hra.attach(model, hra.SHiRA, density=0.1, seed=1).adapters["0"].index.tolist()
    )
    for other in (b, c):
        assert len(a & other) < 0.35 * len(a)  # 10 % is expected
    assert (
        abs(
            len(masks.bernoulli(100, 100, 0.1, torch.Generator().manual_seed(0))) - 1000
        )
        < 150
    )


def test_global_scope_spends_one_budget():
    model = net()
    model[0].weight.data.mul_(1.3)
    tuned = hra.attach(model, hra.SHiRA, mask="weight", density=0.1, scope="global")
    counts = [len(a.index) for a in tuned.adapters.values()]
    assert sum(counts) == 2 * 24 and counts[0] > counts[1]
    everything = torch.cat(
        [m.weight.detach().abs().flatten() for m in (model[0], model[2])]
    )
    chosen = torch.cat([a.W0.abs().flatten()[a.index] for a in tuned.adapters.values()])
    assert torch.equal(chosen.sort().values, everything.sort().values[-48:])


# ---- training
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.SGD(p, momentum=0.9), torch.optim.Adam],
    ids=["SGD", "Adam"],
)
def test_the_three_forms_have_one_trajectory(layout, make):
    ends = []
    for form in shira.FORMS:
        tuned = hra.attach(net(layout), hra.SHiRA, density=0.2, form=form)
        train(tuned, make(tuned.param_groups(0.01)))
        ends.append(
            torch.cat(
                [a.delta_weight().detach().flatten() for a in tuned.adapters.values()]
            )
        )
    assert ends[0].any()
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


@pytest.mark.parametrize("form", shira.FORMS)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_nothing_outside_the_mask_ever_changes(form, kind):
    model = net()
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    tuned = hra.attach(model, hra.SHiRA, density=0.1, form=form)
    supports = [a.index for a in tuned.adapters.values()]
    train(tuned, kind(tuned.param_groups(0.01), weight_decay=0.1))
    tuned.merge()
    for i, W, index in zip((0, 2), before, supports, strict=True):
        changed = (model[i].weight != W).flatten().nonzero()[:, 0]
        assert len(changed) and set(changed.tolist()) <= set(index.tolist())


@pytest.mark.parametrize(
    "density", [0.002, 0.5]
)  # one by one, and from the dense product
def test_the_gradient_is_the_gathered_dense_one(density):
    base, x = layer(d_in=40, d_out=60), torch.randn(9, 40, dtype=torch.float64)
    a = hra.SHiRA(copy.deepcopy(base), density=density, alpha=0.5)
    a(x).sin().sum().backward()
    (G,) = torch.autograd.grad(base(x).sin().sum(), base.weight)
    torch.testing.assert_close(a.values.grad, 0.5 * G.flatten()[a.index])


@pytest.mark.parametrize("dense_from", [0.0, 2.0])
def test_sampled_products(dense_from):
    g, x = torch.randn(9, 20).double(), torch.randn(9, 12).double()
    index = masks.rand(20, 12, 30, torch.Generator().manual_seed(0))
    got = sparse.sampled_product(g, x, index // 12, index % 12, dense_from)
    torch.testing.assert_close(got, (g.T @ x).flatten()[index])


@pytest.mark.parametrize("axis", ["row", "column"])
def test_gradcheck_and_no_second_derivative(axis):
    W, b = torch.randn(5, 4).double(), torch.randn(5).double()
    index = masks.struct(5, 4, 3, axis, diagonal=False)
    columns = (index % 4).unique()
    x, v = (
        torch.randn(3, 4).double().requires_grad_(),
        torch.zeros(len(index)).double().requires_grad_(),
    )

    stash = W.flatten()[index]

    def f(x, v):  # what the adapter does: write, then multiply
        with torch.no_grad():
            stored = W + 0.7 * sparse.scatter(v.detach(), index, 5, 4)
        places = stored, index, stash, False, b, v, index, columns, 0.7
        return entries._Overwritten.apply(x, *places)

    assert torch.autograd.gradcheck(f, (x, v))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(f(x, v).square().sum(), v, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_detach_is_bit_exact_also_after_an_exception(dtype):
    model = nn.Sequential(layer(dtype=dtype), layer(d_in=20, d_out=12, dtype=dtype))
    before = copy.deepcopy(model.state_dict())
    tuned = hra.attach(model, hra.SHiRA, density=0.3)
    for a in tuned.adapters.values():
        nn.init.normal_(a.values)
    model(torch.randn(2, 12, dtype=dtype))
    assert not torch.equal(model[0].base.weight, before["0.weight"])
    with pytest.raises((RuntimeError, TypeError)):
        model(torch.randn(2, 13, dtype=dtype))
    assert torch.equal(tuned.adapters["0"].W0, before["0.weight"])
    tuned.detach()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_values_changed_from_outside_are_seen():
    a = hra.SHiRA(layer(), density=0.3)
    x = torch.randn(3, 12, dtype=torch.float64)
    W0 = a.W0.clone()
    before = a(x)
    a.values.data.add_(1.0)  # as a broadcast does: no version counter sees it
    assert torch.equal(a.W0, W0) and not torch.allclose(a(x), before)
    torch.testing.assert_close(a(x), F.linear(x, W0 + a.delta_weight(), a.bias))
    twin = copy.deepcopy(a)
    twin.values.data.zero_()
    torch.testing.assert_close(twin(x), before)
    torch.testing.assert_close(
        a(x), F.linear(x, W0 + a.delta_weight(), a.bias)
    )  # they share nothing


def test_the_bill():
    columns = {"mask": "struct", "every": 4, "axis": "column", "diagonal": False}
    for hyper, cols in (({"mask": "rand", "density": 0.2}, 12), (columns, 3)):
        one = nn.Sequential(layer(dtype=torch.float32))
        tuned = hra.attach(one, hra.SHiRA, **hyper)
        K = len(tuned.adapters["0"].index)

        class Call(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x)

        bill = memory.measure(Call(one), {"x": torch.randn(9, 12, requires_grad=True)})
        assert (bill.trained.numbers, bill.gradients.numbers, bill.moments.numbers) == (
            K,
            K,
            2 * K,
        )
        assert bill.activations.numbers == 9 * cols
        assert bill == memory.cost(hra.SHiRA, 20, 12, 9, bias=True, site="0", **hyper)


# ---- gradients for masks
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["GPT-2", "ViT"])
def test_probe_collects_the_dense_gradients_and_changes_nothing(layout):
    if layout == "GPT-2":
        model = hra.zoo.gpt2("random")
        batches = [
            {"input_ids": x, "labels": x} for x in torch.randint(256, (2, 3, 16))
        ]
        targets = "c_attn|c_fc"
    else:
        model = hra.zoo.vit("random")
        batches = [
            {
                "pixel_values": torch.randn(3, 1, 28, 28),
                "labels": torch.tensor([1, 2, 3]),
            }
            for _ in range(2)
        ]
        targets = "q_proj|fc2"
    probe = hra.probe(model, batches, targets, progress=False)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    sums, squares = {}, {}
    for b in batches:
        model.zero_grad()
        model(**b).loss.backward()
        for s in probe.mean:
            G = (
                hra.linear.weight(model.get_submodule(s)).grad
                if layout == "ViT"
                else model.get_submodule(s).weight.grad.T
            )
            sums[s] = sums.get(s, 0) + G / 2
            squares[s] = squares.get(s, 0) + G**2 / 2
    for s in probe.mean:
        torch.testing.assert_close(probe.mean[s], sums[s], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(probe.squared[s], squares[s], rtol=1e-4, atol=1e-6)
    tuned = hra.attach(
        model, hra.SHiRA, targets=targets, mask="snip", count=20, gradients=probe.mean
    )
    assert all(len(a.index) == 20 for a in tuned.adapters.values())
    with pytest.raises(ValueError, match="no batch"):
        hra.probe(hra.zoo.gpt2("random"), [], "c_attn", progress=False)


def test_probe_leaves_no_hook_when_its_handle_is_cut_off(monkeypatch):
    model, register = hra.zoo.gpt2("random"), nn.Module.register_forward_hook

    def cut_off(self, hook, **kwargs):
        register(self, hook, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(nn.Module, "register_forward_hook", cut_off)
    with pytest.raises(KeyboardInterrupt):
        hra.probe(model, [{"input_ids": torch.ones(1, 4).long()}], progress=False)
    assert not any(m._forward_hooks for m in model.modules())


# ---- files
# ------------------------------------------------------------------------------


def big():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(400, 500), nn.Linear(500, 400))


def hypers(model):
    G = {
        str(i): torch.randn(m.weight.shape, generator=torch.Generator().manual_seed(i))
        for i, m in enumerate(model)
    }
    return {
        "rand": {},
        "struct": {"every": 50},
        "weight": {},
        "grad": {"gradients": G},
        "snip": {"gradients": G},
    }


@pytest.mark.parametrize("mask", masks.RULES)
def test_files_hold_no_index_where_a_rule_gives_it(mask, tmp_path):
    model, path = big(), tmp_path / "a.safetensors"
    tuned = hra.attach(model, hra.SHiRA, mask=mask, density=0.05, **hypers(model)[mask])
    for a in tuned.adapters.values():
        nn.init.normal_(a.values)
    tuned.save(path)
    held = 4 * tuned.num_trainable
    assert (
        path.stat().st_size <= (1.5 if mask in ("grad", "snip") else 1.02) * held + 2048
    )
    with safe_open(path, "pt") as f:
        assert any(k.endswith("gaps") for k in f.keys()) == (mask in ("grad", "snip"))
        assert not any(k.endswith("index") for k in f.keys())
    again = hra.load(big(), path)
    for s, a in tuned.adapters.items():
        assert torch.equal(a.index, again.adapters[s].index) and torch.equal(
            a.values, again.adapters[s].values
        )


def test_a_weight_mask_of_another_base_is_refused(tmp_path):
    model, path = big(), tmp_path / "a.safetensors"
    hra.attach(model, hra.SHiRA, mask="weight", density=0.05).save(path)
    other = big()
    other[0].weight.data.normal_()
    with pytest.raises(
        ValueError, match="the mask of 0 is not the one that this model gives"
    ):
        hra.load(other, path, strict_base=False)
    assert type(other[0]) is nn.Linear


def test_a_thousand_corrupted_files(tmp_path, untyped):
    model, path = net(), tmp_path / "a.safetensors"
    G = {"0": torch.randn(20, 12).double(), "2": torch.randn(12, 20).double()}
    tuned = hra.attach(model, hra.SHiRA, mask="grad", density=0.2, gradients=G)
    train(tuned, torch.optim.Adam(tuned.param_groups(0.01)))
    tuned.save(path)
    raw, fresh, g = path.read_bytes(), net(), torch.Generator().manual_seed(0)
    before = copy.deepcopy(fresh.state_dict())
    for _ in range(1000):
        bad = bytearray(raw)
        place = int(torch.randint(len(raw), (1,), generator=g))
        bad[place] ^= 1 << int(torch.randint(8, (1,), generator=g))
        path.write_bytes(bad)
        with pytest.raises((hra.io.AdapterFileError,)):
            hra.load(fresh, path)
        assert type(fresh[0]) is nn.Linear
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize(
    ("gaps", "count", "words"),
    [
        (torch.tensor([1, 2], dtype=torch.uint8), 3, "2 packed gaps cannot hold 3"),
        (torch.full((9,), 255, dtype=torch.uint8), 1, "9 packed gaps cannot hold 1"),
        (torch.tensor([255, 1, 2], dtype=torch.uint8), 1, "2 entries instead of 1"),
        (torch.tensor([1, 255], dtype=torch.uint8), 1, "instead"),
        (torch.tensor([1, 2]), 2, "vector of uint8"),
        (torch.empty(0, dtype=torch.uint8), 0, "instead of 0"),
    ],
)
def test_packed_indices_are_checked(gaps, count, words):
    with pytest.raises(ValueError, match=words):
        sparse.unpack(gaps, count, 600)


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([3, 3]),
        torch.tensor([5, 2]),
        torch.tensor([-1, 2]),
        torch.tensor([1, 240]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([0.5]),
    ],
)
def test_bad_indices_are_refused(index):
    with pytest.raises(ValueError, match="index"):
        masks.check(index, 20, 12)


@pytest.mark.parametrize(
    ("hyper", "error", "words"),
    [
        ({"mask": "magnitude"}, ValueError, "mask='magnitude' .* 'struct', 'rand'"),
        ({"density": 0}, ValueError, "density=0"),
        ({"density": 1.5}, ValueError, "density=1.5"),
        ({"density": "1%"}, TypeError, "density='1%'"),
        ({"density": float("nan")}, ValueError, "density=nan"),
        ({"count": 0}, ValueError, "count=0"),
        ({"count": 241}, ValueError, "to 240"),
        ({"count": True}, TypeError, "count=True"),
        ({"form": "csr"}, ValueError, "'overwrite', 'hook', 'delta'"),
        ({"scope": "model"}, ValueError, "'layer', 'global'"),
        ({"axis": 0}, ValueError, "'row', 'column'"),
        ({"alpha": 0}, ValueError, "alpha=0"),
        ({"offset": -1}, ValueError, "offset=-1"),
        ({"mask": "struct", "every": 4, "offset": 4}, ValueError, "offset=4 .* 0 to 3"),
        ({"mask": "struct", "every": 0}, ValueError, "every=0"),
        ({"mask": "weight", "density": 0.6, "offset": 1}, ValueError, "beyond"),
        ({"mask": "grad"}, ValueError, "needs gradients .* got None.*hra.probe"),
        ({"mask": "snip", "gradients": torch.ones(2, 2)}, ValueError, r"got \(2, 2\)"),
    ],
)
def test_bad_hyperparameters(hyper, error, words, untyped):
    model = nn.Sequential(layer())
    with pytest.raises(error, match=words):
        hra.attach(model, hra.SHiRA, **hyper)
    assert type(model[0]) is nn.Linear and all(
        p.requires_grad for p in model.parameters()
    )
