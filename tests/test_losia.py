"""LoSiA: where a subnet goes and when, what it leaves behind, and that the cheap one is
the dear one.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import hra
from hra import linear, localise, memory
from hra.methods.losia import block_of, importance
from tests import test_memory

BOTH = pytest.mark.parametrize("method", [hra.LoSiA, hra.LoSiAPro])


class Blocks(nn.Module):
    """Three blocks of two layers, 12 → 20 → 12."""

    def __init__(self, n=3, layout="Linear", dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        make = Conv1D if layout == "Conv1D" else lambda nf, nx: nn.Linear(nx, nf)
        self.h = nn.ModuleList(
            nn.Sequential(make(20, 12), nn.Tanh(), make(12, 20)) for _ in range(n)
        )
        for p in self.parameters():
            nn.init.normal_(p, std=0.3)
        self.to(dtype)

    def forward(self, x):
        for block in self.h:
            x = x + block(x)
        return x


def data(n=8, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=g, dtype=torch.float64)


def loss_of(model, x):
    return F.mse_loss(model(x), torch.sin(3 * x))


def run(tuned, steps, lr=0.02, decay=0.0, first=0, before=None, micro=1):
    """Events of a run that began with `first` steps already done."""
    opt = torch.optim.AdamW(tuned.param_groups(lr), weight_decay=decay)
    if not first:
        tuned.begin(steps)
    events = []
    for step in range(first + 1, steps + 1):
        for x in data(seed=step).chunk(micro):
            (loss_of(tuned.model, x) / micro).backward()
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


# ---- the schedule


@BOTH
def test_the_table_of_the_schedule(method):
    """L = 3, T = 5: who watches, moves and re-warms in each step, and at which rate."""
    tuned = hra.attach(Blocks(), method, p=0.25, period=5, warmup=0.0)
    table, moved, weights = [], {}, state(tuned)

    def before(step, opt):
        nonlocal weights
        row = []
        for group, a in zip(opt.param_groups, tuned.adapters.values(), strict=True):
            row.append((a.observing(), round(group["lr"] / 0.02, 6)))
            assert a.W_S.grad.any()  # every site trains in every step
        table.append(row[::2])
        assert row[::2] == row[1::2]  # both layers of a block
        weights = state(tuned)

    opt_steps = 17
    for e in run(tuned, opt_steps, before=before):
        moved.setdefault(e["step"], []).append(e["site"].split(".")[1])
    assert moved == {5: ["0", "0"], 10: ["1", "1"], 15: ["2", "2"]}
    for step, row in enumerate(table):
        for i, (watches, rate) in enumerate(row):
            assert watches == (step // 5 % 3 == i)
            since = step - 5 * (i + 1)
            assert rate == (round((since + 1) / 6, 6) if 0 <= since < 5 else 1.0)
    assert [r[0][1] for r in table[4:12]] == [
        *(1.0, 0.166667, 0.333333, 0.5),
        *(0.666667, 0.833333, 1.0, 1.0),
    ]


@pytest.mark.parametrize(
    ("hyper", "moves", "slow"),
    [
        ({"schedule": "sync"}, [2, 8], 4),
        ({"schedule": "fixed"}, [], 0),
        ({"rewarm": False}, [2, 8], 0),
        ({"warmup": 0.5}, [2, 8], 2),  # the move at step 2 of 10 is within the warm-up
        ({"warmup": 0.2}, [2, 8], 4),
    ],
)
def test_other_schedules(hyper, moves, slow):
    tuned = hra.attach(Blocks(), hra.LoSiA, p=0.25, period=2, **hyper)
    rates = []
    events = run(tuned, 10, before=lambda s, o: rates.append(o.param_groups[0]["lr"]))
    site = next(iter(tuned.adapters))
    assert [e["step"] for e in events if e["site"] == site] == moves
    assert sum(r < 0.02 for r in rates) == slow
    if hyper.get("schedule") == "sync":
        assert len(events) == 2 * len(tuned.adapters)


def test_a_slot_is_a_block_of_the_model():
    names = ["transformer.h.0.attn", "transformer.h.0.mlp", "transformer.h.11.attn"]
    assert [block_of(n) for n in (*names, "lm_head", "enc.0.x", "dec.0.x")] == [
        *("transformer.h.0", "transformer.h.0", "transformer.h.11"),
        *("lm_head", "enc.0", "dec.0"),
    ]
    tuned = hra.attach(hra.zoo.gpt2("random"), hra.LoSiA, targets="attn|mlp")
    for site, a in tuned.adapters.items():
        assert site.startswith(a.blocks[a.slot]) and len(a.blocks) == 2


def test_too_short_a_run_is_refused_and_names_who_is_left_out():
    tuned = hra.attach(Blocks(), hra.LoSiA, period=5, p=0.25)
    before = state(tuned)
    with pytest.raises(ValueError, match=r"^h\.1, h\.2: 2 of 3 .* after 15, .* has 9"):
        tuned.begin(9)
    assert same(state(tuned), before)
    tuned.begin(15)
    for schedule, enough in (("sync", 5), ("fixed", 1)):
        t = hra.attach(Blocks(), hra.LoSiA, period=5, p=0.25, schedule=schedule)
        t.begin(enough)
        if schedule == "sync":
            with pytest.raises(ValueError, match=r"3 of 3 blocks .* after 5,"):
                t.begin(4)


@pytest.mark.parametrize(
    ("hyper", "error", "words"),
    [
        ({"p": 0.0}, ValueError, r"p must lie in \(0, 1\]"),
        ({"p": 1.01}, ValueError, r"p must lie in \(0, 1\]"),
        ({"p": float("nan")}, ValueError, "p=nan"),
        ({"p": "all"}, TypeError, "p"),
        (
            {"p": 0.05},
            ValueError,
            r"no column of this 20 × 12 layer \(h.0.0\).*1/p = 20",
        ),
        ({"period": 0}, ValueError, "period=0"),
        ({"period": 1.5}, TypeError, "period"),
        ({"beta1": 1.0}, ValueError, "beta1=1.0"),
        ({"beta2": -0.1}, ValueError, "beta2=-0.1"),
        ({"importance": "fisher"}, ValueError, "there are 'mix', 'first'"),
        ({"schedule": "random"}, ValueError, "there are 'async', 'sync'"),
        ({"rewarm": 1}, TypeError, "rewarm"),
        ({"warmup": 1.0}, ValueError, "warmup=1.0"),
    ],
)
def test_bad_input(hyper, error, words):
    with pytest.raises(error, match=words):
        hra.attach(Blocks(), hra.LoSiA, **hyper)


class Headed(nn.Module):
    """Two blocks, and an output layer of 30 without a number."""

    def __init__(self, layout="Linear"):
        super().__init__()
        self.blocks, self.head = Blocks(2, layout), linear.new(layout, 12, 30).double()
        nn.init.normal_(self.head.weight, std=0.3)

    def forward(self, x):
        return self.head(self.blocks(x))


@BOTH
@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_the_output_layer_takes_a_share_of_its_own(method, layout, tmp_path):
    """⌊p_out d_out⌋ rows, every column; a file and the bill know it too."""
    model = Headed(layout)
    fresh = copy.deepcopy(model)
    hyper = {"p": 0.25, "period": 2, "p_out": 0.3}
    tuned = hra.attach(model, method, **hyper)
    shapes = {s: tuple(a.W_S.shape) for s, a in tuned.adapters.items()}
    assert shapes.pop("head") == (9, 12)  # 0.3 of 30
    assert set(shapes.values()) == {(5, 3), (3, 5)}
    opt = torch.optim.AdamW(tuned.param_groups(0.05))
    tuned.begin(12)
    first = tuned.adapters["head"].rows.clone()
    for step in range(1, 13):
        x = data(seed=step)
        F.mse_loss(model(x), torch.sin(x @ torch.ones(12, 30).double())).backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
    head = tuned.adapters["head"]
    assert int(head.counts[1]) == 2 and not torch.equal(head.rows, first)
    assert head.cols.tolist() == list(range(12)) and len(head.index)
    x, path = data(), tmp_path / "s"
    tuned.save(path)
    assert torch.equal(hra.load(copy.deepcopy(fresh), path)(x), tuned(x))
    layer = nn.Sequential(linear.new(layout, 12, 30).double())
    for phase in ("", "slot"):
        a = method(layer[0], **hyper)
        a.watch(phase == "slot")
        bill = memory.cost(
            method, 30, 12, 8, plan="fp64", bias=True, adapter=a, phase=phase, **hyper
        )
        x = data().requires_grad_()
        assert memory.measure(nn.Sequential(a), {"input": x}) == bill
    assert bill.trained.numbers == 9 * 12


@pytest.mark.parametrize(
    ("p_out", "words"),
    [(0.01, r"p_out=0.01 leaves no row of the 30 outputs \(head\)"), (2.0, "p_out=2")],
)
def test_a_bad_share_of_the_output_layer(p_out, words):
    with pytest.raises(ValueError, match=words):
        hra.attach(Headed(), hra.LoSiA, p=0.25, p_out=p_out)
    with pytest.raises(ValueError, match=r"for the output layer, and all.*h\.0\.0"):
        hra.attach(Blocks(), hra.LoSiA, p=0.25, p_out=0.5)


# ---- what trains


@BOTH
@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_outside_the_subnet_nothing_moves(method, layout):
    """Not a bit, weight decay or not."""
    tuned = hra.attach(Blocks(layout=layout), method, p=0.25, period=50)
    tuned.begin(150)
    opt = torch.optim.AdamW(tuned.param_groups(0.1), weight_decay=0.5)
    start = {
        s: linear.weight(a.base).detach().clone() for s, a in tuned.adapters.items()
    }
    for step in range(1, 5):
        loss_of(tuned.model, data()).backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
    for s, a in tuned.adapters.items():
        W = dict(a.merged().named_parameters())["weight"]
        W = W.T if layout == "Conv1D" else W
        moved = start[s] != W
        inside = torch.zeros_like(moved)
        inside[a.rows[:, None], a.cols] = True
        assert torch.equal(moved, inside)
        assert a.W_S.shape == (a.d_out // 4, a.d_in // 4)
    layers = 3 * ((20 // 4) * (12 // 4) * 2)
    assert tuned.num_trainable == layers


@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", [(7,), (2, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_is_a_block_of_the_dense_one(layout, shape, bias):
    for dtype, within in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        torch.manual_seed(0)
        layer = linear.new(layout, 24, 40, bias).to(dtype)
        a = hra.LoSiAPro(layer, p=0.25)
        with torch.no_grad():
            a.W_S.normal_()
        x = torch.randn(*shape, 24, dtype=dtype)
        xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        W = (a.W0 + a.delta_weight()).detach().requires_grad_()
        y, want = a(xs[0]), F.linear(xs[1], W, a.bias)
        torch.testing.assert_close(y, want)
        y.sin().sum().backward()
        want.sin().sum().backward()
        off = a.W_S.grad - W.grad[a.rows[:, None], a.cols]
        assert off.abs().max() < within * W.grad.abs().max().clamp(min=1)
        torch.testing.assert_close(xs[0].grad, xs[1].grad)


@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_pro_goes_where_losia_goes(layout):
    """Over four moves of each layer, in float64."""
    found = []
    for method in (hra.LoSiA, hra.LoSiAPro):
        tuned = hra.attach(Blocks(layout=layout), method, p=0.25, period=3)
        events = run(tuned, 36, decay=0.01)
        assert max(e["relocate"] for e in events) == 4
        found.append((events, state(tuned)))
    (events, one), (again, two) = found
    assert events == again and one.keys() == two.keys()
    for k in one:
        torch.testing.assert_close(one[k], two[k], rtol=1e-10, atol=1e-12)


def test_the_first_update_after_a_move_is_at_most_its_rate():
    tuned = hra.attach(Blocks(), hra.LoSiAPro, p=0.25, period=4, warmup=0.0)
    held, moved = {}, {}

    def before(step, opt):
        for g, (s, a) in zip(opt.param_groups, tuned.adapters.items(), strict=True):
            if s in moved and moved[s] == step - 1:
                assert not opt.state[a.W_S]  # moments and step count are gone
                held[s] = (a.W_S.detach().clone(), g["lr"])

    opt = torch.optim.AdamW(tuned.param_groups(0.1), weight_decay=0.0)
    ids = {s: id(a.W_S) for s, a in tuned.adapters.items()}
    tuned.begin(30)
    for step in range(1, 31):
        loss_of(tuned.model, data(seed=step)).backward()
        before(step, opt)
        opt.step()
        for s, (W_S, rate) in held.items():
            update = (tuned.adapters[s].W_S - W_S).abs().max()
            assert 0.5 * rate < update <= rate * (1 + 1e-9) and rate < 0.03
        for e in tuned.after_step(step, opt):
            moved[e["site"]] = step
        held.clear()
        opt.zero_grad()
    assert len(moved) == 6
    assert ids == {s: id(a.W_S) for s, a in tuned.adapters.items()}


# ---- watching


@BOTH
def test_four_micro_batches_are_one_big_batch(method):
    found = []
    for micro in (1, 4):
        tuned = hra.attach(Blocks(), method, p=0.25, period=2)
        events = run(tuned, 12, micro=micro)
        found.append((events, state(tuned)))
    (events, one), (again, four) = found
    assert events == again
    for k in one:
        torch.testing.assert_close(one[k], four[k], rtol=1e-8, atol=1e-10)


def test_the_importance_is_that_of_the_optimizers_gradient():
    """Scaled losses and clipped gradients: the same as the plain ones, clipped."""
    kinds = {}
    for scale, clip in ((1.0, None), (2.0**12, None), (1.0, 1e-3)):
        tuned = hra.attach(Blocks(1), hra.LoSiA, p=0.25, period=4)
        a = tuned.adapters["h.0.0"]
        tuned.begin(4)
        opt = torch.optim.SGD(tuned.param_groups(0.0))
        W = a.W0.clone().requires_grad_()
        (loss_of(tuned.model, data()) * scale).backward()
        params = [a.W_S for a in tuned.adapters.values()]
        for q in params:
            q.grad /= scale
        norm = torch.nn.utils.clip_grad_norm_(params, clip) if clip else None
        tuned.after_step(1, opt)
        (G,) = torch.autograd.grad(
            F.mse_loss(
                data()
                + tuned.adapters["h.0.2"](torch.tanh(F.linear(data(), W, a.bias))),
                torch.sin(3 * data()),
            ),
            W,
        )
        G = G * (clip / (norm + 1e-6)) if clip else G
        want = 0.15 * importance("mix", G, W.detach())
        torch.testing.assert_close(a.mean, want, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(a.spread, 0.15 * (want / 0.15 - want).abs())
        kinds[scale, clip] = a.mean.sum()
    assert kinds[1.0, 1e-3] < 0.5 * kinds[1.0, None]


def test_smoothing_by_hand():
    """Two steps of G = g and W = w: 0.15 I, then 0.85 · 0.15 I + 0.15 I′."""
    a = hra.LoSiA(nn.Linear(2, 2, dtype=torch.float64), p=0.5, period=3)
    a.base.weight.data.fill_(2.0)
    opt = torch.optim.SGD(a.parameters(), lr=0.0)
    a.begin(3)
    for step, (g, mean, spread) in enumerate(
        # s = 1: I = ½; s = 4: I = |4 − 8| = 4
        [(0.5, 0.075, 0.15 * 0.425), (2.0, 0.66375, 0.85 * 0.06375 + 0.15 * 3.33625)],
        1,
    ):
        a.observe(torch.full((2, 2), g, dtype=torch.float64))
        a.after_step(step, opt)
        assert a.mean[0, 0].item() == pytest.approx(mean)
        assert a.spread[0, 0].item() == pytest.approx(spread)
    s = torch.tensor([[3.0]])
    got = [
        importance(k, s, torch.ones(1, 1)).item() for k in hra.methods.losia.IMPORTANCE
    ]
    assert got == [1.5, 3.0, 4.5, 3.0]


@BOTH
def test_a_gradient_that_is_not_finite_is_left_out_and_counted(method):
    def go(bad):
        tuned = hra.attach(Blocks(1), method, p=0.25, period=4)
        tuned.begin(4)
        opt, events = torch.optim.AdamW(tuned.param_groups(0.02)), []
        for step in range(1, 5):
            if step in bad:  # a loop that leaves such a step out
                (loss_of(tuned.model, data()) * float("nan")).backward()
            else:
                loss_of(tuned.model, data(seed=step)).backward()
                opt.step()
            events += tuned.after_step(step, opt)
            opt.zero_grad()
        return tuned, events

    tuned, events = go({2})
    assert {(e["seen"], e["skipped"], e["relocate"]) for e in events} == {(3, 1, 1)}
    assert all(torch.isfinite(v).all() for v in tuned.state_dict().values())
    start = state(hra.attach(Blocks(1), method, p=0.25, period=4))
    tuned, events = go({1, 2, 3, 4})  # nothing to go by: the subnet stays
    assert {(e["seen"], e["skipped"], e["relocate"]) for e in events} == {(0, 4, 0)}
    assert all(
        torch.equal(start[k], v)
        for k, v in tuned.state_dict().items()
        if k.endswith(("rows", "cols"))
    )


@BOTH
@pytest.mark.parametrize("how", [False, True, "autocast"])
def test_watching_under_checkpointing_and_autocast(method, how):
    """False, True: use_reentrant. The dense gradient is seen once, and as it is."""
    seen = []
    for plain in (True, False):
        tuned = hra.attach(Blocks(1, dtype=torch.float32), method, p=0.25, period=4)
        tuned.begin(4)
        x = data().float().requires_grad_()
        if plain:
            loss_of(tuned.model, x).backward()
        elif how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(tuned.model, x)
            loss.backward()
        else:
            y = checkpoint(tuned.model, x, use_reentrant=how)
            F.mse_loss(y, torch.sin(3 * x)).backward()
        seen.append([a.seen for a in tuned.adapters.values()])
    within = {"rtol": 0.1, "atol": 0.02} if how == "autocast" else {}
    for one, two in zip(*seen, strict=True):
        assert one.any() and one.dtype == two.dtype == torch.float32
        torch.testing.assert_close(one, two, **within)


# ---- where it goes


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(3, 8), st.booleans())
def test_greedy_refined_exact(seed, d_out, d_in, ties):
    g = torch.Generator().manual_seed(seed)
    score = torch.rand(d_out, d_in, generator=g, dtype=torch.float64) ** 3
    score = (4 * score).round() if ties else score
    m, n = 1 + seed % (d_out - 1), 1 + seed // 7 % (d_in - 1)
    each = [localise.greedy(score, m, n, o) for o in localise.ORDERS]
    best = localise.best(score, m, n)
    values = [localise.captured(score, *s) for s in each]
    top = localise.captured(score, *best)
    exact = localise.captured(score, *localise.exact(score, m, n))
    assert localise.ceiling(score, m, n) >= exact * (1 - 1e-9)
    refined = localise.captured(score, *localise.refine(score, *each[0]))
    assert max(values) <= top <= exact + 1e-12 and values[0] <= refined
    pairs = itertools.product(
        itertools.combinations(range(d_out), m), itertools.combinations(range(d_in), n)
    )
    brute = max(score[list(r)][:, list(c)].sum().item() for r, c in pairs)
    assert exact == pytest.approx(brute)
    for rows, cols in (*each, best):
        for lines, count, d in ((rows, m, d_out), (cols, n, d_in)):
            assert len(lines) == count and (lines.diff() > 0).all() and lines[-1] < d
    again = localise.best(score.clone(), m, n)
    assert all(torch.equal(a, b) for a, b in zip(best, again, strict=True))


def test_localising_by_hand():
    score = torch.tensor([[9.0, 0, 0], [5, 5, 0], [0, 4, 4]])
    pick = {o: localise.greedy(score, 1, 1, o) for o in localise.ORDERS}
    assert {o: (int(r), int(c)) for o, (r, c) in pick.items()} == {
        "independent": (1, 0),  # row 1 has 10, column 0 has 14
        "rows": (1, 0),
        "columns": (0, 0),
    }
    assert [int(t) for t in localise.best(score, 1, 1)] == [0, 0]
    assert [int(t) for t in localise.refine(score, *pick["rows"])] == [0, 0]
    equal = torch.ones(4, 5)
    assert [t.tolist() for t in localise.best(equal, 2, 3)] == [[0, 1], [0, 1, 2]]
    with pytest.raises(ValueError, match="not finite"):
        localise.best(torch.full((2, 2), float("nan")), 1, 1)
    with pytest.raises(ValueError, match="exact tries up to"):
        localise.exact(torch.ones(60, 60), 20, 20)


def test_it_goes_where_the_scores_are():
    """A gradient that lives on two rows and three columns draws the subnet there."""
    a = hra.LoSiA(nn.Linear(12, 8, dtype=torch.float64), p=0.25, period=2)
    opt = torch.optim.SGD(a.parameters(), lr=0.0)
    a.begin(2)
    G = torch.full((8, 12), 1e-6, dtype=torch.float64)
    G[torch.tensor([2, 5])[:, None], torch.tensor([1, 7, 8])] = 1.0
    for step in (1, 2):
        a.observe(G)
        event = a.after_step(step, opt)
    assert (a.rows.tolist(), a.cols.tolist()) == ([2, 5], [1, 7, 8])
    assert event["relocate"] == 1 and 0 <= event["kept"] <= 1


# ---- what it leaves behind


@BOTH
@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_a_move_leaves_the_map_and_the_union_grows_as_proved(method, layout):
    tuned = hra.attach(Blocks(layout=layout), method, p=0.25, period=2)
    opt = torch.optim.AdamW(tuned.param_groups(0.05))
    tuned.begin(40)
    rounds = dict.fromkeys(tuned.adapters, 1)
    for step in range(1, 41):
        loss_of(tuned.model, data(seed=step)).backward()
        opt.step()
        y = tuned.model(data()).detach()
        deltas = {s: a.delta_weight().detach() for s, a in tuned.adapters.items()}
        for e in tuned.after_step(step, opt):
            rounds[e["site"]] += 1
        for s, a in tuned.adapters.items():
            assert torch.equal(a.delta_weight(), deltas[s])
        torch.testing.assert_close(tuned.model(data()), y, rtol=1e-12, atol=1e-12)
        opt.zero_grad()
    for s, a in tuned.adapters.items():
        R, (m, n) = rounds[s], a.W_S.shape
        assert R == (7 if a.slot == 2 else 8)
        support = a.support()
        assert m * n < len(support) <= R * m * n
        assert len(support) / (a.d_out * a.d_in) <= R * 0.25**2
        delta = a.delta_weight()
        assert torch.linalg.matrix_rank(delta) <= R * min(m, n)
        outside = delta.flatten().clone()
        outside[support] = 0
        assert not outside.any()
        assert not torch.isin(a.index, (a.rows[:, None] * a.d_in + a.cols)).any()


@BOTH
@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_files_switch_fuse_merge_detach_after_several_moves(method, layout, tmp_path):
    model = Blocks(layout=layout)
    before, fresh = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    tuned = hra.attach(model, method, p=0.25, period=2)
    run(tuned, 27)
    x, path = data(), tmp_path / "s"
    y, delta = model(x).detach(), tuned.adapters["h.0.0"].delta_weight()
    tuned.save(path)
    again = hra.load(copy.deepcopy(fresh), path)
    assert torch.equal(again.model(x), y)
    for s, a in tuned.adapters.items():
        for name in ("W_S", "rows", "cols", "index", "past"):
            assert torch.equal(getattr(a, name), getattr(again.adapters[s], name))
    again.save(tmp_path / "t")
    assert path.read_bytes() == (tmp_path / "t").read_bytes()
    assert len(run(again, 6)) == 6  # and training goes on
    assert all(
        torch.equal(v, before[k]) for k, v in again.detach().state_dict().items()
    )
    torch.testing.assert_close(copy.deepcopy(tuned).merge()(x), y)
    switch = hra.Switch(fresh)
    torch.testing.assert_close(switch.to(path)(x), y)
    assert all(torch.equal(v, before[k]) for k, v in switch.off().state_dict().items())
    fused = hra.fuse(fresh, {path: 0.5})
    assert type(fused.adapters["h.0.0"]) is hra.Entries
    torch.testing.assert_close(fused.adapters["h.0.0"].delta_weight(), 0.5 * delta)
    fused.detach()
    shown = {k: v for k, v in model.state_dict().items() if k.endswith("base.weight")}
    assert len(shown) == 6 and all(
        torch.equal(v, before[k.replace("base.", "")]) for k, v in shown.items()
    )
    twin = hra.attach(copy.deepcopy(fresh), method, p=0.25, period=2)
    run(twin, 7)
    twin.model.load_state_dict(model.state_dict())
    assert torch.equal(twin.model(x), y)
    for t in (tuned, twin):
        assert all(
            torch.equal(v, before[k]) for k, v in t.detach().state_dict().items()
        )


@pytest.mark.parametrize("what", ["rows", "gaps"])
def test_a_file_whose_subnet_is_none_is_refused(what, tmp_path):
    tuned = hra.attach(Blocks(1), hra.LoSiA, p=0.25, period=2)
    packed = type(tuned.adapters["h.0.0"]).packed

    def wrong(self, hyper):
        tensors, hyper = packed(self, hyper)
        if what == "rows":
            tensors["rows"] = (tensors["rows"] + 1) % self.d_out
        else:
            tensors["gaps"] = tensors["gaps"].flip(0)
        return tensors, hyper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hra.LoSiA, "packed", wrong)
        tuned.save(tmp_path / "s")
    with pytest.raises(hra.io.AdapterFileError):
        hra.load(Blocks(1), tmp_path / "s")


def test_a_state_that_no_training_leads_to_is_refused():
    tuned = hra.attach(Blocks(1), hra.LoSiAPro, p=0.25, period=2)
    run(tuned, 5)
    good = state(tuned)
    key = "h.0.0."
    for name, value in (
        ("rows", good[f"{key}rows"].flip(0)),
        ("rows", good[f"{key}rows"] + 20),
        ("index", good[f"{key}index"].flip(0)),
        ("past", good[f"{key}past"][1:]),
        ("mean", torch.zeros(3, 3)),
    ):
        with pytest.raises(ValueError, match=r"sorted|subnet|entries|shape"):
            tuned.set_state({**good, f"{key}{name}": value})
    tuned.set_state(good)
    assert same(state(tuned), good)


@BOTH
@pytest.mark.parametrize("stop", [7, 8, 9])
def test_resumed_in_a_slot_it_ends_where_an_unbroken_run_ends(method, stop, tmp_path):
    ids = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0))

    def go(until=99, **kw):
        torch.manual_seed(3)
        tuned = hra.attach(
            hra.zoo.gpt2("random"), method, targets="c_attn|c_fc", p=0.25, period=4
        )
        log = hra.fit(
            tuned,
            hra.data.lm_batches(ids, 2, 16, seed=1),
            18,
            1e-2,
            progress=False,
            callback=lambda log: len(log.steps) < until,
            **kw,
        )
        return tuned, log

    whole, log = go()
    go(until=stop, checkpoint=tmp_path / "c", every=1)
    second, again = go(checkpoint=tmp_path / "c", every=6)
    assert len(log.events) == 8
    assert again.losses == log.losses and again.events == log.events
    assert same(whole.state_dict(), second.state_dict())
    assert [s["lr"] for s in again.steps] == [s["lr"] for s in log.steps]


# ---- the bill


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["Linear", "Conv1D"])
def test_the_bill_in_both_phases_and_after_moves(layout, dtype):
    """p d_in numbers a token, and in a slot x too."""
    d_out, d_in, tokens = 24, 16, 15
    plan = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    for method in (hra.LoSiA, hra.LoSiAPro):
        net = nn.Sequential(linear.new(layout, d_in, d_out)).to(dtype)
        hyper = {"p": 0.25, "period": 2}
        tuned = hra.attach(net, method, **hyper)
        a = tuned.adapters["0"]
        opt = torch.optim.AdamW(tuned.param_groups(1e-3))
        for step, grad in itertools.product(range(6), (True, False)):
            x = torch.randn(tokens, d_in, dtype=dtype, requires_grad=grad)
            if step == 1 and grad:
                a.begin(99)  # the slot opens
            if step > 1 and grad:
                net(x).square().sum().backward()
                opt.step()
                a.after_step(step - 1, opt)
                opt.zero_grad()
            bill = memory.cost(
                method,
                d_out,
                d_in,
                tokens,
                plan=plan,
                bias=True,
                input_grad=grad,
                phase=a.phase,
                adapter=a,
                **hyper,
            )
            kept = state(tuned)
            assert memory.measure(tuned, {"input": x}) == bill
            assert same(state(tuned), kept) and not a.seen.any()
            assert a.phase == ("slot" if step else "")
            if method is hra.LoSiAPro:
                per_token = d_in // 4 + (d_in if a.phase else 0)
                assert bill.activations.numbers == tokens * per_token
        assert int(a.counts[1]) == 2 and len(a.index)


def test_half_precision_keeps_what_is_learnt_in_float32():
    tuned = hra.attach(Blocks(dtype=torch.bfloat16), hra.LoSiAPro, p=0.25, period=2)
    x, opt = data().bfloat16(), torch.optim.AdamW(tuned.param_groups(1e-4))
    tuned.begin(12)
    for step in range(1, 13):
        F.mse_loss(tuned.model(x), torch.sin(3 * x)).backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
    tuned.model.to(torch.bfloat16)
    for a in tuned.adapters.values():
        assert a.past.dtype == a.W_S.dtype == torch.float32
        assert a.past.any() and not torch.equal(a.past, a.past.bfloat16().float())


def test_the_weight_put_back_before_the_backward_pass_is_noticed():
    tuned = hra.attach(Blocks(1), hra.LoSiAPro, p=0.25)
    x = data().requires_grad_()
    loss = loss_of(tuned.model, x)
    tuned.detach()
    with pytest.raises(RuntimeError, match="was put back"):
        loss.backward()


# ---- one X_S for layers that read one input


class Heads(nn.Module):
    """Two blocks; queries, keys and values are three layers that read one x."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"q_proj": 12, "k_proj": 20, "v_proj": 12, "o_proj": 12}
        self.h = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(12, d) for n, d in sizes.items()})
            for _ in range(2)
        )
        self.double()

    def forward(self, x):
        for b in self.h:
            k = b["k_proj"](x).tanh()[..., 4:16]
            x = x + b["o_proj"](b["q_proj"](x).tanh() * k + b["v_proj"](x))
        return x


