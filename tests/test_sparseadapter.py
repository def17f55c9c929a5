"""What SparseAdapter claims: a pruned bottleneck, its count exact, one budget for a
larger and sparser one; and what a fresh LoRA has for scores.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12)).double()


def loss(model):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(9, 12, generator=g, dtype=torch.float64)
    return F.mse_loss(model(x), torch.sin(3 * x))


def whole(a):
    """The (2 r, d_out) matrix of W_d over W_uᵀ."""
    W_d, W_u = a.weights()
    return torch.cat([W_d, W_u.T]).detach()


def saliency(tuned):
    loss(tuned.model).backward()
    return {s: hra.SparseAdapter.snip(a) for s, a in tuned.adapters.items()}


@pytest.mark.parametrize("rule", ["rand", "magnitude", "snip"])
def test_it_is_houlsbys_bottleneck_with_the_rest_at_zero(rule):
    fresh = hra.attach(net(), hra.Houlsby, r=6)
    W = {s: whole(a) for s, a in fresh.adapters.items()}
    scores = saliency(fresh) if rule == "snip" else None
    given = {"scores": scores} if scores else {"rule": rule}
    tuned = hra.attach(fresh.detach(), hra.SparseAdapter, r=6, keep=0.3, **given)
    kept = [len(a.index) for a in tuned.adapters.values()]
    assert sum(kept) == round(0.3 * 12 * 20) + round(0.3 * 12 * 12)
    ranked = scores or {s: w.abs() for s, w in W.items()}
    for s, a in tuned.adapters.items():
        mask = torch.zeros(W[s].numel()).index_fill(0, a.index, 1).view(W[s].shape)
        torch.testing.assert_close(whole(a), mask.double() * W[s])
        if rule == "magnitude":
            score = ranked[s].flatten()
            assert score[a.index].min() == score.sort().values[-len(a.index)]
    if rule == "snip":  # one ranking
        held = [ranked[s].flatten()[a.index] for s, a in tuned.adapters.items()]
        every = torch.cat([v.flatten() for v in ranked.values()]).sort().values
        assert torch.equal(torch.cat(held).sort().values, every[-sum(kept) :])
    opt = torch.optim.AdamW(tuned.param_groups(0.1), weight_decay=0.1)
    for _ in range(3):
        loss(tuned.model).backward()
        opt.step()
        opt.zero_grad()
    for a in tuned.adapters.values():  # what is pruned stays so
        assert set(whole(a).flatten().nonzero()[:, 0].tolist()) == set(a.index.tolist())


def test_large_and_sparse_costs_what_small_and_dense_does():
    dense = hra.attach(net(), hra.Houlsby, r=3)
    large = hra.attach(net(), hra.SparseAdapter, r=12, keep=0.25)
    weights = sum(len(a.values) for a in large.adapters.values())
    assert weights == sum(
        a.W_d.numel() + a.W_u.numel() for a in dense.adapters.values()
    )
    assert large.num_trainable - dense.num_trainable == 2 * (12 - 3)  # b_d


def warmed(steps):
    """A LoRA after so many steps, with the gradient of the next."""
    tuned = hra.attach(net(), hra.LoRA, r=4)
    opt = torch.optim.AdamW(tuned.param_groups(0.02))
    for _ in range(steps):
        loss(tuned.model).backward()
        opt.step()
        opt.zero_grad()
    loss(tuned.model).backward()
    return tuned


def test_a_fresh_lora_has_no_scores_and_a_warm_one_has(untyped):
    """The published trap: B = 0, so |w| of B and w ∂L/∂w of A and B are all zero."""
    fresh, pruned = warmed(0), hra.SparseAdapterLoRA
    snip = {s: pruned.snip(a) for s, a in fresh.adapters.items()}
    size = {s: pruned.joined(a.A.abs(), a.B.abs()) for s, a in fresh.adapters.items()}
    start = {s: a.A.detach().clone() for s, a in fresh.adapters.items()}
    assert not any(S.any() for S in snip.values())
    for scores, words in (
        (snip, r"scores of 0 are all zero.*LoRA's B.*warm-up"),
        (size, r"mask of 0 keeps entries of A alone and nothing of B.*warm-up"),
    ):
        with pytest.raises(ValueError, match=words):
            hra.attach(net(), pruned, r=4, keep=0.2, scores=scores)
    with pytest.raises(ValueError, match=r"magnitude.*nothing of B.*warm-up"):
        hra.attach(net(), pruned, r=4, rule="magnitude")
    warm = warmed(3)
    snip = {s: pruned.snip(a) for s, a in warm.adapters.items()}
    tuned = hra.attach(net(), pruned, r=4, keep=0.2, scores=snip)
    kept = sum(len(a.index) for a in tuned.adapters.values())
    assert kept == round(0.2 * 4 * 32) * 2 == tuned.num_trainable
    held = [snip[s].flatten()[a.index] for s, a in tuned.adapters.items()]
    every = torch.cat([S.flatten() for S in snip.values()]).sort().values
    assert torch.equal(torch.cat(held).sort().values, every[-kept:])
    for s, a in tuned.adapters.items():  # as a LoRA starts, where the mask is
        A, B = a.factors()
        assert torch.equal(A, torch.where(A != 0, start[s], 0.0)) and not B.any()


def test_grasp_is_the_change_of_the_squared_gradient():
    """w ⊙ H g = ½ d/dε ‖g((1 + ε e) w)‖² for every entry e."""
    tuned = warmed(2)
    adapters, pruned = tuned.adapters, hra.SparseAdapterLoRA
    found = pruned.grasp(tuned, lambda: loss(tuned.model))
    factors = [p for a in adapters.values() for p in (a.A, a.B)]

    def flow():
        return sum(
            g.square().sum() for g in torch.autograd.grad(loss(tuned.model), factors)
        )

    for s, a in adapters.items():
        for p, (i, j), at in ((a.A, (1, 2), (1, 2)), (a.B, (3, 0), (0, a.d_in + 3))):
            w, value = p.data[i, j].item(), []
            for sign in (1, -1):
                p.data[i, j] = w * (1 + sign * 1e-5)
                value.append(flow())
            p.data[i, j] = w
            slope = (value[0] - value[1]) / 4e-5
            torch.testing.assert_close(found[s][at], slope, rtol=1e-4, atol=1e-9)
    assert any((S < 0).any() for S in found.values())  # they have a sign
    tuned = hra.attach(net(), pruned, r=4, keep=0.3, scores=found)
    held = [found[s].flatten()[a.index] for s, a in tuned.adapters.items()]
    every = torch.cat([S.flatten() for S in found.values()]).sort().values
    assert torch.cat(held).min() == every[-tuned.num_trainable]


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.9])
def test_erdos_renyi_shares_by_the_sides(keep):
    """Each factor has what is in proportion to a + b, or all that it holds."""
    tuned = hra.attach(net(), hra.SparseAdapterLoRA, r=4, keep=keep, rule="er")
    count, sides = [], []
    for a in tuned.adapters.values():
        of_A = int((a.index % (a.d_in + a.d_out) < a.d_in).sum())
        count += [of_A, len(a.index) - of_A]
        sides += [(4, a.d_in), (4, a.d_out)]
    assert sum(count) == 2 * round(keep * 4 * 32)
    part = [k / (m + n) for k, (m, n) in zip(count, sides, strict=True)]
    free = [k < m * n for k, (m, n) in zip(count, sides, strict=True)]
    most = max(p for p, f in zip(part, free, strict=True) if f)
    for p, f, (m, n) in zip(part, free, sides, strict=True):
        assert abs(p - most) < 2 / (m + n) if f else p <= most + 2 / (m + n)
    bare = hra.SparseAdapter(nn.Linear(12, 20), r=4, keep=keep, rule="er")
    half = int((bare.index < 80).sum())
    assert len(bare.index) == round(keep * 160) and abs(2 * half - len(bare.index)) < 2


def test_a_large_sparse_lora_costs_what_a_small_dense_one_does():
    dense = hra.attach(net(), hra.LoRA, r=2)
    large = hra.attach(net(), hra.SparseAdapterLoRA, r=8, keep=0.25)
    assert large.num_trainable == dense.num_trainable
    rank = torch.linalg.matrix_rank
    for a in large.adapters.values():
        a.values.data.normal_()
        assert rank(a.delta_weight().detach()) > 2


def test_a_file_holds_the_mask_of_given_scores(tmp_path):
    scores = saliency(hra.attach(net(), hra.Houlsby, r=6))
    tuned = hra.attach(net(), hra.SparseAdapter, r=6, keep=0.2, scores=scores)
    opt = torch.optim.AdamW(tuned.param_groups(0.1))
    loss(tuned.model).backward()
    opt.step()
    tuned.save(tmp_path / "s")
    again = hra.load(net(), tmp_path / "s")
    assert torch.equal(loss(again.model), loss(tuned.model))
    other = copy.deepcopy(again)
    other.adapters["0"].index.data += 1
    with pytest.raises(ValueError, match="not the one that this model"):
        other.adapters["0"].unpack(again.adapters["0"].packed({})[0])


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"keep": 0.0}, "keep=0.0 is out of range"),
        ({"rule": "grasp"}, "rule='grasp' does not exist"),
        (
            {"scores": {"0": torch.ones(3, 3)}},
            r"of shape \(12, 20\) for 0, got \(3, 3\)",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(hyper, words, untyped):
    with pytest.raises(ValueError, match=words):
        hra.attach(net(), hra.SparseAdapter, r=6, **hyper)


def test_snip_before_a_backward_pass_is_refused(untyped):
    with pytest.raises(ValueError, match="has no gradient: call"):
        hra.SparseAdapter.snip(hra.Houlsby(nn.Linear(4, 4), 2))
