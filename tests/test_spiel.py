"""What SpIEL claims: K entries at any time, the weakest go, the steepest come, what
stays is not touched; a bill in each phase; a run that can stop anywhere.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra
from hra import linear, memory
from hra.methods.spiel import OWN, SEEN, SKIPPED, TOTAL

KINDS = pytest.mark.parametrize("grow", ["AG", "MA"])
HYPER = {"density": 0.1, "every": 4, "gamma": 2, "share": 0.5}


def net(layout="Linear", dtype=torch.float64):
    torch.manual_seed(0)
    layers = [linear.new(layout, 12, 20), nn.Tanh(), linear.new(layout, 20, 12)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight)
    return nn.Sequential(*layers).to(dtype)


def data(step):
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 12, generator=g, dtype=torch.float64)


def run(tuned, steps, make=torch.optim.AdamW, before=None, micro=1):
    opt, events = make(tuned.param_groups(0.02)), []
    tuned.begin(steps)
    for step in range(1, steps + 1):
        for x in data(step).chunk(micro):
            (F.mse_loss(tuned.model(x), torch.sin(3 * x)) / micro).backward()
        if before:
            before(step, opt)
        opt.step()
        events += tuned.after_step(step, opt)
        opt.zero_grad()
    return events


def state(tuned):
    return {k: v.clone() for k, v in tuned.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def watched(monkeypatch):
    """{adapter: its dense gradients}, as they go by."""
    seen, observe = {}, hra.SpIEL.observe

    def note(self, G):
        seen.setdefault(self, []).append(G.clone())
        observe(self, G)

    monkeypatch.setattr(hra.SpIEL, "observe", note)
    return seen


# ---- which go, which come


@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_the_weakest_go_and_the_steepest_of_the_candidates_come(layout, monkeypatch):
    """Against sorted lists, move by move."""
    seen = watched(monkeypatch)
    tuned = hra.attach(net(layout), hra.SpIEL, **HYPER)
    opt = torch.optim.AdamW(tuned.param_groups(0.02))
    tuned.begin(22)
    moves = 0
    for step in range(1, 23):
        F.mse_loss(tuned.model(data(step)), torch.sin(3 * data(step))).backward()
        opt.step()
        old = [
            (a, a.index.tolist(), a.values.tolist()) for a in tuned.adapters.values()
        ]
        events = tuned.after_step(step, opt)
        opt.zero_grad()
        assert bool(events) == (step % 4 == 2)
        for event, (a, index, values) in zip(events, old[: len(events)], strict=True):
            K, G = len(index), [g.flatten() for g in seen.pop(a)]
            assert len(G) == event["seen"] == 2
            k = K if step == 2 else int(K * 0.5 * (1 - step / 22))
            first, total = G[0].abs().tolist(), (G[0] + G[1]).abs().tolist()
            candidates = sorted(range(len(first)), key=lambda i: -first[i])[:K]
            weak = sorted(range(K), key=lambda j: abs(values[j]))
            survivors = {index[j] for j in weak[k:]}
            free = [i for i in candidates if i not in survivors]
            best = set(sorted(free, key=lambda i: -total[i])[:k])
            assert set(a.index.tolist()) == survivors | best
            assert event["changed"] == len(set(a.index.tolist()) - set(index))
            moves += event["changed"]
    assert moves > 60 and not seen
    assert event["move"] == 6 and event["changed"] == 0  # the share has gone to zero


def test_the_covers_are_sm3s(monkeypatch):
    """r and c, and what grows, against loops over the entries."""
    tuned = hra.attach(net(), hra.SpIEL, grow="MA", **HYPER)
    a = tuned.adapters["0"]
    r, c, wanted = [0.0] * 20, [0.0] * 12, []

    def before(step, opt):
        nonlocal r, c
        if wanted and step == 3:  # one move has been
            assert set(a.index.tolist()) == wanted[0]
        new_r, new_c = list(r), list(c)
        for e, g in zip(a.index.tolist(), a.values.grad.tolist(), strict=True):
            i, j = divmod(e, 12)
            nu = min(r[i], c[j]) + g * g
            new_r[i], new_c[j] = max(new_r[i], nu), max(new_c[j], nu)
        r, c = new_r, new_c
        if step == 2:
            off = [e for e in range(240) if e not in set(a.index.tolist())]
            off.sort(key=lambda e: -r[e // 12] * c[e % 12])
            wanted.append(set(off[: len(a.index)]))

    events = run(tuned, 7, before=before)
    torch.testing.assert_close(a.rows.tolist(), r)
    torch.testing.assert_close(a.cols.tolist(), c)
    assert [e["step"] for e in events] == [2, 2, 6, 6] and wanted


# ---- what stays, and how what comes begins


@KINDS
@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_what_survives_is_not_touched_and_what_comes_begins_afresh(grow, layout):
    tuned = hra.attach(net(layout), hra.SpIEL, grow=grow, **HYPER)
    opt = torch.optim.AdamW(tuned.param_groups(0.02), betas=(0.8, 0.95))
    tuned.begin(40)
    came = 0
    for step in range(1, 12):
        F.mse_loss(tuned.model(data(step)), torch.sin(3 * data(step))).backward()
        opt.step()
        before = {
            a: (
                a.index.tolist(),
                a.values.tolist(),
                a.age.tolist(),
                {k: v.tolist() for k, v in opt.state[a.values].items()},
            )
            for a in tuned.adapters.values()
        }
        events = tuned.after_step(step, opt)
        opt.zero_grad()
        for a, (index, values, age, moments) in before.items():
            at = {e: j for j, e in enumerate(index)}
            after = opt.state[a.values]
            assert float(after["step"]) == step
            for j, e in enumerate(a.index.tolist()):
                if e in at:
                    i = at[e]
                    assert a.values[j].item() == values[i]
                    assert a.age[j].item() == age[i] + 1
                    for name in ("exp_avg", "exp_avg_sq"):
                        assert after[name][j].item() == moments[name][i]
                    continue
                came += 1
                assert a.values[j].item() == 0.0 and a.age[j].item() == 0
                m = after["exp_avg"][j].item() / (1 - 0.8**step)
                v = after["exp_avg_sq"][j].item() / (1 - 0.95**step)
                assert m * m <= v * (1 + 1e-9)  # the first step is at most one rate
                assert (m != 0) == (grow == "AG")
        assert bool(events) == (step % 4 == 2)
    assert came > 40


def test_zeros_under_an_old_step_count_would_leap():
    """Why the moments of what comes are not left at zero: Adam, a constant gradient."""
    steps = [(1 - 0.9**a) / (1 - 0.999**a) ** 0.5 for a in range(1, 200)]
    assert max(steps) == pytest.approx(6.57, abs=0.01)


def test_the_moments_of_what_comes_are_those_of_the_steps_that_were_seen(monkeypatch):
    seen = watched(monkeypatch)
    tuned = hra.attach(net(), hra.SpIEL, **HYPER)
    a, was = tuned.adapters["0"], set()

    def before(step, opt):
        nonlocal was
        if step == 2:
            was = set(a.index.tolist())

    opt = []

    def make(groups):
        opt.append(torch.optim.AdamW(groups))
        return opt[0]

    run(tuned, 2, make, before)
    G = torch.stack([g.flatten() for g in seen[a]])
    new = torch.tensor([e not in was for e in a.index.tolist()])
    got = opt[0].state[a.values]
    want = G.mean(0)[a.index], G.square().mean(0)[a.index]
    assert new.sum() > 10
    for name, w, beta in zip(
        ("exp_avg", "exp_avg_sq"), want, (0.9, 0.999), strict=True
    ):
        torch.testing.assert_close(got[name][new], (1 - beta**2) * w[new])


def rmsprop(groups):
    return torch.optim.RMSprop(groups, momentum=0.9)


@KINDS
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, momentum=0.9),
        lambda p: torch.optim.AdamW(p, weight_decay=0.5, amsgrad=True),
        rmsprop,
    ],
    ids=["SGD", "AdamW", "RMSprop"],
)
def test_k_entries_at_any_time_and_what_is_dropped_is_pretrained_again(grow, make):
    model = net()
    W = [model[i].weight.detach().clone() for i in (0, 2)]
    tuned = hra.attach(model, hra.SpIEL, grow=grow, **HYPER)
    first = [set(a.index.tolist()) for a in tuned.adapters.values()]
    events = run(tuned, 15, make)
    assert sum(e["changed"] for e in events) > 40
    for a, start, W0 in zip(tuned.adapters.values(), first, W, strict=True):
        assert len(set(a.index.tolist())) == len(start) == 24
        assert set(a.index.tolist()) != start
        changed = (a.merged().weight != W0).flatten().nonzero()[:, 0]
        assert set(changed.tolist()) <= set(a.index.tolist())
        assert torch.equal(a.W0, W0)
    tuned.detach()
    assert all(
        torch.equal(model[i].weight, W0) for i, W0 in zip((0, 2), W, strict=True)
    )


# ---- the gradient as the optimizer has it


@pytest.mark.parametrize(("micro", "clip"), [(4, 1.0), (1, 1e-3)])
def test_micro_batches_add_up_and_clipping_is_seen(micro, clip):
    sums = []
    for n, factor in ((1, 1.0), (micro, clip)):
        tuned = hra.attach(net(), hra.SpIEL, density=0.1, every=9, gamma=9)
        a, opt = tuned.adapters["0"], torch.optim.SGD(tuned.param_groups(0.1))
        tuned.begin(9)
        a.candidates.copy_(torch.arange(24) * 10)  # of any first batch
        for x in data(1).chunk(n):
            (F.mse_loss(tuned.model(x), torch.sin(3 * x)) / n).backward()
        a.values.grad.mul_(factor)
        tuned.after_step(1, opt)
        sums.append(a.sums[TOTAL].clone())
        assert not a.sums[OWN].any() and int(a.counts[SEEN]) == 1
    assert sums[0].all()
    torch.testing.assert_close(sums[1], clip * sums[0])


def test_a_gradient_that_is_not_finite_is_left_out_and_counted():
    tuned = hra.attach(net(), hra.SpIEL, **HYPER)

    def before(step, opt):
        if step == 1:
            a = tuned.adapters["0"]
            a.observe(torch.full((20, 12), float("inf")))

    events = run(tuned, 2, before=before)
    assert [(e["seen"], e["skipped"]) for e in events] == [(1, 1), (2, 0)]
    assert all(e["changed"] for e in events)
    a = hra.SpIEL(linear.new("Linear", 12, 20), grow="MA", **HYPER)
    a.values.grad = torch.full_like(a.values, float("nan"))
    opt = torch.optim.SGD([a.values], 0.0)
    assert a.after_step(1, opt) is None and a.after_step(2, opt)["changed"] == 0
    assert int(a.counts[SKIPPED]) == 2 and not a.rows.any()


# ---- the bill, files, a run that stops


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@KINDS
def test_the_bill_in_both_phases_and_after_moves(grow, dtype):
    one = nn.Sequential(linear.new("Conv1D", 12, 20)).to(dtype)
    tuned = hra.attach(one, hra.SpIEL, grow=grow, **HYPER)
    a, opt = tuned.adapters["0"], torch.optim.AdamW(tuned.param_groups(0.02))
    tuned.begin(12)
    phases = []
    for step in range(1, 9):
        for grad in (True, False):
            x = torch.randn(7, 12, dtype=dtype, requires_grad=grad)
            bill = memory.cost(
                hra.SpIEL,
                20,
                12,
                7,
                plan={torch.float64: "fp64", torch.bfloat16: "bf16"}[dtype],
                bias=True,
                input_grad=grad,
                phase=a.phase,
                adapter=a,
                grow=grow,
                **HYPER,
            )
            kept = state(tuned)
            assert memory.measure(tuned, {"input": x}) == bill
            assert same(kept, state(tuned))
        phases.append(a.phase)
        one(x).square().sum().backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
    watch = ["watch", "watch", "", ""] if grow == "AG" else [""] * 4
    assert phases == watch * 2 and int(a.counts[0]) == 2
    law = memory.law(hra.SpIEL, grow=grow)
    assert ("r" in law.wide) == (grow == "MA")


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_resumed_in_a_watch_it_ends_where_an_unbroken_run_ends(stop, tmp_path):
    ids = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0))
    grow = "MA" if stop == 7 else "AG"

    def go(until=99, **kw):
        torch.manual_seed(3)
        model = hra.zoo.gpt2("random")
        tuned = hra.attach(model, hra.SpIEL, targets="c_fc", grow=grow, **HYPER)
        log = hra.fit(
            tuned,
            hra.data.lm_batches(ids, 2, 16, seed=1),
            11,
            1e-2,
            progress=False,
            callback=lambda log: len(log.steps) < until,
            **kw,
        )
        return tuned, log

    whole, log = go()
    go(until=stop, checkpoint=tmp_path / "c", every=1)
    second, again = go(checkpoint=tmp_path / "c", every=6)
    assert len(log.events) == 3 * len(whole.adapters) and log.events[-1]["changed"] > 0
    assert again.losses == log.losses and again.events == log.events
    assert same(whole.state_dict(), second.state_dict())


def test_files_switch_fuse_and_a_state_after_several_moves(tmp_path):
    model = net("Conv1D")
    fresh = copy.deepcopy(model)
    tuned = hra.attach(model, hra.SpIEL, **HYPER)
    run(tuned, 11)
    x, path = data(0), tmp_path / "s"
    y = model(x).detach()
    tuned.save(path)
    again = hra.load(copy.deepcopy(fresh), path)
    assert torch.equal(again(x), y)
    assert run(again, 6)  # and training goes on
    torch.testing.assert_close(hra.Switch(copy.deepcopy(fresh)).to(path)(x), y)
    fused = hra.fuse(copy.deepcopy(fresh), {path: 1.0})
    torch.testing.assert_close(fused(x), y)
    for steps in (0, 1, 3):  # within a watch and without
        twin = hra.attach(copy.deepcopy(fresh), hra.SpIEL, **HYPER)
        if steps:
            run(twin, steps + 1)
        twin.model.load_state_dict(model.state_dict())
        assert torch.equal(twin(x), y) and same(state(twin), state(tuned))
        twin.set_state(state(tuned))
        assert all(
            torch.equal(v, fresh.state_dict()[k])
            for k, v in twin.detach().state_dict().items()
        )
    good = state(tuned)
    for name, value in (
        ("index", good["0.index"].flip(0)),
        ("sums", torch.zeros(3, 24)),
        ("candidates", torch.zeros(5, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=r"sorted|wrong shape"):
            tuned.set_state({**good, f"0.{name}": value})


def test_half_precision_keeps_what_is_watched_in_float32():
    tuned = hra.attach(net(dtype=torch.float32), hra.SpIEL, **HYPER)
    tuned.begin(9)
    tuned.model.to(torch.bfloat16)
    a = tuned.adapters["0"]
    assert a.sums.dtype == a.values.dtype == torch.float32 and a.phase == "watch"
    assert a.W0.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"grow": "SM3"}, "grow='SM3' does not exist; there are 'AG', 'MA'"),
        ({"every": 3}, "gamma=5 steps of watching do not fit into every=3"),
        ({"share": 0.0}, r"share=0.0 is out of range"),
        ({"count": 241}, "count=241 is out of range: 1 to 240"),
    ],
)
def test_what_cannot_be_is_refused_in_words(hyper, words, untyped):
    with pytest.raises(ValueError, match=words):
        hra.attach(net(), hra.SpIEL, **hyper)


def test_a_run_too_short_for_a_move_is_refused():
    tuned = hra.attach(net(), hra.SpIEL)
    with pytest.raises(
        ValueError, match=r"after gamma=5 steps, and there are 4: .*SHiRA"
    ):
        hra.fit(tuned, [{}], 4, progress=False)
