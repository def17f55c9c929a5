"""What FISH, LT-SFT and RoSA claim: Fisher's information by the example, one ranking
over all layers, a rewind, two adapters in one.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra
from hra import memory, sparse


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x, labels=None):
        logits = self.head(torch.tanh(self.fc(x)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def batch(n=7):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    return {"x": x, "labels": torch.randint(3, (n,), generator=g)}


def cut(b, *sizes):
    parts = zip(*(v.split(sizes) for v in b.values()), strict=True)
    return [dict(zip(b, p, strict=True)) for p in parts]


def by_hand(model, b, expected=False):
    """The mean of squares, from autograd alone, one example after the other."""
    weights = [model.fc.weight, model.head.weight]
    total = [torch.zeros_like(w) for w in weights]
    for x, y in zip(b["x"], b["labels"], strict=True):
        log_p = model(x[None]).logits[0].log_softmax(-1)
        for c in range(3) if expected else [y]:
            grads = torch.autograd.grad(log_p[c], weights, retain_graph=True)
            for t, g in zip(total, grads, strict=True):
                t += (log_p[c].exp() if expected else 1.0) * g**2
    return {
        n: (t / len(b["x"])).detach()
        for n, t in zip(("fc", "head"), total, strict=True)
    }


def close(a, b):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k])


# ---- FISH


@pytest.mark.parametrize("form", ["label", "expect"])
def test_fisher_is_by_the_example_however_the_batches_are_cut(form):
    model, b = Classifier(), batch()
    want = by_hand(model, b, form == "expect")
    before = copy.deepcopy(model.state_dict())
    for batches in ([b], cut(b, 3, 4), cut(b, *[1] * 7)):
        close(hra.fisher(model, batches, form=form), want)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    # batches of one are `probe`'s squares, larger ones are not
    if form == "label":
        close(hra.probe(model, cut(b, *[1] * 7)).squared, want)
        off = hra.probe(model, [b]).squared["head"] / want["head"]
        assert off.median() < 0.9


def test_the_expected_fisher_of_the_output_layer_in_closed_form():
    """E (1[y = i] − p_i)² x_j² = p_i (1 − p_i) x_j²; no label is read."""
    model, b = Classifier(), batch()
    found = hra.fisher(model, [{"x": b["x"]}], targets="head", form="expect")
    p = model(b["x"]).logits.softmax(-1)
    h = torch.tanh(model.fc(b["x"]))
    want = torch.einsum("bi,bj->ij", p * (1 - p), h**2) / len(h)
    close(found, {"head": want.detach()})


def test_fish_ranks_all_layers_together():
    model = Classifier()
    scores = hra.fisher(model, [batch()])
    tuned = hra.attach(model, hra.FISH, scores=scores, density=0.2)
    flat = torch.cat([scores[s].flatten() for s in tuned.adapters])
    held = [scores[s].flatten()[a.index] for s, a in tuned.adapters.items()]
    assert sum(map(len, held)) == round(0.2 * 48) + round(0.2 * 24)
    assert len(held[0]) != round(0.2 * 48)
    assert torch.equal(
        torch.cat(held).sort().values, flat.sort().values[-sum(map(len, held)) :]
    )


def test_fish_and_its_classifier_in_a_file(tmp_path):
    model, b = Classifier(), batch()
    fresh = copy.deepcopy(model)
    scores = hra.fisher(model, [b], targets="fc")
    tuned = hra.attach(
        model, hra.FISH, targets="fc", also="head", scores=scores, count=9
    )
    hra.fit(tuned, [b], 5, 0.1, progress=False)
    tuned.save(tmp_path / "f")
    again = hra.load(copy.deepcopy(fresh), tmp_path / "f")
    assert torch.equal(again(**b).loss, tuned(**b).loss)
    assert again.num_trainable == 9 + 3 * 8 + 3
    model = tuned.detach()
    assert all(
        torch.equal(v, model.state_dict()[k]) for k, v in fresh.state_dict().items()
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, b: hra.attach(m, hra.FISH), "needs Fisher.*got None.*hra.fisher"),
        (
            lambda m, b: hra.attach(m, hra.FISH, scores={"fc": torch.ones(8, 6)}),
            r"of shape \(3, 8\) for head, got none",
        ),
        (
            lambda m, b: hra.attach(m, hra.FISH, scores=hra.probe(m, [b]).mean),
            "of fc go below zero.*hra.fisher",
        ),
        (
            lambda m, b: hra.attach(m, hra.FISH, scores=hra.fisher(m, [b]), count=73),
            "count=73 is out of range",
        ),
        (lambda m, b: hra.fisher(m, [b], form="sampled"), "form='sampled' does not"),
        (
            lambda m, b: hra.fisher(m, [b | {"labels": b["labels"][1:]}]),
            r"lengths are \[6, 7\]",
        ),
        (lambda m, b: hra.fisher(m, []), "no batch"),
        (
            lambda m, b: hra.attach(m, hra.LTSFT, scores=lambda s, W: 0 * W),
            "has not moved fc",
        ),
        (lambda m, b: hra.attach(m, hra.RoSA, r=2), "RoSA needs gradients.*probe"),
    ],
)
def test_what_cannot_be_is_refused_in_words(call, words, untyped):
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        call(model, batch())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_a_language_models_classes_are_too_many():
    model = hra.zoo.gpt2("random")
    ids = torch.arange(8)[None]
    one = [{"input_ids": ids, "labels": ids}]
    with pytest.raises(ValueError, match=r"logits are \(1, 8, .*form='label'"):
        hra.fisher(model, one, "c_attn", "expect", progress=False)
    found = hra.fisher(model, one, "c_attn", progress=False)
    close(found, hra.probe(model, one, "c_attn", progress=False).squared)


# ---- LT-SFT


def test_the_entries_that_moved_farthest_are_rewound_and_train_alone(tmp_path):
    model, b = Classifier(), batch()
    fresh, files = copy.deepcopy(model), {}
    for name, labels in (("a", b["labels"]), ("b", (b["labels"] + 1) % 3)):
        task = b | {"labels": labels}
        full = hra.attach(model, hra.FullFT)
        hra.fit(full, [task], 5, 0.1, progress=False)
        moved = {s: a.delta_weight().detach() for s, a in full.adapters.items()}
        tuned = hra.attach(full.detach(), hra.LTSFT, scores=moved, density=0.1)
        least = min(
            moved[s].flatten()[a.index].abs().min() for s, a in tuned.adapters.items()
        )
        every = torch.cat([m.abs().flatten() for m in moved.values()])
        assert (every >= least).sum() == sum(
            len(a.index) for a in tuned.adapters.values()
        )
        assert torch.equal(model(b["x"]).logits, fresh(b["x"]).logits)  # the rewind
        hra.fit(tuned, [task], 5, 0.1, progress=False)
        files[tmp_path / name] = 1.0
        tuned.save(tmp_path / name)
        model = tuned.detach()
    assert all(
        torch.equal(v, model.state_dict()[k]) for k, v in fresh.state_dict().items()
    )
    one = hra.fuse(model, files).merge()(b["x"]).logits
    two = hra.fuse(copy.deepcopy(fresh), dict(reversed(files.items())))
    assert torch.equal(two.merge()(b["x"]).logits, one)  # composed in either order


def test_a_second_iteration_keeps_the_entries_of_the_first():
    model, b = Classifier(), batch()
    kept, learnt, sizes = {}, model, []
    for _ in range(2):
        full = hra.attach(copy.deepcopy(learnt), hra.FullFT)
        hra.fit(full, [b], 4, 0.1, progress=False)
        moved = {s: a.delta_weight().detach() for s, a in full.adapters.items()}
        tuned = hra.attach(model, hra.LTSFT, scores=moved, density=0.1, before=kept)
        # it begins with what the first one has learnt
        torch.testing.assert_close(model(b["x"]).logits, learnt(b["x"]).logits)
        new = {}
        for s, a in tuned.adapters.items():
            old, values = kept.get(s, (a.index[:0], a.values[:0].double()))
            assert torch.isin(old, a.index).all()
            assert torch.equal(a.values[torch.isin(a.index, old)], values)
            new[s] = a.index[~torch.isin(a.index, old)]
        # of the others those that moved farthest, ranked together
        size = [moved[s].abs().flatten().clone() for s in moved]
        for t, (old, _) in zip(size, kept.values(), strict=False):
            t[old] = 0.0
        least = min(moved[s].flatten()[i].abs().min() for s, i in new.items())
        assert sum(int((t >= least).sum()) for t in size) == sum(map(len, new.values()))
        sizes.append(tuned.num_trainable)
        hra.fit(tuned, [b], 4, 0.1, progress=False)
        kept = {s: a.entries() for s, a in tuned.adapters.items()}
        learnt = copy.deepcopy(tuned).merge()
        model = tuned.detach()
    assert sizes == [7, 14]  # K / n each
    (layer,) = (hra.LTSFT(model.fc, moved["fc"], count=3, before={"": kept["fc"]}),)
    assert len(layer.index) == 3 + len(kept["fc"][0])


def test_gaps_beyond_int32():
    """A cumulative sum in int32, as released code has it, wraps around there."""
    index = torch.tensor([3, 2**31 + 7])
    gaps = sparse.pack(index)
    assert torch.equal(sparse.unpack(gaps, 2, 2**32), index)
    assert (gaps.to(torch.int32).cumsum(0, dtype=torch.int32)[-1]) < 0


# ---- RoSA


def test_rosa_is_lora_and_a_sparse_change_side_by_side():
    model, b = Classifier(), batch()
    warm = hra.attach(model, hra.LoRA, targets="fc", r=2)
    hra.fit(warm, [b], 4, 0.1, progress=False)
    G = hra.probe(model, cut(b, 3, 4), targets="fc").squared
    rosa = hra.attach(warm.detach(), hra.RoSA, targets="fc", r=2, scores=G, count=9)
    rosa = rosa.adapters["fc"]
    assert G["fc"].flatten()[rosa.index].min() == G["fc"].flatten().sort().values[-9]
    nn.init.normal_(rosa.B)
    nn.init.normal_(rosa.values)
    own = Classifier().fc
    lora = hra.LoRA(copy.deepcopy(own), r=2)
    shira = hra.SHiRA(copy.deepcopy(own), "grad", count=9, gradients=G["fc"])
    lora.A.data.copy_(rosa.A)
    lora.B.data.copy_(rosa.B)
    shira.values.data.copy_(rosa.values)
    x = b["x"]
    torch.testing.assert_close(rosa(x), lora(x) + shira(x) - own(x))
    rosa(x).sin().sum().backward()
    dense = own(x).detach() * 0 + rosa(x).detach()
    grad = dense.cos().T @ x  # ∂/∂W of Σ sin y
    torch.testing.assert_close(rosa.values.grad, grad.flatten()[rosa.index])


def test_rosas_sparse_part_has_a_rate_of_its_own():
    scores = {"fc": torch.rand(8, 6)}
    for ratio in (1.0, 2 / 7):
        tuned = hra.attach(
            Classifier(), hra.RoSA, targets="fc", r=2, scores=scores, ratio=ratio
        )
        a = tuned.adapters["fc"]
        rates = {id(p): g["lr"] for g in tuned.param_groups(7.0) for p in g["params"]}
        assert rates[id(a.A)] == rates[id(a.B)] == 7.0
        assert rates[id(a.values)] == pytest.approx(7 * ratio) and len(rates) == 3


def test_rosas_bill_is_the_two_added_up():
    for dropout in (0.0, 0.1):
        given = {"d_out": 24, "d_in": 16, "tokens": 9}
        G = torch.rand(24, 16)
        a = hra.RoSA(nn.Linear(16, 24), 2, dropout=dropout, scores=G, density=0.2)
        bill = memory.cost(hra.RoSA, **given, r=2, dropout=dropout, adapter=a)
        low = memory.cost(hra.LoRA, **given, r=2, dropout=dropout)
        sparse_part = memory.cost(
            hra.SHiRA, **given, mask="grad", density=0.2, adapter=a
        )
        assert bill.trained.numbers == low.trained.numbers + sparse_part.trained.numbers
        both = low.activations.numbers + sparse_part.activations.numbers
        shared = 0 if dropout else 9 * 16  # x itself, kept once
        assert bill.activations.numbers == both - shared
        x = torch.randn(9, 16, requires_grad=True)
        assert memory.measure(nn.Sequential(a), {"input": x}).activations == (
            bill.activations
        )