def heads(method=hra.LoSiAPro, period=3, shared=True):
    tuned = hra.attach(Heads(), method, p=0.25, period=period, shared=shared)
    return tuned, [[tuned.adapters[f"h.{i}.{n}_proj"] for n in "qkvo"] for i in (0, 1)]


def one_place(q, k, v, o):
    assert torch.equal(q.cols, k.cols) and torch.equal(q.cols, v.cols)
    assert not torch.equal(q.rows, v.rows) and not torch.equal(q.cols, o.cols)


def test_siblings_move_to_one_place_and_pro_gathers_once(monkeypatch):
    """Over three moves of each layer; bit for bit what three slices give."""
    losia, found, made = hra.methods.losia, [], []
    gather = losia.columns
    monkeypatch.setattr(losia, "columns", lambda *a: made.append(a) or gather(*a))
    for method, anew in (
        (hra.LoSiA, False),
        (hra.LoSiAPro, False),
        (hra.LoSiAPro, True),
    ):
        if anew:
            monkeypatch.setattr(losia.Siblings, "columns", lambda self, *a: gather(*a))
        tuned, blocks = heads(method)
        places = [blocks[0][0].cols.clone()]

        def check(*_, blocks=blocks):
            for b in blocks:
                one_place(*b)

        events = run(tuned, 18, 0.05, 0.01, before=check)
        places.append(blocks[0][0].cols)
        assert len(events) == 3 * 8 and not torch.equal(*places)
        assert all(e["seen"] == 3 and e["skipped"] == 0 for e in events)
        assert not any(b[0].siblings.places or b[0].siblings.slice for b in blocks)
        found.append((events, state(tuned)))
    assert len(made) == 18 * 2  # once in a step and block
    (events, one), (again, two), (thrice, three) = found
    assert events == again == thrice and same(two, three)
    for k in one:
        torch.testing.assert_close(one[k], two[k], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k_is", [1.0, float("nan")])
def test_columns_of_all_and_rows_of_each(k_is):
    """And where one has nothing to go by, none moves."""
    hyper = {"p": 0.25, "period": 2, "importance": "gradient", "shared": True}
    tuned = hra.attach(Heads(), hra.LoSiA, **hyper)
    q, k, v = (tuned.adapters[f"h.0.{n}_proj"] for n in "qkv")
    start, tries = q.cols.tolist(), torch.optim.SGD(tuned.param_groups(0.0))
    tuned.begin(4)
    for step in (1, 2):
        for a, at in ((q, (slice(3, 6), slice(None))), (v, (slice(None), [2, 5, 9]))):
            G = torch.full((a.d_out, 12), 1e-3, dtype=torch.float64)
            G[at] = 1.0 if a is q else 100.0
            a.observe(G)
        k.observe(torch.full((20, 12), k_is, dtype=torch.float64))
        events = tuned.after_step(step, tries)
    moved = k_is == 1.0
    assert [e["relocate"] for e in events] == [moved, moved, moved, True]
    assert [e["seen"] for e in events] == [2, 2 * moved, 2, 2]
    for a in (q, k, v):
        assert a.cols.tolist() == ([2, 5, 9] if moved else start)
    assert not moved or q.rows.tolist() == [3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_the_bill_of_siblings_has_one_slice(kind, dtype):
    make, batch, _ = test_memory.MODELS[kind]
    kept = []
    for shared in (False, True):
        hyper = {"p": 0.25, "shared": shared}
        tuned = hra.attach(make().to(dtype), hra.LoSiAPro, "_proj", **hyper)
        for phase in ("", "slot"):
            for a in tuned.adapters.values():
                a.watch(phase == "slot")
            bill = memory.measure(tuned, batch(dtype))
            assert memory.predict(tuned, batch(dtype)) == bill
            kept.append(bill.activations.numbers)
    tokens = {"vit": 2 * 17, "llama": batch(dtype)["labels"].numel()}[kind]
    fewer = {"vit": 2, "llama": 3}[kind]  # k and v; of LLaMA up too
    layers = tuned.model.config.num_hidden_layers
    each = int(0.25 * tuned.model.config.hidden_size)
    assert kept[0] - kept[2] == kept[1] - kept[3] == layers * tokens * fewer * each
    costs = [
        memory.preset_cost("GPT-3 175B", hra.LoSiAPro, list("qkvo"), 64, shared=s)
        for s in (False, True)
    ]
    saved = costs[0].activations.numbers - costs[1].activations.numbers
    assert saved == 96 * 64 * 2 * 12288 // 8


def test_a_slice_is_of_this_x_as_it_is_and_goes_with_it():
    tuned, ((q, k, v, _), _) = heads()
    x = data()

    def right(a, x):
        a.W_S.grad = None
        y = a(x)
        y.sum().backward()
        want = x.detach()[:, a.cols].sum(0).expand_as(a.W_S)
        torch.testing.assert_close(a.W_S.grad, want)

    right(q, x)
    held = q.siblings.slice[3]
    right(k, x)
    assert q.siblings.slice[3] is held
    right(v, x)
    assert q.siblings.slice is None  # all have asked
    q(x)
    right(k, data(seed=2))  # another x
    q(x)
    with torch.no_grad():
        x.mul_(2)  # another state of it
    right(k, x)
    q(x)
    with torch.no_grad():
        for a in (q, k):  # other columns
            a.cols.copy_((a.cols + 1).remainder(12).sort().values)
    right(k, x)
    tuned.model.float()
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16):  # in other numbers
        q(x)
    right(k, x)
    assert k.siblings.slice
    del x
    assert k.siblings.slice is None
    with torch.inference_mode():
        x = data().float()
    right(k, x)


@pytest.mark.parametrize("how", [False, True, "functional"])
def test_siblings_under_checkpointing_and_functional_calls(how, monkeypatch):
    gather, made, grads = hra.methods.losia.columns, [], []
    monkeypatch.setattr(
        hra.methods.losia, "columns", lambda *a: made.append(a) or gather(*a)
    )
    for plain in (True, False):
        tuned, blocks = heads()
        x = data().requires_grad_()
        if plain:
            y = tuned.model(x)
        elif how == "functional":
            named = tuned.model.named_parameters()
            own = {n: p.clone() for n, p in named if n.endswith("W_S")}
            y = torch.func.functional_call(tuned.model, own, (x,))
        else:
            y = checkpoint(tuned.model, x, use_reentrant=how)
        params = [a.W_S for a in tuned.adapters.values()]
        y.sin().sum().backward()
        grads.append([x.grad, *(p.grad for p in params)])
        assert not any(b[0].siblings.slice for b in blocks)
    assert len(made) == 2 + (2 if how in (True, "functional") else 4)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@BOTH
def test_siblings_in_files_copies_and_a_broken_off_run(method, tmp_path):
    tuned, _ = heads(method)
    before = {k: v.clone() for k, v in Heads().state_dict().items()}
    assert {a.slot for a in tuned.adapters.values()} == {0, 1}
    run(tuned, 8)  # in the middle of the first block's second slot
    twin = copy.deepcopy(tuned)
    other = hra.attach(Heads(), method, p=0.25, period=3, shared=True)
    other.set_state(state(tuned))
    for t in (tuned, twin, other):
        a = t.adapters
        assert a["h.0.q_proj"].siblings.members == {
            f"h.0.{n}_proj": a[f"h.0.{n}_proj"] for n in "qkv"
        }
    ends = []
    for t in (tuned, twin, other):
        sgd, events = torch.optim.SGD(t.param_groups(0.1)), []
        for step in range(9, 15):
            loss_of(t.model, data(seed=step)).backward()
            sgd.step()
            events += t.after_step(step, sgd)
            sgd.zero_grad()
        ends.append((events, state(t)))
    assert len(ends[0][0]) == 8
    assert all(e == ends[0][0] and same(s, ends[0][1]) for e, s in ends[1:])
    x, path = data(), tmp_path / "s"
    tuned.save(path)
    again = hra.load(Heads(), path)
    one_place(*(again.adapters[f"h.1.{n}_proj"] for n in "qkvo"))
    assert torch.equal(again(x), tuned(x)) and len(run(again, 6)) == 8
    assert all(
        torch.equal(v, before[k]) for k, v in again.detach().state_dict().items()
    )
    torch.testing.assert_close(copy.deepcopy(tuned).merge()(x), tuned(x))
    k = twin.adapters["h.0.k_proj"]
    k.place(k.rows.clone(), (k.cols + 1).remainder(12).sort().values)
    twin.save(path)
    with pytest.raises(hra.io.AdapterFileError, match=r"q_proj, .* not have one X_S"):
        hra.load(Heads(), path)


def test_where_there_are_no_siblings_it_says_so():
    with pytest.raises(ValueError, match=r"no two of these .* h\.0\.0, .* has one X_S"):
        hra.attach(Blocks(), hra.LoSiA, p=0.25, shared=True)
    with pytest.raises(TypeError, match="shared"):
        hra.attach(Heads(), hra.LoSiA, p=0.25, shared="qkv")
    names = {
        "a.query": 8, "a.key": 8, "a.value": 9, "b.query": 8, "b.c.key": 8,
        "b.k_proj": 8, "b.w1": 8, "b.w3": 8, "b.w2": 8, "b.gate_proj": 8,
        "q": 8, "k": 8, "o": 8,
    }  # fmt: skip
    layers = {n: nn.Linear(d, 4) for n, d in names.items()}
    assert linear.siblings(layers) == [
        *(["a.query", "a.key"], ["b.query", "b.k_proj"]),
        *(["b.w1", "b.w3", "b.gate_proj"], ["q", "k"]),
    ]
    made = hra.LoSiA.plan(layers, **hra.LoSiA.hyperparameters({"shared": True}))
    assert made["q"]["slot"] == made["k"]["slot"] != made["o"]["slot"]
    assert hra.LoSiAPro(nn.Linear(8, 8), 0.5, shared=True).siblings is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_columns_for_several(seed, ties):
    g = torch.Generator().manual_seed(seed)
    scores = [torch.rand(d, 6, generator=g, dtype=torch.float64) ** 3 for d in (4, 7)]
    scores = [(4 * S).round() if ties else S for S in scores]
    m, n = [2, 1 + seed % 6], 1 + seed % 4
    rows, cols = localise.together(scores, m, n)
    assert [len(r) for r in rows] == m and len(cols) == n

    def value(cols):
        each = zip(scores, m, strict=True)
        return sum(S[:, cols].sum(1).topk(k).values.sum().item() for S, k in each)

    got = sum(localise.captured(S, r, cols) for S, r in zip(scores, rows, strict=True))
    assert got == pytest.approx(value(cols))
    most = max(value(list(c)) for c in itertools.combinations(range(6), n))
    by_sum = localise.greedy(torch.cat(scores), 1, n, "independent")[1]
    assert most + 1e-12 >= got >= value(by_sum) - 1e-12
    best = localise.together(scores[:1], m[:1], n)
    assert localise.captured(scores[0], best[0][0], best[1]) == pytest.approx(
        localise.captured(scores[0], *localise.best(scores[0], m[0], n))
    )
    again = localise.together([S.clone() for S in scores], m, n)
    assert torch.equal(again[1], cols)


# ---- the error bound


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.integers(1, 9))
def test_the_bound_holds_and_is_no_equality(seed, m, n, M):
    g = torch.Generator().manual_seed(seed)
    grad, x, W = (
        torch.randn(*s, generator=g, dtype=torch.float64)
        for s in ((m, n), (M, n), (m, n))
    )
    kept = torch.rand(m, n, generator=g) < 0.3
    lr = 0.1
    apart, spectral, frobenius = hra.analysis.bounds.losia(grad, x, kept, lr)
    full, some = W - lr * grad, W - lr * torch.where(kept, grad, 0.0)
    gap = (F.linear(x, full) - F.linear(x, some)).square().sum(1).mean()
    assert apart == pytest.approx(gap.item())
    assert apart <= spectral * (1 + 1e-9) and spectral <= frobenius * (1 + 1e-9)
    two = torch.eye(2, 3, dtype=torch.float64)  # ⅓ · 2, ⅓ · 1 · 3, ⅓ · 2 · 3
    none = torch.zeros(2, 3, dtype=torch.bool)
    found = hra.analysis.bounds.losia(two, torch.eye(3, dtype=torch.float64), none, 1.0)
    assert found == pytest.approx((2 / 3, 1.0, 2.0))


def test_the_bound_is_an_equality_where_it_says():
    u, v = torch.randn(5).double(), torch.randn(4).double()
    kept = torch.zeros(5, 4, dtype=torch.bool)
    kept[1] = True
    x = torch.tensor([[2.0], [-0.5]]).double() * v  # every input ∥ v
    found = hra.analysis.bounds.losia(torch.outer(u, v), x, kept, 0.3)
    assert found == pytest.approx((found[2],) * 3)
    assert hra.analysis.bounds.losia(
        torch.outer(u, v), x, torch.ones_like(kept), 0.3
    ) == (*(0.0, 0.0, 0.0),)
