"""What is true of every adapter, on both weight layouts. A new method is one line in
CASES.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

import hra
from hra.adapter import Adapter


def SHARED(count):
    """So many numbers for all sites together."""
    return lambda m, n: count / 3  # the suite's model has three


def STRUCT(m, n):
    """Columns 2, 7, … and the diagonal, less what is in both."""
    columns = range(2, n, 5)
    return len(columns) * m + min(m, n) - sum(c < min(m, n) for c in columns)


# name: (class, hyperparameters, how many numbers train at a d_out × d_in layer)
CASES = {
    "FullFT": (hra.FullFT, {}, lambda m, n: m * n),
    "LoRA": (hra.LoRA, {"r": 4}, lambda m, n: 4 * (m + n)),
    "LoRA-dropout": (hra.LoRA, {"r": 3, "dropout": 0.2}, lambda m, n: 3 * (m + n)),
    "RsLoRA": (hra.RsLoRA, {"r": 4, "alpha": 2.0}, lambda m, n: 4 * (m + n)),
    "LoRAPlus": (hra.LoRAPlus, {"r": 4, "ratio": 4.0}, lambda m, n: 4 * (m + n)),
    "LoRAFA": (hra.LoRAFA, {"r": 4}, lambda m, n: 4 * m),
    "LoRAFA-dropout": (hra.LoRAFA, {"r": 4, "dropout": 0.2}, lambda m, n: 4 * m),
    "LoRAFA-project": (hra.LoRAFA, {"r": 4, "project": True}, lambda m, n: 4 * m),
    "AsyLoRA-B": (hra.AsyLoRA, {"r": 4}, lambda m, n: 4 * m),
    "AsyLoRA-A": (hra.AsyLoRA, {"r": 4, "train": "A"}, lambda m, n: 4 * n),
    "DoRA": (hra.DoRA, {"r": 4}, lambda m, n: 4 * (m + n) + m),
    "DoRA-norm": (
        hra.DoRA,
        {"r": 4, "detach_norm": False},
        lambda m, n: 4 * (m + n) + m,
    ),
    "DoRA-dropout": (hra.DoRA, {"r": 3, "dropout": 0.2}, lambda m, n: 3 * (m + n) + m),
    "VeRA": (hra.VeRA, {"r": 10}, lambda m, n: m + 10),
    "VeRA-wide": (hra.VeRA, {"r": 50}, lambda m, n: m + 50),
    "NOLA": (hra.NOLA, {"r": 4, "k": 9, "l": 11}, lambda m, n: 20),
    "PRANC": (hra.PRANC, {"m": 30}, SHARED(30)),
    "SHiRA-rand": (hra.SHiRA, {"density": 0.2}, lambda m, n: round(0.2 * m * n)),
    "SHiRA-weight": (
        hra.SHiRA,
        {"mask": "weight", "count": 30, "offset": 1},
        lambda m, n: 30,
    ),
    "SHiRA-struct": (
        hra.SHiRA,
        {"mask": "struct", "every": 5, "offset": 2, "axis": "column"},
        STRUCT,
    ),
    "SHiRA-hook": (hra.SHiRA, {"density": 0.2, "form": "hook"}, lambda m, n: m * n),
    "SHiRA-delta": (
        hra.SHiRA,
        {"density": 0.2, "form": "delta", "alpha": 0.5},
        lambda m, n: round(0.2 * m * n),
    ),
    "ReLoRA": (hra.ReLoRA, {"r": 3, "every": 4, "rewarm": 2}, lambda m, n: 3 * (m + n)),
    "BitFit": (hra.BitFit, {}, lambda m, n: m),
    "Houlsby": (hra.Houlsby, {"r": 4}, lambda m, n: 2 * 4 * m + 4 + m),
    "LinAdapter": (hra.LinAdapter, {"r": 4}, lambda m, n: 2 * 4 * m + 4 + 3 * m),
}


WITH_DELTA = [n for n, c in CASES.items() if not c[0].no_delta]


class Net(nn.Module):
    """Three layers, one of them square: a transposed square weight must not pass
    unnoticed.
    """

    def __init__(self, layout: str, bias: bool):
        super().__init__()
        self.fc, self.proj, self.square = (
            self.layer(layout, i, o, bias) for i, o in ((12, 20), (20, 12), (12, 12))
        )
        self.norm = nn.LayerNorm(12)

    @staticmethod
    def layer(layout: str, d_in: int, d_out: int, bias: bool) -> nn.Module:
        layer = (
            Conv1D(d_out, d_in)
            if layout == "Conv1D"
            else nn.Linear(d_in, d_out, bias=bias)
        )
        nn.init.normal_(layer.weight, std=0.3)
        if bias or layout == "Conv1D":
            nn.init.normal_(layer.bias) if bias else nn.init.zeros_(layer.bias)
        return layer

    def forward(self, x):
        return self.square(self.norm(x + self.proj(torch.tanh(self.fc(x)))))


@pytest.fixture(params=list(CASES))
def name(request):
    return request.param


@pytest.fixture(params=WITH_DELTA)
def with_delta(request):
    return request.param


@pytest.fixture(params=["Linear", "Linear-no-bias", "Conv1D", "Conv1D-no-bias"])
def layout(request):
    return request.param


def make(name, layout, dtype=torch.float64):
    torch.manual_seed(1)
    kind, bias = layout.split("-")[0], not layout.endswith("no-bias")
    net, x = Net(kind, bias).to(dtype).eval(), torch.randn(5, 12).to(dtype)
    cls, hyper, count = CASES[name]
    if cls is hra.BitFit and layout == "Linear-no-bias":
        pytest.skip("no bias, no BitFit: attach refuses it (tests/test_before_lora.py)")
    return net, x, cls, dict(hyper), count


def train(net, tuned, x, steps=6, lr=0.02, weight_decay=0.01):
    opt = torch.optim.AdamW(tuned.param_groups(lr), weight_decay=weight_decay)
    target, losses = torch.sin(3 * x), []
    for step in range(1, steps + 1):
        loss = F.mse_loss(net(x), target)
        loss.backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def test_starts_as_the_pretrained_model(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    y = net(x)
    hra.attach(net, cls, **hyper)
    if cls.start_tolerance:
        assert 0 < (net(x) - y).square().mean().sqrt() < cls.start_tolerance
    else:
        torch.testing.assert_close(net(x), y, rtol=1e-12, atol=1e-12)


def test_only_the_adapter_trains(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    before = copy.deepcopy(net.state_dict())
    tuned = hra.attach(net, cls, **hyper)
    own = {id(p) for g in tuned.param_groups(1.0) for p in g["params"]}
    assert own
    assert {id(p) for p in net.parameters() if p.requires_grad} == own
    train(net, tuned, x)
    tuned.detach()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_every_trained_number_receives_a_gradient(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    net(x).square().sum().backward()
    for p in (p for g in tuned.param_groups(1.0) for p in g["params"]):
        assert p.grad is not None and p.grad.abs().sum() > 0


def test_forward_is_the_definition(with_delta, layout):
    net, x, cls, hyper, _ = make(with_delta, layout)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    for a in tuned.adapters.values():
        z = torch.randn(3, 4, a.d_in, dtype=torch.float64)
        fast = z.clone().requires_grad_()
        slow = z.clone().requires_grad_()
        torch.testing.assert_close(a(fast), Adapter.forward(a, slow))
        params = [p for p in a.parameters() if p.requires_grad]
        g = torch.autograd.grad(a(fast).sin().sum(), [fast, *params])
        h = torch.autograd.grad(Adapter.forward(a, slow).sin().sum(), [slow, *params])
        torch.testing.assert_close(g, h)


def test_observe_sees_the_dense_gradient_whatever_the_fast_path(with_delta, layout):
    net, x, cls, hyper, _ = make(with_delta, layout)
    seen = {}

    class Spy(cls):
        def observe(self, G):
            super().observe(G)
            seen[self.site] = G

        def observing(self):
            return True

    tuned = hra.attach(net, Spy, **hyper)
    train(net, tuned, x)
    for site, a in tuned.adapters.items():
        z = torch.randn(3, 4, a.d_in, dtype=torch.float64)
        a(z).sin().sum().backward()
        W = (a.W0 + a.delta_weight()).detach().requires_grad_()
        F.linear(z, W, a.bias).sin().sum().backward()
        torch.testing.assert_close(seen[site], W.grad)


def test_merged_model_computes_the_same(with_delta, layout):
    net, x, cls, hyper, _ = make(with_delta, layout)
    kind = type(net.fc)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    y = net(x)
    assert tuned.merge() is net
    torch.testing.assert_close(net(x), y)
    assert type(net.fc) is kind and not any(
        isinstance(m, Adapter) for m in net.modules()
    )


@pytest.mark.parametrize("name", [n for n in CASES if n not in WITH_DELTA])
def test_without_a_delta_merging_is_refused_and_changes_nothing(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    y = net(x)
    for ask in (tuned.merge, next(iter(tuned.adapters.values())).delta_weight):
        with pytest.raises(
            TypeError, match=f"{cls.__name__} has no ΔW: it .* cannot be merged"
        ):
            ask()
    assert torch.equal(net(x), y) and len(tuned.adapters) == 3


def test_detach_gives_the_model_back_bit_for_bit(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    net.norm.weight.requires_grad_(False)
    layers, flags = (
        dict(net.named_modules()),
        {n: p.requires_grad for n, p in net.named_parameters()},
    )
    before = copy.deepcopy(net.state_dict())
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    tuned.detach()
    assert dict(net.named_modules()) == layers
    assert {n: p.requires_grad for n, p in net.named_parameters()} == flags
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_file_round_trip(name, layout, tmp_path):
    net, x, cls, hyper, _ = make(name, layout)
    fresh = copy.deepcopy(net)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    tuned.save(tmp_path / "a.safetensors")
    again = hra.load(fresh, tmp_path / "a.safetensors")
    assert again.method is cls
    assert again.hyper == next(iter(tuned.adapters.values())).packed(tuned.hyper)[1]
    assert torch.equal(fresh(x), net(x))


def test_no_tensor_hides_from_the_state_dict(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    for a in tuned.adapters.values():
        assert not [k for k, v in vars(a).items() if isinstance(v, torch.Tensor)]


def test_trainable_count_is_the_formula(name, layout):
    net, _, cls, hyper, count = make(name, layout)
    tuned = hra.attach(net, cls, **hyper)
    assert tuned.num_trainable == sum(
        count(a.d_out, a.d_in) for a in tuned.adapters.values()
    )
    assert f"{tuned.num_trainable:,}" in str(tuned)


def test_training_lowers_the_loss(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    losses = train(net, hra.attach(net, cls, **hyper), x, steps=30)
    assert losses[-1] < 0.9 * losses[0]


def test_weight_decay_leaves_the_base_alone(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    before = copy.deepcopy(net.state_dict())
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x, weight_decay=0.5)
    tuned.detach()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_moves_with_dtype(name, layout, dtype):
    net, x, cls, hyper, _ = make(name, layout, torch.float32)
    tuned = hra.attach(net, cls, **hyper)
    net.to(dtype)
    wide = torch.float32
    assert all(
        p.dtype == (wide if p.requires_grad else dtype) for p in net.parameters()
    )
    assert net(x.to(dtype)).dtype == dtype
    other, *_ = make(name, layout, dtype)
    assert all(
        p.dtype == wide
        for g in hra.attach(other, cls, **hyper).param_groups(1.0)
        for p in g["params"]
    )
    if not cls.no_delta:
        assert tuned.merge()(x.to(dtype)).dtype == dtype


def test_works_under_bf16_autocast(name, layout):
    net, x, cls, hyper, _ = make(name, layout, torch.float32)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    y = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        z = net(x)
    torch.testing.assert_close(z.float(), y, rtol=0.1, atol=0.15)
    z.float().square().sum().backward()
    assert all(
        p.grad.dtype == torch.float32
        for g in tuned.param_groups(1.0)
        for p in g["params"]
    )


def test_deep_copies_and_pickles_as_a_module(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    y = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), y)
        for p in twin.parameters():
            p.data.add_(1.0)
        assert torch.equal(net(x), y)


def test_same_seed_same_start_and_sites_differ(name, layout):
    net, _, cls, hyper, _ = make(name, layout)
    first = hra.attach(copy.deepcopy(net), cls, **hyper).state_dict()
    torch.manual_seed(99)
    again = hra.attach(copy.deepcopy(net), cls, **hyper).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    other = hra.attach(copy.deepcopy(net), cls, seed=1, **hyper).state_dict()
    drawn = [k for k in first if k.endswith((".A", ".B")) and first[k].any()]
    assert all(not torch.equal(first[k], other[k]) for k in drawn)
    for k in {k.split(".")[1] for k in drawn}:
        assert not torch.equal(first[f"square.{k}"][:3, :3], first[f"fc.{k}"][:3, :3])


def test_the_draw_does_not_touch_the_global_generator(name, layout):
    net, _, cls, hyper, _ = make(name, layout)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hra.attach(net, cls, **hyper)
    assert torch.equal(torch.rand(3), expected)


def test_gradient_checkpointing_gives_the_same_gradients(name, layout):
    net, x, cls, hyper, _ = make(name, layout)
    tuned = hra.attach(net, cls, **hyper)
    train(net, tuned, x)
    params = [p for g in tuned.param_groups(1.0) for p in g["params"]]
    x = x.requires_grad_()
    g = torch.autograd.grad(net(x).sin().sum(), params)
    h = torch.autograd.grad(
        torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).sin().sum(),
        params,
    )
    torch.testing.assert_close(g, h)


def test_train_and_eval_mode_follow_the_model(name, layout):
    net, _, cls, hyper, _ = make(name, layout)
    tuned = hra.attach(net, cls, **hyper)
    assert not any(a.training for a in tuned.adapters.values())
    net.train()
    tuned.detach()
    assert net.fc.training


def test_works_inside_multihead_attention(with_delta):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(12, 3, batch_first=True).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    y = mha(x, x, x)[0]
    cls, hyper, _ = CASES[with_delta]
    tuned = hra.attach(mha, cls, targets="out_proj", **hyper)
    torch.testing.assert_close(mha(x, x, x)[0], y)
    opt = torch.optim.SGD(tuned.param_groups(0.5))
    for step in (1, 2):
        mha(x, x, x)[0].square().sum().backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
    z = mha(x, x, x)[0]
    assert not torch.allclose(z, y)
    tuned.merge()
    torch.testing.assert_close(mha(x, x, x)[0], z)
