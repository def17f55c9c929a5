"""What the papers of LoRA's family claim, and that PEFT computes the same from the same
tensors.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

import hra
from hra.adapter import Adapter
from hra.bases import Combination, draws
from hra.methods import dora, fullft, vera

LAYOUTS = ["Linear", "Conv1D"]


def layer(layout="Linear", d_in=12, d_out=20, seed=0):
    torch.manual_seed(seed)
    made = (
        nn.Linear(d_in, d_out) if layout == "Linear" else Conv1D(d_out, d_in)
    ).double()
    nn.init.normal_(made.weight, std=0.3)
    nn.init.normal_(made.bias)
    return made


def moved(adapter, seed=0):
    """The adapter after some training: every trained number away from its start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return adapter


def inputs(d_in=12, seed=3):
    return torch.randn(
        9,
        d_in,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
        requires_grad=True,
    )


# ---- LoRA+
# ------------------------------------------------------------------------------


def test_loraplus_groups_partition_the_parameters():
    tuned = hra.attach(
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6)), hra.LoRAPlus, r=2, ratio=8.0
    )
    groups = tuned.param_groups(lr=1e-3)
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids)) == 4
    for g in groups:
        for p in g["params"]:
            is_b = any(p is a.B for a in tuned.adapters.values())
            assert g["lr"] == pytest.approx(8e-3 if is_b else 1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loraplus_with_ratio_one_is_lora(seed):
    ends = []
    for cls, hyper in (
        (hra.LoRA, {}),
        (hra.LoRAPlus, {"ratio": 1.0}),
        (hra.LoRAPlus, {"ratio": 4.0}),
    ):
        a = cls(layer(seed=seed), r=3, **hyper)
        opt = torch.optim.AdamW(a.param_groups(1e-2))
        for _ in range(5):
            a(inputs()).square().mean().backward()
            opt.step()
            opt.zero_grad()
        ends.append(a.delta_weight().detach())
    assert torch.equal(ends[0], ends[1]) and not torch.allclose(ends[0], ends[2])


# ---- LoRA-FA and AsyLoRA
# ------------------------------------------------------------------------------


def test_lorafa_keeps_A_and_the_row_space():
    a = hra.LoRAFA(layer(), r=3)
    A = a.A.detach().clone()
    opt = torch.optim.AdamW(a.param_groups(1e-2), weight_decay=0.1)
    for _ in range(5):
        a(inputs()).square().mean().backward()
        opt.step()
    assert torch.equal(a.A, A) and torch.equal(A, hra.LoRA(layer(), r=3).A)
    delta = a.delta_weight().detach()
    outside = delta - delta @ torch.linalg.pinv(A) @ A
    assert outside.abs().max() < 1e-12 * delta.abs().max()


def test_the_projected_gradient_is_the_least_squares_step():
    a = moved(hra.LoRAFA(layer(), r=3, alpha=5.0, project=True))
    x = inputs()
    y = a(x)
    y.sin().sum().backward()
    G = y.detach().cos().T @ x.detach()  # ∂L/∂W
    best = torch.linalg.lstsq(a.scale * a.A.T.detach(), G.T).solution.T
    torch.testing.assert_close(a.B.grad, best)


@pytest.mark.parametrize("train", ["A", "B"])
def test_asylora_factor_is_orthonormal_and_frozen(train):
    a = hra.AsyLoRA(layer(), r=4, train=train)
    frozen = a.A if train == "B" else a.B.T
    torch.testing.assert_close(frozen @ frozen.T, torch.eye(4, dtype=torch.float64))
    assert [n for n, p in a.named_parameters() if p.requires_grad] == [train]


# ---- DoRA
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dora_row_norms_are_the_magnitudes(seed):
    a = moved(hra.DoRA(layer(seed=seed), r=3), seed)
    W = a.W0 + a.delta_weight()
    torch.testing.assert_close(W.norm(dim=1), a.m.abs())
    V = a.W0 + a.scale * a.B @ a.A
    torch.testing.assert_close(a.norm(), V.norm(dim=1))


def test_dora_gradients_follow_equation_11_and_the_full_one():
    for detach in (True, False):
        a = moved(hra.DoRA(layer(), r=3, detach_norm=detach))
        x = inputs()
        y = a(x)
        y.sin().sum().backward()
        G = y.detach().cos().T @ x.detach()
        V = (a.W0 + a.scale * a.B @ a.A).detach()
        c, m = V.norm(dim=1, keepdim=True), a.m.detach()[:, None]
        dV = m / c * G
        if not detach:  # minus what points along each row
            v = V / c
            dV = dV - m / c * (G * v).sum(1, keepdim=True) * v
            assert (dV * V).sum(1).abs().max() < 1e-10
        torch.testing.assert_close(a.m.grad, ((G * V).sum(1, keepdim=True) / c)[:, 0])
        torch.testing.assert_close(a.B.grad, a.scale * dV @ a.A.T.detach())
        torch.testing.assert_close(a.A.grad, a.scale * a.B.T.detach() @ dV)


def test_dora_never_scales_the_bias():
    a = hra.DoRA(layer(), r=2)
    with torch.no_grad():
        a.m.mul_(3)
    zero = torch.zeros(1, 12, dtype=torch.float64)
    torch.testing.assert_close(a(zero)[0], a.bias)


def test_dora_dropout_is_the_papers_form():
    a = moved(hra.DoRA(layer(), r=3, dropout=0.4)).train()
    x = inputs()
    torch.manual_seed(7)
    y = a(x)
    torch.manual_seed(7)
    d = F.dropout(x, 0.4, True)
    gamma = a.m / (a.W0 + a.scale * a.B @ a.A).norm(dim=1)
    expected = (
        F.linear(x, a.W0, a.bias)
        + (gamma - 1) * F.linear(d, a.W0)
        + gamma * (a.scale * (d @ a.A.T) @ a.B.T)
    )
    torch.testing.assert_close(y, expected)


def test_dora_trains_a_magnitude_that_is_zero():
    a = moved(hra.DoRA(layer(), r=2))
    with torch.no_grad():
        a.m[3] = 0
    x = inputs()
    g = torch.autograd.grad(a(x).sin().sum(), [a.m, a.B])
    torch.testing.assert_close(
        g, torch.autograd.grad(Adapter.forward(a, x).sin().sum(), [a.m, a.B])
    )


# ---- VeRA, NOLA, PRANC
# ------------------------------------------------------------------------------


def test_vera_shares_one_pair_that_the_seed_gives_back():
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4))
    tuned = hra.attach(copy.deepcopy(model), hra.VeRA, r=5, seed=2)
    first, second = tuned.adapters.values()
    assert (
        first.pair is second.pair
        and first.pair.A.shape == (5, 9)
        and first.pair.B.shape == (9, 5)
    )
    assert (
        torch.equal(second.B, first.B[:4]) and first.A.data_ptr() == second.A.data_ptr()
    )
    again = hra.attach(copy.deepcopy(model), hra.VeRA, r=5, seed=2)
    assert torch.equal(again.adapters["0"].A, first.A)
    assert not torch.equal(
        hra.attach(model, hra.VeRA, r=5, seed=3).adapters["0"].A, first.A
    )
    tuned.model.double()
    assert first.pair is second.pair and second.A.dtype == torch.float64
    assert tuned.num_trainable == 9 + 4 + 5 + 5 and not [
        k for k in tuned.state_dict() if "A" in k
    ]


