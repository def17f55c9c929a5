"""BitFit, the two serial adapters, prefix- and prompt-tuning: their papers' claims."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hra

# methods whose layer is the model: (hyperparameters, trained numbers for 2 layers of
# width 32)
WHOLE = {
    hra.PrefixTuning: ({"n": 5}, 2 * 2 * 5 * 32),
    hra.PromptTuning: ({"n": 5}, 5 * 32),
}


def gpt2(dtype=torch.float64):
    return hra.zoo.gpt2(
        "random", attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, initializer_range=0.3
    ).to(dtype)


def batch(seed=0, length=12):
    ids = torch.randint(256, (3, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def train(tuned, steps=4, lr=0.05):
    opt = torch.optim.AdamW(tuned.param_groups(lr), weight_decay=0.01)
    losses = []
    for step in range(1, steps + 1):
        loss = tuned(**batch()).loss
        loss.backward()
        opt.step()
        tuned.after_step(step, opt)
        opt.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(params=list(WHOLE), ids=lambda m: m.__name__)
def method(request):
    return request.param


# ---- at a layer
# ----------------------------------------------------------------------------------


def test_bitfit_gradient_is_that_of_the_layers_own_bias():
    layer, x = nn.Linear(5, 4).double(), torch.randn(7, 5, dtype=torch.float64)
    (g,) = torch.autograd.grad(layer(x).sin().sum(), layer.bias)
    a = hra.BitFit(copy.deepcopy(layer))
    a(x).sin().sum().backward()
    torch.testing.assert_close(a.delta_b.grad, g)
    with torch.no_grad():
        a.delta_b.add_(1.0)
    torch.testing.assert_close(a.merged().bias, layer.bias + 1)
    assert torch.equal(a.base.bias, layer.bias)


def test_bitfit_refuses_a_layer_without_bias_and_names_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    with pytest.raises(
        ValueError, match=r"BitFit trains biases, and the layer 1 has none"
    ):
        hra.attach(model, hra.BitFit)
    assert type(model[0]) is nn.Linear and all(
        p.requires_grad for p in model.parameters()
    )


@pytest.mark.parametrize("cls", [hra.Houlsby, hra.LinAdapter])
def test_a_serial_adapter_whose_last_matrix_is_zero_is_the_identity(cls):
    layer, x = nn.Linear(6, 8).double(), torch.randn(4, 6, dtype=torch.float64)
    a = cls(layer, r=3)
    nn.init.zeros_(a.W_u)
    assert torch.equal(a(x), layer(x))


def test_the_serial_adapters_are_their_equations():
    layer, x = nn.Linear(6, 8).double(), torch.randn(4, 6, dtype=torch.float64)
    h = layer(x)
    a = hra.Houlsby(layer, r=3)
    torch.testing.assert_close(a(x), h + F.gelu(h @ a.W_d.T + a.b_d) @ a.W_u.T + a.b_u)
    a = hra.LinAdapter(layer, r=3)
    z = (h - h.mean(1, keepdim=True)) / (
        h.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(a(x), h + F.relu(z @ a.W_d.T + a.b_d) @ a.W_u.T + a.b_u)


# ---- in a model
# ----------------------------------------------------------------------------------


def test_only_the_adapter_trains_and_detach_is_exact(method):
    hyper, count = WHOLE[method]
    model = gpt2()
    before, y = copy.deepcopy(model.state_dict()), model(**batch()).logits
    tuned = hra.attach(model, method, **hyper)
    assert tuned.num_trainable == count and f"{count:,}" in str(tuned)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    train(tuned)
    assert model(**batch()).logits.shape == y.shape and not torch.allclose(
        model(**batch()).logits, y
    )
    assert tuned.detach() is model
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    ) and len(before) == len(model.state_dict())
    assert torch.equal(model(**batch()).logits, y) and all(
        p.requires_grad for p in model.parameters()
    )


def test_training_lowers_the_loss_also_by_fit(method):
    tuned = hra.attach(gpt2(torch.float32), method, **WHOLE[method][0])
    losses = hra.fit(tuned, [batch()], steps=40, lr=0.1, progress=False).losses
    assert losses[-1] < 0.97 * losses[0]


def test_file_round_trip(method, tmp_path):
    tuned = hra.attach(gpt2(), method, **WHOLE[method][0])
    train(tuned)
    tuned.save(tmp_path / "a.safetensors")
    fresh = gpt2()
    again = hra.load(fresh, tmp_path / "a.safetensors")
    assert again.method is method and torch.equal(
        again(**batch()).logits, tuned(**batch()).logits
    )
    other = gpt2()
    other.transformer.h[0].mlp.c_fc.weight.data.mul_(2)
    with pytest.raises(ValueError, match="another base"):
        hra.load(other, tmp_path / "a.safetensors")
    assert not hasattr(other, "hra_adapter") and all(
        p.requires_grad for p in other.parameters()
    )


def test_copies_pickles_and_moves(method):
    tuned = hra.attach(gpt2(), method, **WHOLE[method][0])
    train(tuned)
    y = tuned(**batch()).logits
    for twin in (copy.deepcopy(tuned.model), pickle.loads(pickle.dumps(tuned.model))):
        assert torch.equal(twin(**batch()).logits, y)
        for p in twin.parameters():
            p.data.mul_(0.5)
        assert torch.equal(tuned(**batch()).logits, y)
    tuned.model.to(torch.bfloat16)
    assert tuned(**batch()).logits.dtype == torch.bfloat16
    tuned.model.float()
    with torch.autocast("cpu", torch.bfloat16):
        tuned(**batch()).loss.backward()
    assert all(
        p.grad.dtype == torch.float32
        for g in tuned.param_groups(1.0)
        for p in g["params"]
    )


def test_merging_is_refused(method):
    tuned = hra.attach(gpt2(), method, **WHOLE[method][0])
    with pytest.raises(TypeError, match=f"{method.__name__} has no ΔW: it adds"):
        tuned.merge()
    assert tuned.adapters and hasattr(tuned.model, "hra_adapter")


def test_padding_on_the_right_does_not_change_the_text(method):
    tuned = hra.attach(gpt2(), method, **WHOLE[method][0])
    train(tuned)
    ids = batch()["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 9:] = 0
    a, b = (
        tuned(input_ids=ids, attention_mask=mask).logits[:, :9],
        tuned(input_ids=ids[:, :9]).logits,
    )
    torch.testing.assert_close(a, b)


def test_generation_is_the_greedy_choice_of_the_whole_text(method):
    model = gpt2()
    tuned = hra.attach(model, method, **WHOLE[method][0])
    train(tuned)
    ids = batch()["input_ids"][:1, :6]
    out = model.generate(
        ids,
        max_new_tokens=6,
        do_sample=False,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
    )
    expected = ids
    for _ in range(out.shape[1] - 6):
        expected = torch.cat(
            [expected, model(input_ids=expected).logits[:, -1:].argmax(-1)], 1
        )
    assert torch.equal(out, expected) and out.shape[1] > 6


def test_prefix_is_attention_over_more_keys():
    model = hra.zoo.gpt2(
        "random", n_layer=1, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
    ).double()
    tuned = hra.attach(model, hra.PrefixTuning, n=4)
    a, block, seen = tuned.adapters[""], model.transformer.h[0], {}
    block.attn.c_proj.register_forward_pre_hook(
        lambda m, args: seen.update(out=args[0])
    )
    block.attn.c_attn.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    ids = batch()["input_ids"]
    model(input_ids=ids)
    position = model.transformer.wpe.weight[: ids.shape[1]]
    torch.testing.assert_close(
        seen["x"], block.ln_1(model.transformer.wte(ids) + position)
    )  # the text keeps its positions
    q, k, v = (
        t.view(3, 12, 2, 16).transpose(1, 2)
        for t in block.attn.c_attn(seen["x"]).split(32, -1)
    )
    P = a.P()[0]
    k, v = (
        torch.cat([p.expand(3, -1, -1, -1), t], 2) for p, t in ((P[0], k), (P[1], v))
    )
    score = q @ k.transpose(-1, -2) / 4
    score = score.masked_fill(
        torch.ones(12, 16, dtype=torch.bool).triu(5), float("-inf")
    )
    torch.testing.assert_close(
        seen["out"], (score.softmax(-1) @ v).transpose(1, 2).reshape(3, 12, 32)
    )


def test_prefix_reparametrisation_is_dropped_in_the_file(tmp_path):
    tuned = hra.attach(gpt2(), hra.PrefixTuning, n=3, hidden=16)
    assert tuned.num_trainable == 3 * 32 + 16 * 32 + 16 * 2 * 2 * 32
    train(tuned)
    tuned.save(tmp_path / "p.safetensors")
    again = hra.load(gpt2(), tmp_path / "p.safetensors")
    assert again.num_trainable == 2 * 2 * 3 * 32 and again.hyper == {
        "n": 3,
        "hidden": None,
        "seed": 0,
    }
    torch.testing.assert_close(again(**batch()).logits, tuned(**batch()).logits)


@pytest.mark.parametrize("init", ["vocab", "random"])
def test_prompt_is_the_model_on_longer_embeddings(init):
    model = gpt2()
    E = model.get_input_embeddings()
    tuned = hra.attach(model, hra.PromptTuning, n=4, init=init)
    P, ids = tuned.adapters[""].P, batch()["input_ids"]
    assert (init == "vocab") == all(
        (E.weight == p).all(1).any().item() for p in P.detach()
    )
    out = tuned(input_ids=ids, labels=ids)
    x = torch.cat([P.expand(3, -1, -1), E(ids)], 1)
    tuned.detach()
    torch.testing.assert_close(out.logits, model(inputs_embeds=x).logits[:, 4:])
    loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    plain = model(inputs_embeds=x).logits[
        :, 3
    ]  # the prompt's last position predicts the first token, and that counts too
    first = F.cross_entropy(plain, ids[:, 0], reduction="sum")
    expected = (loss * ids[:, 1:].numel() + first) / ids.numel()
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_bits_a_character_with_windows_that_leave_room():
    model, tok = hra.zoo.gpt2("tiny"), hra.zoo.tokenizer("tiny")
    text = hra.data.text("moby_dick", "validation")[:600]
    hra.attach(model, hra.PromptTuning, n=8)
    assert 1 < hra.data.bits_per_character(model, tok, text, length=120) < 9
    with pytest.raises(ValueError, match="do not fit in the model's context of 128"):
        hra.data.bits_per_character(model, tok, text)


@pytest.mark.parametrize(
    ("cls", "hyper", "error", "words"),
    [
        (cls, *case)
        for cls in WHOLE
        for case in [
            ({"n": 0}, ValueError, "n=0"),
            ({"n": -3}, ValueError, "n=-3"),
            ({"n": 64}, ValueError, "n=64 .* 1 to 63"),
            ({"n": True}, TypeError, "n=True"),
            ({"n": "8"}, TypeError, "n='8'"),
            ({"n": 2.5}, TypeError, "n=2.5"),
            ({"n": float("nan")}, TypeError, "n=nan"),
            ({"targets": "c_attn"}, ValueError, "leave targets='c_attn' out"),
            ({"seed": "x"}, TypeError, "seed='x'"),
        ]
    ]
    + [
        (hra.PrefixTuning, {"hidden": 0}, ValueError, "hidden=0"),
        (hra.PromptTuning, {"init": "zero"}, ValueError, "init='zero'"),
    ],
)
def test_bad_hyperparameters(cls, hyper, error, words, untyped):
    model = gpt2()
    with pytest.raises(error, match=words):
        hra.attach(model, cls, **hyper)
    assert not hasattr(model, "hra_adapter") and all(
        p.requires_grad for p in model.parameters()
    )


def test_another_kind_of_model_and_a_text_too_long(method):
    with pytest.raises(
        ValueError, match=r"needs a causal language model .* this is a Linear"
    ):
        hra.attach(nn.Sequential(nn.Linear(2, 2))[0], method)
    with pytest.raises(ValueError, match="this is a ViTForImageClassification"):
        hra.attach(hra.zoo.vit("random"), method)
    tuned = hra.attach(gpt2(), method, n=5)
    with pytest.raises(ValueError, match="already holds adapters"):
        hra.attach(tuned.model, hra.LoRA, targets="c_attn", r=2)
    if method is hra.PromptTuning:
        with pytest.raises(ValueError, match="a prompt of n=5 and a text of 60 tokens"):
            tuned(**batch(length=60))
    with pytest.raises(ValueError, match="without input_ids"):
        tuned()
