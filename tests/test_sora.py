"""What SoRA claims: the proximal step of the paper, not the released one; ranks that
each layer keeps for itself, in the file too.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hra
from hra import linear

GATES = st.lists(st.floats(-3, 3), min_size=1, max_size=6)


def net(layout="Linear"):
    torch.manual_seed(0)
    layers = [linear.new(layout, 12, 20), nn.Tanh(), linear.new(layout, 20, 12)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight)
    return nn.Sequential(*layers).double()


def run(tuned, steps, lr=0.02):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(9, 12, generator=g, dtype=torch.float64)
    opt, events = torch.optim.AdamW(tuned.param_groups(lr)), []
    for step in range(1, steps + 1):
        F.mse_loss(tuned.model(x), torch.sin(3 * x)).backward()
        opt.step()
        before = {s: a.g.detach().clone() for s, a in tuned.adapters.items()}
        events += tuned.after_step(step, opt)
        opt.zero_grad()
    return x, before, events


def stepped(gates, xi):
    a = hra.SoRA(nn.Linear(12, 20), r=len(gates), xi=xi)
    a.g.data = torch.tensor(gates, dtype=torch.float64)
    a.after_step(1, torch.optim.SGD(a.parameters(), 0.0))
    return a.g.detach()


def released(g, xi):
    """Three assignments in a row, on a copy."""
    g = g.clone()
    g[g > xi] -= xi
    g[g < -xi] += xi
    g[g.abs() < xi] = 0.0
    return g


@settings(max_examples=40, deadline=None)
@given(GATES, st.floats(0.01, 1))
def test_the_step_is_the_proximal_one(gates, xi):
    """T_ξ(g) = argmin over u of ½ (u − g)² + ξ |u|."""
    g, got = torch.tensor(gates, dtype=torch.float64), stepped(gates, xi)

    def loss(u):
        return (u - g).square() / 2 + xi * u.abs()

    grid = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
    assert (loss(got) <= loss(grid + 0 * g).min(0).values + 1e-12).all()
    torch.testing.assert_close(got, g.sign() * (g.abs() - xi).clamp(min=0))


def test_the_released_lines_zero_everything_below_two_xi():
    xi = 0.1
    gates = [-0.25, -0.15, -0.05, 0.05, 0.15, 0.25]
    got, wrong = stepped(gates, xi), released(torch.tensor(gates), xi)
    torch.testing.assert_close(
        got, torch.tensor([-0.15, -0.05, 0, 0, 0.05, 0.15]).double()
    )
    torch.testing.assert_close(wrong, torch.tensor([-0.15, 0, 0, 0, 0, 0.15]))
    g = torch.linspace(-1, 1, 400, dtype=torch.float64)
    assert ((released(g, xi) == 0) == (g.abs() < 2 * xi)).all()


def test_the_other_term_is_the_mean_over_all_gates(tmp_path):
    """λ mean |g|, whose gradient is λ sign g / (r L), in the loss that fit descends."""
    tuned = hra.attach(net(), hra.SoRA, r=4, lam=10.0, xi=0.0)
    gates = torch.cat([a.g for a in tuned.adapters.values()])
    torch.testing.assert_close(tuned.penalty(), 10 * gates.abs().mean())
    tuned.penalty().backward()
    for a in tuned.adapters.values():
        torch.testing.assert_close(a.g.grad, 10 * a.g.detach().sign() / (4 * 2))
    assert hra.attach(net(), hra.SoRA, r=4).penalty() == 0.0
    tuned.adapters["0"].g.data[1] = 0.0
    before = tuned.penalty()
    tuned.save(tmp_path / "s")
    torch.testing.assert_close(hra.load(net(), tmp_path / "s").penalty(), before)


@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_each_layer_keeps_its_own_ranks_and_the_file_those_alone(layout, tmp_path):
    model = net(layout)
    fresh, path = copy.deepcopy(model), tmp_path / "s"
    tuned = hra.attach(model, hra.SoRA, r=8, xi=0.05)
    for a, weak in zip(tuned.adapters.values(), (3, 6), strict=True):
        a.g.data.fill_(1.0)[1 : 1 + weak] = 0.05
    x, before, events = run(tuned, 3, lr=1e-3)
    left = [int((a.g != 0).sum()) for a in tuned.adapters.values()]
    assert left == [5, 2]
    for s, a in tuned.adapters.items():
        torch.testing.assert_close(a.g.detach(), F.softshrink(before[s], 0.05))
        assert int(a.left) == left[list(tuned.adapters).index(s)]
        last = [e for e in events if e["site"] == s][-1]
        assert last["rank"] == int(a.left)
        sigma = torch.linalg.svdvals(a.delta_weight().detach())
        assert int((sigma > 1e-9).sum()) == int(a.left)
    tuned.save(path)
    again = hra.load(copy.deepcopy(fresh), path)
    assert [len(a.g) for a in again.adapters.values()] == left
    numbers = sum(n * (12 + 20 + 1) for n in left)
    assert again.num_trainable == numbers
    torch.testing.assert_close(again(x), tuned(x))
    torch.testing.assert_close(again.merge()(x), tuned(x))
    again = hra.load(copy.deepcopy(fresh), path)
    again.save(tmp_path / "t")
    assert path.read_bytes() == (tmp_path / "t").read_bytes()
    bill = hra.memory.measure(again, {"input": x})
    assert bill.trained.numbers == numbers
    run(again, 3)  # and training goes on


def test_a_layer_without_a_rank_left(tmp_path):
    tuned = hra.attach(net(), hra.SoRA, r=2, xi=9.0)
    x, _, events = run(tuned, 1)
    assert [(e["rank"], e["pruned"]) for e in events] == [(0, 2)] * 2
    tuned.save(tmp_path / "s")
    again = hra.load(net(), tmp_path / "s")
    assert torch.equal(again(x), net()(x)) and again.num_trainable == 0
    assert torch.equal(again.merge()(x), net()(x))


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    ids = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0))

    def go(until=99, **kw):
        torch.manual_seed(3)
        model = hra.zoo.gpt2("random")
        tuned = hra.attach(model, hra.SoRA, targets="c_fc", r=6, xi=0.05)
        log = hra.fit(
            tuned,
            hra.data.lm_batches(ids, 2, 16, seed=1),
            12,
            1e-2,
            progress=False,
            callback=lambda log: len(log.steps) < until,
            **kw,
        )
        return tuned, log

    whole, log = go()
    go(until=7, checkpoint=tmp_path / "c", every=1)
    second, again = go(checkpoint=tmp_path / "c", every=6)
    assert log.events and again.events == log.events and again.losses == log.losses
    for k, v in whole.state_dict().items():
        assert torch.equal(v, second.state_dict()[k])


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"xi": -1.0}, r"xi=-1.0 is out of range: xi must lie in \[0"),
        ({"lam": -1.0}, "lam=-1.0 is out of range"),
        ({"r": 13}, "r=13 is out of range"),
    ],
)
def test_what_cannot_be_is_refused_in_words(hyper, words, untyped):
    with pytest.raises(ValueError, match=words):
        hra.attach(net(), hra.SoRA, **hyper)


def test_a_file_with_more_gates_than_ranks_is_refused(tmp_path, monkeypatch):
    tuned, packed = hra.attach(net(), hra.SoRA, r=4), hra.SoRA.packed
    for change in (
        lambda t: {k: torch.cat([v, v], int(k == "B")) for k, v in t.items()},
        lambda t: t | {"g": 0 * t["g"]},
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                hra.SoRA,
                "packed",
                lambda self, hyper, c=change: (c(packed(self, hyper)[0]), hyper),
            )
            tuned.save(tmp_path / "s")
        with pytest.raises(hra.io.AdapterFileError, match="gate"):
            hra.load(net(), tmp_path / "s")