def test_vera_at_its_start():
    a = hra.VeRA(layer(), r=7)
    assert not a.b.any() and torch.equal(
        a.d, torch.full((7,), 0.1, dtype=torch.float64)
    )
    a(inputs()).square().sum().backward()
    assert not a.d.grad.any() and a.b.grad.any()


@pytest.mark.parametrize("r", [7, 30])
@pytest.mark.parametrize(("tokens", "dense"), [(2, 0), (9, 1), (200, 2)])
def test_vera_is_its_definition_in_all_of_its_orders_of_products(
    tokens, dense, r, monkeypatch
):
    a, made = moved(hra.VeRA(layer(), r=r)), []
    adapted = vera._adapted
    monkeypatch.setattr(
        vera, "_adapted", lambda *args: made.append(1) or adapted(*args)
    )
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    g = torch.autograd.grad(a(x).sin().sum(), [x, a.b, a.d])
    torch.testing.assert_close(
        g, torch.autograd.grad(Adapter.forward(a, x).sin().sum(), [x, a.b, a.d])
    )
    assert len(made) == (
        2 if dense and r == 30 else dense
    )  # with x kept the forward pass changes over earlier


def test_nola_coefficient_gradients_are_inner_products():
    a = moved(hra.NOLA(layer(), r=3, k=5, l=6))
    A, B = (t.detach().requires_grad_() for t in a.factors())
    (F.linear(inputs(), a.W0 + a.scale * B @ A).sin().sum()).backward()
    F.linear(inputs(), a.W0 + a.delta_weight()).sin().sum().backward()
    bases = draws(a.generator("A_i").initial_seed(), 5, (3, 12), 5**-0.5)
    torch.testing.assert_close(
        a.alpha_.grad, torch.stack([(A.grad * b).sum() for b in bases])
    )
    other = hra.NOLA(layer(), r=3, k=5, l=6)
    torch.testing.assert_close(other.A0, a.A0)
    assert (
        sum(
            p.numel()
            for p in hra.NOLA(layer(d_in=30), r=3, k=5, l=6).parameters()
            if p.requires_grad
        )
        == 11
    )


