"""Prefix and prompt tuning with what callers really give: padding, positions, caches,
other architectures.
"""

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
CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "gemma": GEMMA, "opt": OPT}


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
def test_calls_that_cannot_be_right_are_refused(method):
    model, _ = made(GPT2, method)
    old = model.generate(
        ids(5), max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    more = torch.cat([old.sequences, ids(4, seed=5)], 1)
    with pytest.raises(ValueError, match="begin a second turn without it"):
        model.generate(more, past_key_values=old.past_key_values, max_new_tokens=2)
    text = ids(5)
    with pytest.raises(ValueError, match="4 dimensions"):
        model(text, attention_mask=torch.ones(1, 1, 5, 5))
    with pytest.raises(ValueError, match="return_dict=False"):
        model(text, return_dict=False)
    with pytest.raises(TypeError, match=r"StaticCache.*a DynamicCache"):
        model(text, past_key_values=tf.StaticCache(config=GPT2, max_cache_len=20))
    if method is hra.PromptTuning:
        with pytest.raises(ValueError, match="token_type_ids"):
            model(text, token_type_ids=torch.zeros_like(text))
    model.gradient_checkpointing_enable()
    model.train()
    if method is hra.PrefixTuning:
        with pytest.raises(ValueError, match="gradient checkpointing"):
            model(text)
    else:
        model(text, labels=text).loss.backward()


@pytest.mark.parametrize("method", METHODS)
def test_models_that_cannot_be_right_are_refused_at_attach(method):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = tf.BartForConditionalGeneration(
        tf.BartConfig(**sizes, **heads, encoder_ffn_dim=16, decoder_ffn_dim=16)
    )
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        hra.attach(bart, method)
    bloom = tf.BloomForCausalLM(tf.BloomConfig(hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="how long its context is"):
        hra.attach(bloom, method)
    vit = hra.zoo.vit("random")
    with pytest.raises(ValueError, match="needs a causal language model"):
        hra.attach(vit, method)


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
