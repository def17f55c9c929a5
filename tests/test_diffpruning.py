"""What diff pruning claims: relaxed gates, the expected count in the loss, K entries of
all layers in the end, and a run that goes on where it was broken off.
"""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra
from hra import linear, memory

HYPER = {"density": 0.1, "start": 1.0, "gate_lr": 0.02}


class Net(nn.Module):
    """Two layers and a loss."""

    def __init__(self, layout="Linear"):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = linear.new(layout, 12, 20), linear.new(layout, 20, 12)
        for layer in (self.one, self.two):
            nn.init.normal_(layer.weight, std=0.3)
        self.double()

    def forward(self, x):
        y = self.two(torch.tanh(self.one(x)))
        return SimpleNamespace(loss=F.mse_loss(y, torch.sin(3 * x)))


def batches():
    g = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(9, 12, generator=g, dtype=torch.float64)} for _ in "abc"]


def attached(layout="Linear", **hyper):
    return hra.attach(Net(layout), hra.DiffPruning, **HYPER | hyper)


def train(tuned, optimizer=torch.optim.AdamW, steps=6, **kw):
    tuned.begin(steps)
    opt, events = optimizer(tuned.param_groups(0.02), **kw), []
    for step in range(1, steps + 1):
        loss = tuned(**batches()[step % 3]).loss  # alive when the parameters shrink
        (loss + tuned.penalty()).backward()
        opt.step()
        events += tuned.after_step(step, opt)
        opt.zero_grad()
    return events


def drawn(a, times):
    """z_g z of so many steps, (times, d_out, d_in)."""
    with torch.no_grad():
        a.w.fill_(1.0)
        found = []
        for step in range(times):
            a.steps.fill_(step)
            found.append(a.gated(noisy=True))
    return torch.stack(found)


def test_a_gate_is_open_as_often_as_the_penalty_says():
    """P(z > 0) = σ(α − log(−γ / ζ)), and E‖ΔW‖₀ of the product of both gates."""
    stretch = {"gamma": -0.3, "zeta": 1.2}
    one = hra.DiffPruning(nn.Linear(12, 20), start=-1.0, structured=False, **stretch)
    z = drawn(one, 300)
    share = torch.tensor(-1.0 - math.log(0.3 / 1.2)).sigmoid()
    assert z.min() == 0 and z.max() == 1
    assert abs((z > 0).float().mean() - share) < 0.01  # 72,000 draws
    torch.testing.assert_close(one.expected(), 240 * share)
    both = hra.DiffPruning(nn.Linear(12, 20), start=0.0, **stretch)
    both.log_alpha_g.data.fill_(-1.5)
    count = (drawn(both, 2000) > 0).sum((1, 2)).float()
    assert abs(count.mean() / both.expected() - 1) < 0.1
    p, q = (torch.tensor(a - math.log(0.3 / 1.2)).sigmoid() for a in (0.0, -1.5))
    torch.testing.assert_close(both.expected(), 240 * p * q)  # not 240 p + q


def test_the_noise_is_of_the_seed_the_site_and_the_step_and_of_training_alone():
    tuned = attached()
    a = tuned.adapters["one"]
    a.w.data.fill_(1.0)
    torch.manual_seed(7)
    first, state = a.delta_weight(), torch.get_rng_state()
    assert torch.equal(a.delta_weight(), first)
    assert torch.equal(torch.get_rng_state(), state)
    tuned.after_step(1, torch.optim.SGD(tuned.param_groups(0.1)))
    assert (a.delta_weight() != first).float().mean() > 0.3
    other = attached(seed=1).adapters["one"]
    other.w.data.fill_(1.0)
    a.steps.zero_()
    assert (other.delta_weight() != first).float().mean() > 0.3
    tuned.model.eval()
    z = min(1, max(0, 3 / (1 + math.exp(-1)) - 1.5))
    torch.testing.assert_close(a.delta_weight(), torch.full_like(a.w, z * z))


def test_the_penalty_is_in_the_loss_of_fit():
    free, held = attached(lam=0.0), attached(lam=0.05)
    assert free.penalty() == 0.0 and hra.attach(Net(), hra.LoRA).penalty() == 0.0
    alone = [0.05 * a.expected() for a in held.adapters.values()]
    torch.testing.assert_close(held.penalty(), sum(alone))
    for tuned in (free, held):
        log = hra.fit(tuned, batches(), 4, 1e-2, progress=False, callback=stop_at(1))
        assert ("penalty" in log.steps[0]) == (tuned is held)
    moved = [
        torch.cat([a.log_alpha.detach().flatten() - 1 for a in t.adapters.values()])
        for t in (free, held)
    ]
    # w = 0: without a penalty no gate has a gradient; with it all of them shrink
    assert not moved[0].any() and (moved[1] < 0).all()


def stop_at(step):
    return lambda log: len(log.steps) < step