def test_nola_needs_its_frozen_start():
    a = hra.NOLA(layer(), r=3, k=5, l=6)
    a(inputs()).sum().backward()
    assert a.beta_.grad.any()
    a.A0.zero_()
    a.zero_grad()
    a(inputs()).sum().backward()
    assert not a.beta_.grad.any() and not a.alpha_.grad.any()


def test_pranc_is_linear_in_its_coefficients_and_shares_them(tmp_path):
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6)).double()
    tuned = hra.attach(copy.deepcopy(model), hra.PRANC, m=12)
    first, second = tuned.adapters.values()
    assert first.coefficients is second.coefficients and tuned.num_trainable == 12
    moved(first)
    delta = first.delta_weight().detach().clone()
    with torch.no_grad():
        first.coefficients.mul_(-2)
    torch.testing.assert_close(first.delta_weight(), -2 * delta)
    tuned.save(tmp_path / "p.safetensors")
    assert len(tuned.state_dict()) == 1  # one vector, whatever the number of sites
    again = hra.load(copy.deepcopy(model), tmp_path / "p.safetensors")
    a, b = again.adapters.values()
    assert a.coefficients is b.coefficients and torch.equal(
        b.delta_weight(), second.delta_weight()
    )


# ---- the functions
# ------------------------------------------------------------------------------


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (
            fullft._Sum,
            lambda: (rand(4, 5), rand(3, 5).detach(), rand(3, 5), rand(3).detach()),
        ),
        (dora._RowNorm, lambda: (rand(3, 5).detach(), rand(2, 5), rand(3, 2), 1.5)),
        (
            dora._Scaled,
            lambda: (
                rand(4, 5),
                rand(3, 5).detach(),
                rand(3).detach(),
                rand(2, 5),
                rand(3, 2),
                rand(3),
                1.5,
            ),
        ),
        *(
            (
                vera._Vectors,
                lambda tokens=tokens, r=r, t=t: (
                    rand(tokens, 5),
                    (rand(5, 3) if t else rand(3, 5)).detach(),
                    t,
                    rand(3).detach(),
                    rand(r, 5).detach(),
                    rand(3, r).detach(),
                    rand(3),
                    rand(r),
                ),
            )
            for tokens in (2, 4)
            for r in (2, 6)
            for t in (True, False)
        ),
        (Combination, lambda: (rand(4), 11, (3, 5), 0.7)),
    ],
)
def test_gradients_are_right_and_second_ones_refused(function, arguments):
    torch.manual_seed(0)
    args = arguments()
    assert torch.autograd.gradcheck(function.apply, args)
    leaf = next(a for a in args if isinstance(a, torch.Tensor) and a.requires_grad)

    def second():
        (first,) = torch.autograd.grad(
            function.apply(*args).square().sum(), leaf, create_graph=True
        )
        first.sum().backward()

    with pytest.raises(RuntimeError, match="once_differentiable"):
        second()


# ---- PEFT
# ------------------------------------------------------------------------------


def peft_model(layout, config):
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Identity(), copy.deepcopy(layer(layout)))
    return peft.get_peft_model(
        model,
        config(peft, {"target_modules": ["1"], "fan_in_fan_out": layout == "Conv1D"}),
        autocast_adapter_dtype=False,
    )


def assert_same_map(ours, theirs, pairs):
    x1, x2 = inputs(), inputs()
    y1, y2 = ours(x1), theirs(x2)
    torch.testing.assert_close(y1, y2, rtol=1e-6, atol=1e-6)
    y1.sin().sum().backward()
    y2.sin().sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-6, atol=1e-6)
    for mine, other in pairs:
        torch.testing.assert_close(
            mine.grad, other.grad.view_as(mine), rtol=1e-6, atol=1e-6
        )


