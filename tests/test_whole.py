"""Prefix and prompt tuning with what callers really give: padding, positions, caches,
other architectures.
"""

import copy
import pickle

import pytest
import torch
import transformers as tf

import hra

METHODS = [hra.PrefixTuning, hra.PromptTuning]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "max_position_embeddings": 48,
}
LLAMA = tf.LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=2)
GEMMA = tf.GemmaConfig(
    **SMALL, intermediate_size=64, head_dim=16, num_key_value_heads=1
)
OPT = tf.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=16, dropout=0.0)
GPT2 = tf.GPT2Config(
    n_embd=32,
    n_layer=2,
    n_head=4,
    vocab_size=60,
    n_positions=48,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    initializer_range=0.3,
)
FALCON = tf.FalconConfig(**SMALL)  # it and BigCode have multi_query=True
BIGCODE = tf.GPTBigCodeConfig(**SMALL, n_inner=64)
CONFIGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "gemma": GEMMA,
    "opt": OPT,
    "falcon": FALCON,
    "falcon-groups": tf.FalconConfig(
        **SMALL, new_decoder_architecture=True, num_kv_heads=2
    ),
    "bigcode": BIGCODE,
}


def made(config, method, dtype=torch.float64, **hyper):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    model.generation_config.pad_token_id = 0
    tuned = hra.attach(model, method, n=3, **hyper)
    with torch.no_grad():
        for p in tuned.adapters[""].parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model, tuned