OPTIMIZERS = {
    "AdamW": {"weight_decay": 0.1},
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
    "RMSprop": {},
    "Adafactor": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_count_is_exact_whatever_the_optimizer(name):
    tuned = attached()
    events = train(tuned, getattr(torch.optim, name), **OPTIMIZERS[name])
    budget = 2 * round(0.1 * 240)
    assert sum(e["kept"] for e in events) == budget == tuned.num_trainable
    assert {e["step"] for e in events} == {3} and len(events) == 2
    for e, a in zip(events, tuned.adapters.values(), strict=True):
        assert e["kept"] == len(a.index) == int((a.delta_weight() != 0).sum())


@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_the_largest_changes_of_all_layers_stay_as_they_are(layout):
    tuned = attached(layout, fixed=0.0)
    train(tuned, steps=2)
    soft = attached(layout, fixed=None)
    train(soft, steps=2)
    soft.model.eval()
    full = {s: a.delta_weight().detach() for s, a in soft.adapters.items()}
    held, left = [], []  # in float32, as they are ranked
    for s, a in tuned.adapters.items():
        assert torch.equal(a.values, full[s].flatten()[a.index])
        size = full[s].abs().float().flatten()
        held.append(size[a.index].sort().values[:-1])  # the largest stays anyhow
        left.append(size.index_fill(0, a.index, 0.0).max())
    assert len(torch.cat(held)) == 48 - 2 and torch.cat(held).min() >= max(left) > 0


def test_moments_stay_with_the_entries_that_stay():
    tuned = attached(fixed=None)
    train(tuned, steps=2)
    opt = torch.optim.AdamW(tuned.param_groups(0.02))
    tuned(**batches()[0]).loss.backward()
    opt.step()
    before = {s: opt.state[a.w]["exp_avg"].clone() for s, a in tuned.adapters.items()}
    hra.DiffPruning.harden(list(tuned.adapters.values()), opt)
    for s, a in tuned.adapters.items():
        moment = opt.state[a.values]["exp_avg"]
        assert torch.equal(moment, before[s].flatten()[a.index])
    assert len(opt.state) == 2


def test_a_layer_whose_gate_is_shut_keeps_one_entry():
    tuned = attached(fixed=0.0)
    shut, a = tuned.adapters.values()
    shut.log_alpha_g.data.fill_(-9.0)
    a.w.data.fill_(0.5)
    train(tuned, steps=1)
    assert len(shut.index) == 1 and len(a.index) == 47


@pytest.mark.parametrize("broken", [3, 7])  # with gates, and without
def test_a_resumed_run_ends_where_an_unbroken_one_does(broken, tmp_path):
    def go(**kw):
        tuned = attached(lam=0.01)
        return tuned, hra.fit(tuned, batches(), 10, 1e-2, progress=False, **kw)

    whole, log = go()
    go(checkpoint=tmp_path / "c", every=1, callback=stop_at(broken))
    second, again = go(checkpoint=tmp_path / "c", every=5)
    assert again.losses == log.losses and again.events == log.events
    assert [e["step"] for e in log.events] == [5, 5]
    assert whole.state_dict().keys() == second.state_dict().keys()
    for k, v in whole.state_dict().items():
        assert torch.equal(v, second.state_dict()[k])


@pytest.mark.parametrize("fixed", [0.5, None])
def test_files_and_states_hold_the_entries_or_the_gates(fixed, tmp_path):
    tuned = attached(fixed=fixed)
    train(tuned)
    tuned.model.eval()
    x, path = batches()[0], tmp_path / "d"
    y = tuned(**x).loss
    tuned.save(path)
    again = hra.load(Net().eval(), path)
    assert torch.equal(again(**x).loss, y)
    again.save(tmp_path / "e")
    assert path.read_bytes() == (tmp_path / "e").read_bytes()
    with hra.io.opened(path) as file:
        names = {n.rpartition(".")[2] for n in file.shapes}
    gates = {"w", "log_alpha", "log_alpha_g", "steps"}
    assert names == ({"values", "mask_hash", "gaps"} if fixed else gates)
    fresh = attached(fixed=fixed)
    fresh.model.eval().load_state_dict(copy.deepcopy(tuned.model.state_dict()))
    assert torch.equal(fresh(**x).loss, y)
    torch.testing.assert_close(tuned.merge()(**x).loss, y)


@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_the_bill_of_both_phases(layout):
    layer = nn.Sequential(linear.new(layout, 12, 20))
    for lam, structured in ((1.0, True), (0.0, True), (1.0, False)):
        given = {"lam": lam, "structured": structured}
        tuned = hra.attach(copy.deepcopy(layer), hra.DiffPruning, **given, density=0.1)
        (a,) = tuned.adapters.values()
        for phase in hra.DiffPruning.phases:
            if phase:
                hra.DiffPruning.harden([a])
            assert a.phase == phase
            x = torch.randn(7, 12, requires_grad=True)
            bill = memory.cost(
                hra.DiffPruning,
                20,
                12,
                7,
                bias=True,
                phase=phase,
                adapter=a,
                density=0.1,
                **given,
            )
            assert memory.measure(tuned, {"input": x}) == bill, bill.kept


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"fixed": 1.0}, "fixed=1.0 leaves no step to choose"),
        ({"gamma": 0.1}, "gamma=0.1 is out of range"),
        ({"zeta": 1.0}, "zeta=1.0 is out of range"),
        ({"lam": -1.0}, "lam=-1.0 is out of range"),
        ({"density": 0.0}, "density=0.0 is out of range"),
    ],
)
def test_what_cannot_be_is_refused_in_words(hyper, words, untyped):
    with pytest.raises(ValueError, match=words):
        attached(**hyper)


def test_with_several_processes_the_gates_go_at_the_end(monkeypatch):
    """DDP would go on without a word, each process on its own."""
    for name in ("is_initialized", "get_world_size"):
        monkeypatch.setattr(torch.distributed, name, lambda: 2)
    with pytest.raises(ValueError, match=r"with several processes pass fixed=0\.0"):
        attached().begin(4)
    tuned = attached(fixed=0.0)
    tuned.begin(4)
    assert {a.when for a in tuned.adapters.values()} == {4}