def copy_factors(ours, theirs):
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    A.data, B.data = ours.A.detach().clone(), ours.B.detach().clone()
    return A, B


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dora_agrees_with_peft(layout):
    ours = moved(hra.DoRA(layer(layout), r=3, alpha=5.0))
    model = peft_model(
        layout, lambda peft, kw: peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, **kw)
    )
    theirs = model.base_model.model[1]
    A, B = copy_factors(ours, theirs)
    m = theirs.lora_magnitude_vector["default"].weight
    m.data = ours.m.detach().clone().view_as(m)
    assert_same_map(ours, theirs, [(ours.A, A), (ours.B, B), (ours.m, m)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vera_agrees_with_peft(layout):
    ours = moved(hra.VeRA(layer(layout), r=7))
    model = peft_model(layout, lambda peft, kw: peft.VeraConfig(r=7, **kw))
    theirs = model.base_model.model[1]
    theirs.vera_A["default"] = ours.A.clone()
    theirs.vera_B["default"] = ours.B.clone()
    b, d = theirs.vera_lambda_b["default"], theirs.vera_lambda_d["default"]
    b.data, d.data = ours.b.detach().clone(), ours.d.detach().clone()
    assert_same_map(ours, theirs, [(ours.b, b), (ours.d, d)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_projected_gradient_agrees_with_peft(layout):
    from peft.optimizers import create_lorafa_optimizer

    ours = moved(hra.LoRAFA(layer(layout), r=3, alpha=6.0, project=True))
    model = peft_model(
        layout, lambda peft, kw: peft.LoraConfig(r=3, lora_alpha=6, **kw)
    )
    theirs = model.base_model.model[1]
    _, B = copy_factors(ours, theirs)
    opt = create_lorafa_optimizer(model, r=3, lora_alpha=6, lr=1e-3)
    ours(inputs()).sin().sum().backward()
    theirs(inputs()).sin().sum().backward()
    opt.step()
    moment = next(s["exp_avg_B"] for s in opt.state.values() if "exp_avg_B" in s)
    torch.testing.assert_close(
        0.1 * ours.B.grad, moment, rtol=1e-6, atol=1e-6
    )  # (1 − β1) g after one step
    assert B.shape == ours.B.shape


# ---- errors
# ------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("cls", "hyper", "error", "words"),
    [
        (cls, *case)
        for cls in (
            hra.LoRA,
            hra.RsLoRA,
            hra.LoRAPlus,
            hra.LoRAFA,
            hra.AsyLoRA,
            hra.DoRA,
            hra.NOLA,
        )
        for case in [
            ({"r": 0}, ValueError, "r=0"),
            ({"r": -1}, ValueError, "r=-1"),
            ({"r": 7}, ValueError, r"r=7 .* = 6"),
            ({"r": 2.0}, TypeError, "r=2.0"),
            ({"r": True}, TypeError, "r=True"),
            ({"r": "2"}, TypeError, "r='2'"),
            ({"r": NAN}, TypeError, "r=nan"),
            ({"alpha": 0}, ValueError, "alpha=0"),
            ({"alpha": NAN}, ValueError, "alpha=nan"),
            ({"dropout": 1.0}, ValueError, "dropout=1.0"),
            ({"dropout": -0.1}, ValueError, "dropout=-0.1"),
            ({"seed": 1.5}, TypeError, "seed=1.5"),
        ]
    ]
    + [
        (hra.LoRAPlus, {"ratio": 0}, ValueError, "ratio=0"),
        (hra.LoRAPlus, {"ratio": "16"}, TypeError, "ratio='16'"),
        (hra.LoRAFA, {"project": 1}, TypeError, "project=1"),
        (hra.AsyLoRA, {"train": "C"}, ValueError, "train='C'"),
        (hra.DoRA, {"detach_norm": None}, TypeError, "detach_norm=None"),
        (hra.VeRA, {"r": 0}, ValueError, "r=0"),
        (hra.VeRA, {"r": 1.5}, TypeError, "r=1.5"),
        (hra.VeRA, {"d_init": 0.0}, ValueError, "d_init"),
        (hra.VeRA, {"d_init": NAN}, ValueError, "d_init=nan"),
        (hra.NOLA, {"k": 0}, ValueError, "k=0"),
        (hra.NOLA, {"l": True}, TypeError, "l=True"),
        (hra.PRANC, {"m": 0}, ValueError, "m=0"),
        (hra.PRANC, {"m": 2.5}, TypeError, "m=2.5"),
    ],
)
def test_bad_hyperparameters_name_the_value_and_leave_the_model_alone(
    cls, hyper, error, words, untyped
):
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6))
    layers = list(model)
    defaults = {} if "r" in hyper or cls in (hra.PRANC,) else {"r": 2}
    with pytest.raises(error, match=words):
        hra.attach(model, cls, **{**defaults, **hyper})
    assert list(model) == layers and all(p.requires_grad for p in model.parameters())