def ids(n, seed=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(1, 60, (1, n), generator=g)


def padded(text, pads):
    zeros = torch.zeros(1, pads, dtype=torch.long)
    mask = torch.cat([zeros, torch.ones_like(text)], 1)
    return {"input_ids": torch.cat([zeros, text], 1), "attention_mask": mask}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_left_padding_changes_nothing(name, method):
    model, _ = made(CONFIGS[name], method)
    text = ids(6)
    want, got = model(text).logits, model(**padded(text, 4)).logits[:, 4:]
    torch.testing.assert_close(got, want)
    kw = {"max_new_tokens": 8, "do_sample": False}
    a = model.generate(text, **kw)[:, 6:]
    b = model.generate(**padded(text, 4), **kw)[:, 10:]
    assert torch.equal(a, b) and len(a[0]) == 8
    rows = text.repeat(3, 1)
    beams = model.generate(rows, num_beams=3, **kw)
    assert all(torch.equal(r, beams[0]) for r in beams)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_token_by_token_is_all_at_once(name, method):
    model, _ = made(CONFIGS[name], method)
    text = ids(7)
    want, cache, seen = model(text).logits, None, []
    for t in range(7):
        out = model(text[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        seen.append(out.logits)
    torch.testing.assert_close(torch.cat(seen, 1), want)


@pytest.mark.parametrize("method", METHODS)
def test_positions_of_the_callers_are_used(method):
    model, tuned = made(GPT2, method)
    text, at = ids(5), torch.tensor([[0, 2, 4, 6, 8]])
    plain = model(text).logits
    moved = model(text, position_ids=at).logits
    assert not torch.allclose(plain, moved)
    torch.testing.assert_close(
        model(text, position_ids=torch.arange(5)[None]).logits, plain
    )
    if method is hra.PromptTuning:
        P = tuned.adapters[""].P.detach()[None]
        x = torch.cat([P, model.get_input_embeddings()(text)], 1)
        tuned.detach()
        at = torch.cat([torch.arange(3)[None], at + 3], 1)
        want = model(inputs_embeds=x, position_ids=at).logits[:, 3:]
        torch.testing.assert_close(moved, want)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_second_turn_on_the_cache_is_one_without(name, method):
    model, _ = made(CONFIGS[name], method)
    kw = {"max_new_tokens": 4, "do_sample": False}
    old = model.generate(ids(5), return_dict_in_generate=True, **kw)
    assert old.past_key_values.get_seq_length() == old.sequences.shape[1] - 1
    more = torch.cat([old.sequences, ids(4, seed=5)], 1)
    want = model.generate(more, **kw)
    for twin in (copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))):
        cache = twin(old.past_key_values)
        assert torch.equal(model.generate(more, past_key_values=cache, **kw), want)
    cache = old.past_key_values
    cache.crop(-2)  # as decoding with a draft model does
    out = model(more[:, cache.get_seq_length() :], past_key_values=cache)
    torch.testing.assert_close(out.logits[:, -1], model(more).logits[:, -1])
    assert out.past_key_values is cache


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_of_another_is_refused(method):
    model, tuned = made(GPT2, method)
    text, empty = ids(5), tf.DynamicCache(config=GPT2)
    with pytest.raises(IndexError):  # no such token: the call fails half way
        model(torch.full((1, 5), 99), past_key_values=empty)
    cache = model(text, past_key_values=empty).past_key_values
    assert cache is empty and cache.get_seq_length() == 5
    tuned.detach()
    with pytest.raises(ValueError, match=rf"filled by {method.__name__}\(n=3\)"):
        model(text, past_key_values=cache)
    plain = model(text).past_key_values
    hra.attach(model, method, n=2)
    with pytest.raises(ValueError, match=r"3.* this is .*n=2.*an empty cache"):
        model(text, past_key_values=cache)
    with pytest.raises(ValueError, match="filled by the model without it"):
        model(text, past_key_values=plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_masks_of_four_dimensions(name, method):
    model, _ = made(CONFIGS[name], method)
    text = ids(6)
    want, seen = model(text).logits, torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    added = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    added = added.masked_fill(~seen, torch.finfo(torch.float64).min)
    for mask in (seen, added):
        torch.testing.assert_close(model(text, attention_mask=mask).logits, want)
    alone = torch.eye(6, dtype=torch.bool)[None, None]  # no token sees another
    got = model(text, attention_mask=alone, position_ids=torch.zeros(1, 6).long())
    rows = model(text.T).logits[:, 0][None]
    torch.testing.assert_close(got.logits, rows)
    first = model(text[:, :4])
    got = model(
        text[:, 4:],
        attention_mask=seen[:, :, 4:],
        past_key_values=first.past_key_values,
    )
    torch.testing.assert_close(got.logits, want[:, 4:])
    with pytest.raises(TypeError, match=r"is bool .* this is torch\.int64"):
        model(text, attention_mask=seen.long())


@pytest.mark.parametrize("method", METHODS)
def test_the_output_has_the_texts_positions_only(method):
    model, tuned = made(GPT2, method)
    model.set_attn_implementation("eager")
    text, every = ids(6), {"output_hidden_states": True, "output_attentions": True}
    out = model(text, labels=text, **every)
    for k in (1, 2, 6, 20):
        kept = model(text, logits_to_keep=k).logits
        torch.testing.assert_close(kept, out.logits[:, -k:])
    at = torch.tensor([1, 4, -1])
    kept = model(text, logits_to_keep=at, labels=text[:, at]).logits
    torch.testing.assert_close(kept, out.logits[:, at])
    assert [h.shape for h in out.hidden_states] == [(1, 6, 32)] * 3
    assert [a.shape for a in out.attentions] == [(1, 4, 6, 9)] * 2
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
    for a in out.attentions:  # the prefix is seen by all, the text from left to right
        assert (a[..., :3] > 0).all() and torch.equal(a[..., 3:], a[..., 3:].tril())
    shifted = torch.nn.functional.pad(text[:, 1:], (0, 1), value=-100)
    if method is hra.PromptTuning:
        x = torch.cat(
            [tuned.adapters[""].P.detach()[None], model.transformer.wte(text)], 1
        )
        loss = model(text, labels=text, shift_labels=shifted).loss
        tuned.detach()
        plain = model(inputs_embeds=x, **every)
        for got, want in zip(out.hidden_states, plain.hidden_states, strict=True):
            torch.testing.assert_close(got, want[:, 3:])
        ahead = torch.nn.functional.pad(shifted, (3, 0), value=-100)
        want = torch.nn.functional.cross_entropy(plain.logits[0], ahead[0])
        torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_calls_that_cannot_be_right_are_refused(method):
    model, _ = made(GPT2, method)
    text = ids(5)
    embedded = model.transformer.wte(text)
    for call, said in (
        (
            {"attention_mask": torch.ones(1, 8)},
            "is for 8 tokens.* 0 in the cache and 5",
        ),
        ({"attention_mask": torch.ones(5)}, r"attention_mask is \(5,\)"),
        ({"return_dict": False}, "return_dict=False"),
        ({"inputs_embeds": embedded}, "leave one out"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1, 2]])}, "pack several texts"),
        (
            {"position_ids": torch.tensor([[0, 1, 5, 6, 7]]), "use_cache": False},
            "pack several texts",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            model(text, **call)
    with pytest.raises(ValueError, match=r"\(1, 5, 32\) has 3 dimensions"):
        model(embedded)
    with pytest.raises(TypeError, match="the rest by keyword"):
        model(text, None)
    with pytest.raises(TypeError, match=r"StaticCache.*a DynamicCache"):
        model(text, past_key_values=tf.StaticCache(config=GPT2, max_cache_len=20))
    if method is hra.PromptTuning:
        with pytest.raises(ValueError, match="token_type_ids"):
            model(text, token_type_ids=torch.zeros_like(text))
    model.config.return_dict = False
    with pytest.raises(ValueError, match="or in the model's config"):
        model(text)
    model.config.return_dict = True
    model.gradient_checkpointing_enable()
    model.train()
    if method is hra.PrefixTuning:
        with pytest.raises(ValueError, match="gradient checkpointing"):
            model(text)
    else:
        model(text, labels=text).loss.backward()


MISFITS = {
    "an encoder and a decoder": tf.BartForConditionalGeneration(
        tf.BartConfig(
            d_model=16,
            vocab_size=40,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    ),
    "a decoder's attention to an encoder": tf.GPT2LMHeadModel(
        tf.GPT2Config(
            n_embd=16, n_layer=1, n_head=2, vocab_size=40, add_cross_attention=True
        )
    ),
    "how long its context is": tf.BloomForCausalLM(
        tf.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=40)
    ),
    "layers that see a window": tf.MistralForCausalLM(
        tf.MistralConfig(
            **SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=8
        )
    ),
    "is_decoder=False": tf.BertLMHeadModel(
        tf.BertConfig(**SMALL, intermediate_size=64)
    ),
    "counts positions in its own way": tf.RobertaForCausalLM(
        tf.RobertaConfig(**SMALL, intermediate_size=64, is_decoder=True)
    ),
    "needs a causal language model": hra.zoo.vit("random"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("said", list(MISFITS))
def test_models_that_cannot_be_right_are_refused_at_attach(said, method):
    with pytest.raises(ValueError, match=said):
        hra.attach(MISFITS[said], method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_in_full(method, dtype):
    model, tuned = made(LLAMA, method, dtype)
    assert all(p.dtype == torch.float32 for p in tuned.adapters[""].parameters())
    model(ids(5), labels=ids(5)).loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in tuned.adapters[""].parameters())


def test_the_mlp_of_a_prefix_fits_grouped_heads():
    model, tuned = made(GEMMA, hra.PrefixTuning, hidden=8)
    assert tuned.adapters[""].P().shape == (2, 2, 1, 3, 16)
    model(ids(4), labels=ids(4)).loss.backward()
