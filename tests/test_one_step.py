"""The first step: what the formula says is what a layer and an optimizer do."""

import pytest
import torch
from torch import nn

import hra
from hra.analysis import bounds

M, N = 24, 40
OPTIMIZERS = {False: torch.optim.SGD, True: torch.optim.Adam}


def layer():
    return nn.Linear(N, M, bias=False, dtype=torch.float64)


def moved(adapter, x, g, lr, adam):
    """Δy by one step of the optimizer, the loss being ⟨g, y⟩."""
    before = adapter(x).detach()
    adapter(x).backward(g)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    more = {"eps": 1e-30} if adam else {}
    OPTIMIZERS[adam](trained, lr=lr, **more).step()
    return adapter(x).detach() - before


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_formula_is_what_a_step_does(adam, seed):
    torch.manual_seed(seed)
    x, g = torch.randn(N).double(), torch.randn(M).double()
    for r, method in ((1, hra.LoRA), (8, hra.LoRA), (8, hra.RsLoRA)):
        a = method(layer(), r=r, seed=seed)
        how = {"A": a.A.detach().clone(), "scale": a.scale, "adam": adam}
        torch.testing.assert_close(
            moved(a, x, g, 0.01, adam), bounds.one_step(g, x, 0.01, **how)
        )
    for density in (0.02, 0.2):
        a = hra.SHiRA(layer(), density=density, seed=seed)
        mask = torch.zeros(M * N, dtype=torch.bool)
        mask[a.index.long()] = True
        said = bounds.one_step(g, x, 0.01, mask=mask.view(M, N), adam=adam)
        torch.testing.assert_close(moved(a, x, g, 0.01, adam), said)
    said = bounds.one_step(g, x, 0.01, adam=adam)
    torch.testing.assert_close(moved(hra.FullFT(layer()), x, g, 0.01, adam), said)


@pytest.mark.parametrize("adam", [False, True])
def test_the_average_ratio_is_that_of_many_starts(adam):
    n, x, g = 512, torch.randn(512).double(), torch.ones(1).double()
    full = float(bounds.one_step(g, x, 1.0, adam=adam))
    for r, scale in ((1, 16.0), (16, 1.0), (16, 4.0), (256, 1 / 16)):
        steps = []
        for _ in range(400):
            A = (2 * torch.rand(r, n).double() - 1) * n**-0.5
            step = bounds.one_step(g, x, 1.0, A=A, scale=scale, adam=adam)
            steps.append(float(step) / full)
        said = bounds.step_ratio(n, r=r, scale=scale, adam=adam)
        assert sum(steps) / 400 == pytest.approx(said, rel=0.15)
    for p in (0.01, 0.3):
        masks = [torch.rand(1, n) < p for _ in range(400)]
        steps = [bounds.one_step(g, x, 1.0, mask=m, adam=adam) / full for m in masks]
        assert float(sum(steps)) / 400 == pytest.approx(
            bounds.step_ratio(n, density=p, adam=adam), rel=0.15
        )


def test_what_each_rule_does_as_the_rank_grows():
    """α/r: SGD's step falls, Adam's stays. α/√r: SGD's stays, Adam's grows."""

    def grows(rule, adam):
        low, high = (
            bounds.step_ratio(1024, r=r, scale=rule(r), adam=adam) for r in (4, 64)
        )
        return high / low

    by_r, by_root = (lambda r: 16 / r), (lambda r: 16 / r**0.5)
    assert grows(by_r, False) == pytest.approx(1 / 16)
    assert grows(by_root, False) == pytest.approx(1)
    assert grows(by_r, True) == pytest.approx(1)
    assert grows(by_root, True) == pytest.approx(4)


def test_a_wrong_question_is_refused():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="not both"):
        bounds.one_step(x, x, 1.0, A=torch.ones(1, 3), mask=torch.ones(3, 3) > 0)
    for wrong in ({"n": 0}, {"n": 3, "r": 0}, {"n": 3, "density": 0.0}):
        with pytest.raises(ValueError, match="count from 1"):
            bounds.step_ratio(**wrong)
