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


def test_a_fresh_lora_has_no_scores_and_a_warm_one_has(untyped):
    """The published trap: B = 0, so |w| of B and w ∂L/∂w of A and B are all zero."""
    tuned = hra.attach(net(), hra.LoRA, r=3)
    opt = torch.optim.SGD(tuned.param_groups(0.1))
    loss(tuned.model).backward()
    for a in tuned.adapters.values():
        assert not a.B.any() and not (a.A * a.A.grad).any()
        assert not (a.B * a.B.grad).any() and a.B.grad.any()
    opt.step()
    opt.zero_grad()
    loss(tuned.model).backward()
    assert all((a.A * a.A.grad).any() for a in tuned.adapters.values())
    zeros = {"0": torch.zeros(12, 20), "2": torch.zeros(12, 12)}
    with pytest.raises(
        ValueError, match=r"scores of 0 are all zero.*LoRA's B.*warm-up"
    ):
        hra.attach(net(), hra.SparseAdapter, r=6, scores=zeros)


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
    with pytest.raises(ValueError, match="not the one of its hash"):
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
