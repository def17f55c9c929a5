"""What MoRA's paper claims, what the released code does, and what neither says."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra
from hra import memory
from hra.methods.mora import OPERATORS, side

SHAPES = [(24, 24), (20, 28), (28, 20), (13, 37), (37, 13), (96, 24), (24, 96)]


def layer(d_out, d_in, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Linear(d_in, d_out, dtype=dtype)


def mora(shape, r=2, rank=None, **hyper):
    """A MoRA with M drawn, of full rank or of the given one."""
    a = hra.MoRA(layer(*shape), r=r, **hyper)
    g = torch.Generator().manual_seed(3)
    n = a.r_hat
    k = n if rank is None else rank
    left = torch.randn(n, k, generator=g, dtype=torch.float64)
    a.M.data = left @ torch.randn(k, n, generator=g, dtype=torch.float64)
    return a


def rank(matrix):
    return int(torch.linalg.matrix_rank(matrix.detach()))


# ---- the released code, chunk by chunk (kongds/MoRA, types 1, 2, 3, 4 and 6)


def released(x, M, d_out, type_):
    n = len(M)
    d_in = x.shape[-1]
    if type_ == 6:
        padded = torch.cat([x, x[..., : -d_in % n]], -1)
        chunks = padded.split(n, -1)
        out = []
        for i, c in enumerate(chunks):
            theta = 10000 ** (-torch.arange(0, n, 2, dtype=x.dtype) / n)
            cos, sin = (i * theta).cos(), (i * theta).sin()
            u, v = c[..., : n // 2], c[..., n // 2 :]
            turned = torch.cat([u * cos - v * sin, v * cos + u * sin], -1)
            out.append(turned @ M.T)
        y = torch.cat(out, -1)
        return torch.cat([y] * -(-d_out // y.shape[-1]), -1)[..., :d_out]
    if type_ in (1, 4):
        padded = torch.cat([x, x[..., : -d_in % n]], -1)
        h = sum(padded.split(n, -1))
    else:
        sizes = [d_in // n + (i < d_in % n) for i in range(n)]
        h = torch.stack([c.sum(-1) for c in x.split(sizes, -1)], -1)
    z = h @ M.T
    if type_ in (1, 3):
        return torch.cat([z] * -(-d_out // n), -1)[..., :d_out]
    times = torch.tensor([d_out // n + (i < d_out % n) for i in range(n)])
    return z.repeat_interleave(times, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("type_", "hyper"),
    [(1, {}), (2, {"pattern": "block"}), (6, {"operator": "rotation"})],
)
def test_the_released_map(shape, type_, hyper):
    a = mora(shape, **hyper)
    x = torch.randn(5, shape[1], dtype=torch.float64)
    want = a.base(x) + released(x, a.M.detach(), shape[0], type_)
    torch.testing.assert_close(a(x), want)


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_the_released_cycle_of_four(shape):
    a = hra.ReMoRA(layer(*shape), r=2, every=1, regroup="cycle4")
    x = torch.randn(5, shape[1], dtype=torch.float64)
    opt = torch.optim.SGD(a.parameters(), lr=0.0)
    for step, type_ in enumerate([1, 2, 3, 4, 1], 1):
        before = a(x).detach()
        a.M.data.normal_(generator=torch.Generator().manual_seed(step))
        want = before + released(x, a.M.detach(), shape[0], type_)
        torch.testing.assert_close(a(x), want)
        a.after_step(step, opt)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_forward_is_the_definition_on_every_shape(shape, fold, operator):
    for r in (1, 3, 13):
        sizes = {"r": r, "d_out": shape[0], "d_in": shape[1]}
        if operator == "truncation" and side(operator, "floor", **sizes) > min(shape):
            continue
        a = mora(shape, r=r, operator=operator, fold=fold)
        x = torch.randn(2, 5, shape[1], dtype=torch.float64, requires_grad=True)
        y, definition = a(x), hra.Adapter.forward(a, x)
        torch.testing.assert_close(y, definition)
        g = torch.randn_like(y)
        for fast, slow in zip(
            torch.autograd.grad(y, (x, a.M), g),
            torch.autograd.grad(definition, (x, a.M), g),
            strict=True,
        ):
            torch.testing.assert_close(fast, slow)


# ---- r̂


@pytest.mark.parametrize("operator", OPERATORS)
def test_never_above_lora_and_the_root_is_whole(operator):
    for d_out in (1, 2, 7, 64, 768, 2304, 11008):
        for d_in in (2, 63, 768, 4096):
            for r in (1, 2, 8, 13, 256):
                sizes = {"r": r, "d_out": d_out, "d_in": d_in}
                n = side(operator, "floor", **sizes)
                assert n**2 <= r * (d_out + d_in)
                step = 2 if operator == "rotation" else 1
                assert (n + step) ** 2 > r * (d_out + d_in)
                half_up = int(math.sqrt((d_in + d_out) * r) + 0.5)
                half_up -= half_up % 2 if operator == "rotation" else 0
                assert side(operator, "round", **sizes) == half_up


def test_sizes_that_people_print():
    def sides(d_out, d_in, r=8):
        sizes = {"r": r, "d_out": d_out, "d_in": d_in}
        kinds = (("sharing", "floor"), ("sharing", "round"), ("rotation", "round"))
        return [side(o, rounding, **sizes) for o, rounding in kinds]

    assert sides(4096, 4096) == [256, 256, 256]
    assert sides(11008, 4096) == [347, 348, 348]
    assert sides(768, 768) == [110, 111, 110]
    assert sides(2304, 768) == [156, 157, 156]
    assert sides(3072, 768) == [175, 175, 174]


# ---- rank


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [None, 3])
def test_rank(shape, k):
    """r̂ for truncation and sharing; min(d_out, d_in), or n times rank M, for the
    others (without a fold a wide layer uses no more inputs than ⌈d_out/r̂⌉ r̂).
    """
    d = min(shape)
    for operator in OPERATORS:
        a = mora(shape, r=1, rank=k, operator=operator, fold=True)
        own = a.r_hat if k is None else k
        blocks = operator in ("decoupling", "rotation")
        found = rank(a.delta_weight())
        if not blocks:
            assert found == own
        elif k is None:
            assert found == d
        else:
            n = min(a.n_in, a.n_out)
            assert own <= found <= min(n * own, d)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_singular_values_of_the_operators(n):
    """At d = n r̂: M's, alone; n times M's; M's, each n times, rotated or not."""
    d = 8 * n
    layer_ = nn.Linear(d, d, dtype=torch.float64)
    r = 64 // (2 * d) if n == 1 else 1
    values = {}
    for operator in OPERATORS:
        a = hra.MoRA(layer_, r=max(r, 1), operator=operator)
        a.r_hat, a.n_in, a.n_out = 8, n, n  # d = n r̂ for any n
        a.M = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
        a.M.data.copy_(torch.linspace(1, 8, 64, dtype=torch.float64).sin().view(8, 8))
        if operator == "rotation":
            a.cos, a.sin = a.angles().cos(), a.angles().sin()
        values[operator] = torch.linalg.svdvals(a.delta_weight().detach())
    m = torch.linalg.svdvals(a.M.detach())
    for operator, want in (
        ("truncation", F.pad(m, (0, d - 8))),
        ("sharing", F.pad(n * m, (0, d - 8))),
        ("decoupling", m.repeat_interleave(n)),
        ("rotation", m.repeat_interleave(n)),
    ):
        torch.testing.assert_close(values[operator], want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("r", [1, 5, 12])
def test_with_a_fold_every_number_of_M_and_every_input_counts(shape, operator, r):
    sizes = {"r": r, "d_out": shape[0], "d_in": shape[1]}
    if operator == "truncation" and side(operator, "floor", **sizes) > min(shape):
        with pytest.raises(ValueError, match="truncation needs r̂ ≤"):
            hra.MoRA(layer(*shape), r=r, operator=operator)
        return
    a = hra.MoRA(layer(*shape), r=r, operator=operator, fold=True)
    x = torch.randn(64, shape[1], dtype=torch.float64)
    target = torch.randn(64, shape[0], dtype=torch.float64)
    F.mse_loss(a(x), target).backward()
    assert a.M.numel() == a.r_hat**2 <= r * sum(shape)
    assert (a.M.grad != 0).all()
    a.M.data.normal_(generator=torch.Generator().manual_seed(0))
    if operator != "truncation":
        assert (a.delta_weight() != 0).any(0).all()


def test_as_published_a_wide_layer_loses_inputs_and_attach_says_so_once():
    model = nn.Sequential(*(nn.Linear(3072, 768) for _ in range(2)))
    model = nn.Sequential(model, nn.Linear(768, 3072))
    with pytest.warns(UserWarning, match="only 28% of the inputs") as caught:
        tuned = hra.attach(model, hra.MoRA, r=8, operator="rotation")
    assert len(caught) == 1
    a = tuned.adapters["0.0"]
    a.M.data.normal_()
    reached = (a.delta_weight() != 0).any(0).float().mean()
    assert round(float(reached), 3) == 0.283
    tuned.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hra.attach(model, hra.MoRA, r=8, operator="rotation", fold=True).detach()
        hra.attach(model, hra.MoRA, r=8, operator="sharing").detach()


# ---- memory


@pytest.mark.parametrize("operator", OPERATORS)
def test_saved_numbers(operator):
    """r̂ a token, or the input itself; never as much as LoRA keeps."""
    r_hat = side(operator, "floor", r=2, d_out=96, d_in=96)
    sizes = {"d_out": 96, "d_in": 96, "tokens": 64, "r": 2}
    ours = memory.cost(hra.MoRA, operator=operator, **sizes)
    lora = memory.cost(hra.LoRA, **sizes)
    short = operator in ("truncation", "sharing")
    assert ours.activations.numbers == 64 * (r_hat if short else 96)
    assert ours.activations.numbers < lora.activations.numbers
    assert ours.trained.numbers == r_hat**2 <= lora.trained.numbers


def test_no_dense_matrix_is_formed():
    a = mora((64, 64), r=2, operator="rotation").train()
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            nonlocal largest
            out = f(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape != a.W0.shape:
                largest = max(largest, out.numel())
            return out

    with Watch():
        a(x).sum().backward()
    assert largest <= max(3 * 64, a.r_hat**2)


# ---- choosing


def test_auto_is_rotation_for_small_r_and_printed():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    assert hra.MoRA.chosen("auto", 1, 64, 64) == "rotation"
    assert hra.MoRA.chosen("auto", 16, 64, 64) == "sharing"
    tuned = hra.attach(model, hra.MoRA, r=1, operator="auto")
    assert str(tuned).count("rotation, r̂ = 10") == 2
    tuned.detach()
    tuned = hra.attach(model, hra.MoRA, r=16, operator="auto")
    assert str(tuned).count("sharing, r̂ = 45") == 2


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"operator": "sharng"}, "'sharng' does not exist"),
        ({"rounding": "up"}, "'up' does not exist"),
        ({"pattern": "blocks"}, "'blocks' does not exist"),
        ({"operator": "rotation", "pattern": "block"}, "pattern='block' is sharing's"),
        ({"r": 0}, "out of range"),
        ({"r": 25}, "out of range"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_what_is_refused(hyper, words):
    model = nn.Sequential(layer(24, 24))
    before = model[0]
    with pytest.raises(ValueError, match=words):
        hra.attach(model, hra.MoRA, **hyper)
    assert model[0] is before
    assert before.weight.requires_grad


def test_a_rotation_needs_a_pair():
    with pytest.raises(ValueError, match="needs r̂ ≥ 2"):
        hra.MoRA(layer(1, 1), r=1, operator="rotation")


# ---- ReMoRA


def restarted(n, regroup, d=64, r=1, every=1):
    """The rank of ΔW after each of n restarts, M drawn anew before each."""
    a = hra.ReMoRA(layer(d, d), r=r, every=every, regroup=regroup)
    opt = torch.optim.SGD(a.parameters(), lr=0.0)
    events = []
    for step in range(1, n + 1):
        a.M.data.normal_(generator=torch.Generator().manual_seed(step))
        events.append(a.after_step(step, opt))
    return a, [e["rank"] for e in events]


def test_a_cycle_of_groups_stops_below_two_r_hat_and_random_groups_do_not():
    for regroup in ("cycle", "cycle4"):
        a, ranks = restarted(5, regroup, d=256, r=4)
        assert a.r_hat == 45
        assert ranks == [45, 89, 89, 89, 89]
    assert restarted(4, "permute", d=256, r=4)[1] == [45, 89, 133, 177]


def test_a_cycle_is_sharings():
    with pytest.raises(ValueError, match=r'use regroup="permute"'):
        hra.ReMoRA(layer(24, 24), r=1, operator="rotation")


def test_random_groups_depend_on_seed_site_and_round(tmp_path):
    def orders(**kw):
        a = hra.ReMoRA(layer(24, 24), r=1, every=1, regroup="permute", **kw)
        first = a.order_in.clone()
        assert torch.equal(first, torch.arange(24))
        out = []
        for step in (1, 2):
            a.after_step(step, torch.optim.SGD(a.parameters(), lr=0.0))
            out += [a.order_in.clone(), a.order_out.clone()]
        return out

    one = orders(seed=0, site="a")
    assert all(map(torch.equal, one, orders(seed=0, site="a")))
    for other in (orders(seed=1, site="a"), orders(seed=0, site="b")):
        assert not any(map(torch.equal, one, other))
    assert len({tuple(o.tolist()) for o in one}) == 4


def test_a_file_whose_order_is_no_permutation_is_refused(tmp_path):
    model = nn.Sequential(layer(24, 24, torch.float32))
    tuned = hra.attach(model, hra.ReMoRA, r=1, every=1, regroup="permute")
    a, path = tuned.adapters["0"], tmp_path / "a.safetensors"
    a.after_step(1, torch.optim.SGD(tuned.param_groups(0.1)))
    tuned.save(path)
    order = a.order_in.clone()
    assert not torch.equal(order, torch.arange(24))
    a.order_in[3] = a.order_in[4]
    tuned.save(tmp_path / "bad.safetensors")
    tuned.detach()
    with pytest.raises(ValueError, match="order_in is no permutation"):
        hra.load(model, tmp_path / "bad.safetensors")
    assert torch.equal(hra.load(model, path).adapters["0"].order_in, order)
