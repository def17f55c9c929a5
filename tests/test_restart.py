"""Restarts: rank grows, the map stays, nothing pretrained is lost, a run can resume."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra
from hra import schedules


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 24)).to(dtype)


def run(model, tuned, steps, lr=0.02, on_step=None):
    opt = torch.optim.AdamW(tuned.param_groups(lr))
    g = torch.Generator().manual_seed(1)
    events = []
    for step in range(1, steps + 1):
        x = torch.randn(8, 24, generator=g, dtype=torch.float64)
        F.mse_loss(model(x), torch.sin(3 * x)).backward()
        opt.step()
        if on_step:
            on_step(step, opt, x)
        events += tuned.after_step(step, opt)
        opt.zero_grad()
    return opt, events


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_n_restarts_of_rank_r_give_rank_n_r(rounds, seed):
    model = net()
    tuned = hra.attach(model, hra.ReLoRA, r=3, every=5, seed=seed)
    _, events = run(model, tuned, 5 * rounds)
    assert [e["restart"] for e in events if e["site"] == "0"] == [*range(1, rounds + 1)]
    for a in tuned.adapters.values():
        assert int(a.rounds) == rounds
        assert torch.linalg.matrix_rank(a.delta_weight()) == 3 * rounds


def test_a_restart_leaves_the_map_as_it_was_and_draws_another_start():
    model = net()
    tuned = hra.attach(model, hra.ReLoRA, r=3, every=4)
    starts = [tuned.adapters["0"].A.detach().clone()]
    seen = []

    def on_step(step, opt, x):
        if step % 4 == 0:
            seen.append((model(x).detach(), x))

    opt = torch.optim.AdamW(tuned.param_groups(0.02))
    x = torch.randn(8, 24, dtype=torch.float64)
    for step in range(1, 13):
        F.mse_loss(model(x), torch.sin(3 * x)).backward()
        opt.step()
        y = model(x).detach()
        tuned.after_step(step, opt)
        torch.testing.assert_close(model(x), y)
        opt.zero_grad()
        if step % 4 == 0:
            starts.append(tuned.adapters["0"].A.detach().clone())
            assert not opt.state[tuned.adapters["0"].A]
            assert not tuned.adapters["0"].B.any()
    flat = torch.stack([s.flatten() for s in starts])
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.5


def test_detach_file_and_state_dict_know_the_pretrained_model(tmp_path):
    model = net()
    before, fresh = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    tuned = hra.attach(model, hra.ReLoRA, r=2, every=3)
    run(model, tuned, 10)
    x = torch.randn(5, 24, dtype=torch.float64)
    y = model(x)
    tuned.save(tmp_path / "r.safetensors")
    again = hra.load(copy.deepcopy(fresh), tmp_path / "r.safetensors")
    assert torch.equal(again.model(x), y)
    twin = hra.attach(copy.deepcopy(fresh), hra.ReLoRA, r=2, every=3)
    twin.model.load_state_dict(model.state_dict())
    assert torch.equal(twin.model(x), y)
    torch.testing.assert_close(copy.deepcopy(twin).merge()(x), y)
    for t in (tuned, twin):
        assert all(
            torch.equal(v, before[k]) for k, v in t.detach().state_dict().items()
        )
    switch = hra.Switch(fresh)
    torch.testing.assert_close(switch.to(tmp_path / "r.safetensors")(x), y)
    assert all(torch.equal(v, before[k]) for k, v in switch.off().state_dict().items())


@pytest.mark.parametrize("reset", ["random", "magnitude"])
def test_moments_are_pruned_by_one_mask(reset):
    model = net()
    hyper = {"r": 4, "every": 6, "reset": reset, "prune": 0.9, "rewarm": 0}
    tuned = hra.attach(model, hra.ReLoRA, **hyper)
    opt, _ = run(model, tuned, 6)
    for a in tuned.adapters.values():
        for p in (a.A, a.B):
            m, v = opt.state[p]["exp_avg"], opt.state[p]["exp_avg_sq"]
            gone = round(0.9 * p.numel())
            assert int((v == 0).sum()) == gone and not m[v == 0].any()
            assert float(opt.state[p]["step"]) == 6
    for a in tuned.adapters.values():
        before = {n: p.detach().clone() for n, p in a.named_parameters()}
        x = torch.randn(8, 24, dtype=torch.float64)
        if a is tuned.adapters["0"]:
            opt.zero_grad()
            F.mse_loss(model(x), torch.sin(3 * x)).backward()
            for g in opt.param_groups:
                g["weight_decay"] = 0.0
            opt.step()
            for n in ("A", "B"):
                step = (getattr(a, n) - before[n]).abs().max()
                assert step <= 3.2 * 0.02


def test_too_short_a_run_is_refused_and_the_rate_rewarms_in_any_loop():
    model = hra.zoo.gpt2("random")
    ids = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0))
    tuned = hra.attach(model, hra.ReLoRA, targets="c_attn", r=2, every=6, rewarm=3)
    batches = list(itertools.islice(hra.data.lm_batches(ids, 2, 16), 3))
    with pytest.raises(ValueError, match="every 6 steps never comes in 5"):
        hra.fit(tuned, batches, 5, 1e-2, progress=False)
    log = hra.fit(tuned, batches, 12, 1e-2, progress=False, schedule=schedules.constant)
    rates = [round(s["lr"] / 1e-2, 4) for s in log.steps]
    assert rates == [1.0] * 6 + [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert len(log.events) == 2 * len(tuned.adapters)
    opt = torch.optim.AdamW(tuned.param_groups(1e-2))
    seen = []
    for step in range(1, 10):
        seen.append(opt.param_groups[0]["lr"])
        tuned.after_step(step, opt)
    assert [round(s / 1e-2, 4) for s in seen] == [1.0] * 6 + [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("method", "hyper"),
    [
        (hra.ReLoRA, {}),
        (hra.ReMoRA, {"regroup": "cycle4"}),
        (hra.ReMoRA, {"regroup": "permute", "operator": "rotation", "fold": True}),
    ],
    ids=["ReLoRA", "cycle4", "permute"],
)
def test_resumed_in_the_middle_ends_where_an_unbroken_run_ends(tmp_path, method, hyper):
    base = hra.zoo.gpt2("random")
    ids = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0))

    def go(stop=99, **kw):
        torch.manual_seed(3)
        tuned = hra.attach(
            copy.deepcopy(base), method, targets="c_attn", r=2, every=4, **hyper
        )
        log = hra.fit(
            tuned,
            hra.data.lm_batches(ids, 2, 16, seed=1),
            14,
            1e-2,
            progress=False,
            callback=lambda log: len(log.steps) < stop,
            **kw,
        )
        return tuned, log

    whole, log = go()
    go(stop=7, checkpoint=tmp_path / "c", every=3)
    second, again = go(checkpoint=tmp_path / "c", every=3)
    assert again.losses == log.losses and again.events == log.events
    counts = [e["restart"] for e in log.events if e["site"] == log.events[0]["site"]]
    assert counts == [1, 2, 3] and log.events[-1]["rank"] >= log.events[0]["rank"]
    a, b = whole.state_dict(), second.state_dict()
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert [s["lr"] for s in again.steps] == [s["lr"] for s in log.steps]


def test_without_the_base_it_says_so(tmp_path):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="will not give them back"):
        tuned = hra.attach(model, hra.ReLoRA, r=2, every=3, keep_base=False)
    x = torch.randn(5, 24, dtype=torch.float64)
    run(model, tuned, 7)
    y = model(x)
    with pytest.raises(ValueError, match="keep_base=False"):
        tuned.save(tmp_path / "x")
    torch.testing.assert_close(copy.deepcopy(tuned).merge()(x), y)
    assert not torch.equal(tuned.detach()[0].weight, before["0.weight"])


def test_jagged_cosine_has_the_released_values_and_no_jump():
    shape = schedules.jagged_cosine(5000, warmup=500, rewarm=100)
    golden = {4999: 0.887, 5000: 0.0, 5050: 0.441, 5100: 0.882, 10000: 0, 10100: 0.561}
    for step, value in golden.items():
        assert shape(step, 20_000) == pytest.approx(value, abs=6e-4)
    for end in (5100, 10100, 15100):
        assert abs(shape(end, 20_000) - shape(end - 1, 20_000)) < 0.011
    with pytest.raises(ValueError, match="rewarm=9 is longer than every=8"):
        schedules.jagged_cosine(8, rewarm=9)
