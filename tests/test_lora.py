"""What the LoRA and rsLoRA papers claim, and that PEFT computes the same."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import hra


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_first_gradients(seed):
    a = hra.LoRA(nn.Linear(7, 5).double(), r=3, alpha=6.0, seed=seed)
    x = torch.randn(
        11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    y = a(x)
    y.square().sum().backward()
    G = (2 * y).T @ x
    assert not a.A.grad.any()
    torch.testing.assert_close(a.B.grad, 2.0 * G @ a.A.T)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rank_and_gauge(seed):
    g = torch.Generator().manual_seed(seed)
    a = hra.LoRA(nn.Linear(20, 30).double(), r=4)
    nn.init.normal_(a.B, generator=g)
    before = a.delta_weight().detach()
    assert torch.linalg.matrix_rank(before) == 4
    Q = torch.randn(4, 4, generator=g, dtype=torch.float64)
    with torch.no_grad():
        a.A.copy_(torch.linalg.solve(Q, a.A))
        a.B.copy_(a.B @ Q)
    torch.testing.assert_close(a.delta_weight(), before)


def test_A_starts_as_a_linear_layer_of_fan_in_d_in():
    for layer in (nn.Linear(768, 96), Conv1D(96, 768)):
        A = hra.LoRA(layer, r=8).A
        assert (
            A.shape == (8, 768) and abs(A.std().item() * math.sqrt(3 * 768) - 1) < 0.05
        )


def test_scales_differ_by_the_root_of_r():
    a, b = (
        cls(nn.Linear(8, 8), r=4, alpha=8.0).scale for cls in (hra.LoRA, hra.RsLoRA)
    )
    assert (a, b) == (2.0, 4.0)


def test_first_step_shrinks_with_r_for_lora_and_not_for_rslora():
    def step(cls, r):
        """Root mean square, over seeds, of the change of the output in the first step
        of SGD.
        """
        sizes = []
        for seed in range(16):
            torch.manual_seed(seed)
            a = cls(nn.Linear(256, 256).double(), r=r, seed=seed)
            x, y = torch.randn(256).double(), torch.randn(256).double()
            (a(x) @ y).backward()
            with torch.no_grad():
                sizes.append(
                    (a.scale * a.B.grad @ (a.A @ x)).norm() / (x @ x * y.norm())
                )
        return torch.stack(sizes).mean().item()

    assert step(hra.LoRA, 4) / step(hra.LoRA, 64) > 8
    assert 2 / 3 < step(hra.RsLoRA, 4) / step(hra.RsLoRA, 64) < 3 / 2


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    a = hra.LoRA(nn.Linear(16, 4).double(), r=2, dropout=0.5)
    nn.init.normal_(a.B, generator=torch.Generator().manual_seed(0))
    x = torch.ones(20_000, 16, dtype=torch.float64)
    torch.manual_seed(0)
    noisy, clean = a.train()(x), a.eval()(x)
    assert not torch.equal(noisy, clean)
    torch.testing.assert_close(noisy.mean(0), clean[0], rtol=0.05, atol=0.03)


@pytest.mark.parametrize("cls", [hra.LoRA, hra.RsLoRA])
@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
@pytest.mark.parametrize("r", [1, 5])
def test_agrees_with_peft(cls, layout, r):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    layer = (nn.Linear(12, 20) if layout == "Linear" else Conv1D(20, 12)).double()
    ours = cls(layer, r=r, alpha=3.0)
    nn.init.normal_(ours.B)
    model = nn.Sequential(nn.Identity(), copy.deepcopy(layer))
    config = peft.LoraConfig(
        r=r,
        lora_alpha=3,
        target_modules=["1"],
        use_rslora=cls is hra.RsLoRA,
        fan_in_fan_out=layout == "Conv1D",
    )
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    theirs = model.base_model.model[1]
    with torch.no_grad():
        theirs.lora_A["default"].weight.data = ours.A.detach().clone()
        theirs.lora_B["default"].weight.data = ours.B.detach().clone()
    x = torch.randn(9, 12, dtype=torch.float64)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    y1, y2 = ours(x1), theirs(x2)
    torch.testing.assert_close(y1, y2, rtol=1e-6, atol=1e-6)
    y1.sin().sum().backward()
    y2.sin().sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        ours.A.grad, theirs.lora_A["default"].weight.grad, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        ours.B.grad, theirs.lora_B["default"].weight.grad, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        ours.delta_weight(),
        theirs.get_delta_weight("default").T
        if layout == "Conv1D"
        else theirs.get_delta_weight("default"),
    )
