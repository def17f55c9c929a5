"""The bill calculator: the page's script gives the library's bytes, and what it says is
so.
"""

import json
from functools import cache

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import hra
from hra import memory
from hra.law import evaluate
from hra.memory import blocks, presets
from hra.viz.bill import LAYER, PLAIN
from tests.test_law import HOSTILE, VALUES
from tests.test_viz import at_each, javascript, node

LAYERWISE = [m for m in hra.METHODS.values() if memory.states_law(m)]


def calculator(**kw):
    return hra.viz.BillCalculator(**kw)


# ---- the same language


@node
def test_the_page_reads_the_language_of_the_laws():
    good = [
        "r*(d_in + d_out)",
        "d_in - r - 1",
        "7/2*2",
        "(r - d_out)/3",
        "(r - d_out)//3",
        "min(r, d_in, 3) + max(1, (r))",
        "((d_in))//5*5 - 3",
    ]
    texts = good + HOSTILE
    got = javascript(
        calculator(),
        f"{json.dumps(texts)}.map(f => {{ try {{ return m.evaluate(f, "
        f"{json.dumps(VALUES)}); }} catch (e) {{ return e.message; }} }})",
    )
    assert got[: len(good)] == [evaluate(f, VALUES) for f in good]
    assert all(str(e).startswith("no formula") for e in got[len(good) :]), got


@node
def test_what_an_object_has_of_its_own_is_no_name():
    names = ["constructor", "__proto__", "toString", "hasOwnProperty"]
    got = javascript(
        calculator(),
        f"{json.dumps(names)}.map(f => {{ try {{ return m.evaluate(f, {{}}); }} "
        "catch (e) { return e.message; } })",
    )
    assert all(e.startswith("no formula") for e in got)


# ---- the same bytes


def held(choices, **kw):
    """The script's bills are the library's, at each of the choices."""
    w = calculator(**kw)
    for choice, got in zip(choices, at_each(w, choices), strict=True):
        for k, v in choice.items():
            setattr(w, k, v)
        for name, side in ((None, "method"), (PLAIN, "plain")):
            if got[side] is None:
                with pytest.raises(ValueError, match="BitFit trains biases"):
                    w.bill(name)
                continue
            bill = w.bill(name)
            parts = {k: a.bytes for k, a in bill.parts.items()}
            assert {k: got[side][k] for k in parts} == parts, (choice, name)
            if bill.partial:
                assert got["peaks"] is None and got["crossing"] is None
            elif got["peaks"]:
                assert got["peaks"][side == "plain"] == bill.peak.bytes
        yield choice, got, w


@node
def test_a_layers_bytes_are_the_librarys_and_the_crossing_is_one():
    choices = [
        {"method": k, "plan": p, "r": r, "tokens": t, "density": q, "d_out": m}
        for k in calculator().methods
        if k != PLAIN
        for p in memory.PLANS
        for r, t, q, m in ((4, 64, 0.01, 256), (512, 1, 0.001, 32), (1, 4096, 0.1, 64))
    ]
    crossed = 0
    for choice, got, w in held(choices, d_in=64):
        r, plain = got["crossing"], w.bill(PLAIN).peak.bytes
        if r:
            w.r = r
            assert w.bill().peak.bytes >= plain
            if r > 1:
                w.r = r - 1
                assert w.bill().peak.bytes < plain
                crossed += 1
        hyper = hra.METHODS[choice["method"]].hyperparameters({})
        assert (r is None) == ("r" not in hyper)
    assert crossed > 20


@node
def test_a_models_bytes_are_the_librarys(untyped):
    choices = [
        {"model": m, "method": k, "plan": p, "r": r, "tokens": t, "images": 4}
        for m in ("GPT-2 XL", "GPT-3 175B", "LLaMA-2 7B", "ViT-B/16")
        for k in calculator().methods
        if k != PLAIN
        for p, r, t in (("fp32", 256, 1), ("bf16, fp32 masters", 8, 8192))
    ]
    assert len(list(held(choices))) == len(choices)


CONFIGURATIONS = {
    "GPT-2 small": (768, 12, 12),
    "GPT-2 medium": (1024, 24, 16),
    "GPT-2 large": (1280, 36, 20),
    "GPT-2 XL": (1600, 48, 25),
}


@cache
def on_meta(name):
    """The preset's own model, without numbers, its layers' places and a batch."""
    with torch.device("meta"):
        if name in CONFIGURATIONS:
            d, layers, heads = CONFIGURATIONS[name]
            off = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}
            config = GPT2Config(n_embd=d, n_layer=layers, n_head=heads, **off)
            model, places = GPT2LMHeadModel(config), "c_attn|c_proj|c_fc"
        elif name == "LLaMA-2 7B":
            config = LlamaConfig(
                hidden_size=4096,
                intermediate_size=11008,
                num_hidden_layers=32,
                num_attention_heads=32,
                vocab_size=32000,
                max_position_embeddings=4096,
            )
            model, places = LlamaForCausalLM(config), "layers.*_proj"
        else:
            config = ViTConfig(num_labels=1000)
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
            model, places = ViTForImageClassification(config), "layers.*(_proj|fc)"
            pixels = torch.empty(8, 3, 224, 224)
            return model, places, {"pixel_values": pixels, "labels": torch.empty(8)}
        ids = torch.empty(1, 1024, dtype=torch.int64)
        return model, places, {"input_ids": ids, "labels": ids}


def test_every_known_preset_is_the_model_that_transformers_builds():
    for name, preset in memory.PRESETS.items():
        if preset.architecture:
            model = on_meta(name)[0]
            assert preset.parameters == sum(p.numel() for p in model.parameters())
            assert preset.buffers == sum(b.numel() for b in model.buffers())


@node
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_page_says_what_predict_says_of_the_presets_own_model(dtype, untyped):
    """Methods that draw nothing; the others differ in nothing that a bill sees."""
    plan = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    names = [n for n, p in memory.PRESETS.items() if p.architecture]
    some = ("LoRA", "VeRA") if plan == "fp32" else ("LoRA",)
    choices = [{"model": n, "method": m, "r": 8} for n in names for m in some]
    choices += [
        {"model": n, "method": m, "r": 8}
        for n in ("GPT-2 small", "ViT-B/16")
        for m in ("FullFT", "LoRAFA", "DoRA", "BitFit")
    ]
    for choice, got, _ in held(choices, plan=plan, images=8, tokens=1024):
        model, places, batch = on_meta(choice["model"])
        method = hra.METHODS[choice["method"]]
        plain = memory.predict(model.requires_grad_(True).to(dtype), batch)
        hyper = {"r": 8} if "r" in method.hyperparameters({}) else {}
        tuned = hra.attach(model, method, targets=places, **hyper)
        for side, bill in (("method", memory.predict(tuned, batch)), ("plain", plain)):
            parts = {k: a.bytes for k, a in bill.parts.items()}
            assert {k: got[side][k] for k in parts} == parts, (choice, side)
        tuned.detach()


def small(which):
    """(preset, model, places, batch) of one of four models small enough to run."""
    from tests.test_memory import gpt2, llama, text, vit

    d, h, f, V = 48, 4, 80, 300
    if which < 2:
        g = (4, 2)[which]
        sites = {n: (d, d) for n in "qo"} | {n: (g * d // h, d) for n in "kv"}
        sites |= {"gate": (f, d), "up": (f, d), "down": (d, f)}
        one = presets.Preset(
            2,
            {n: sites[n] for n in ("q", "k", "v", "o", "gate", "up", "down")},
            2 * V * d + 5 * d,
            32,
            blocks.llama(),
            {"d": d, "h": h, "D": d // h, "f": f, "V": V, "g": g},
            bias=False,
            buffers=d // h,
        )
        return one, llama(g), "layers.*_proj", text()
    if which == 2:
        one = presets._gpt2(d, 3, h, V, 64)
        return one, gpt2(n_positions=64), "c_attn|c_proj|c_fc", text()
    batch = {"pixel_values": torch.ones(2, 1, 28, 28), "labels": torch.tensor([1, 2])}
    return presets._vit(d, 2, h, 2 * d, 16, 49, 10), vit(), "layers.*(_proj|fc)", batch


def from_the_top(site, W):
    """Scores by which every layer trains its first rows, and so touches each column."""
    return 1 - torch.arange(W.numel()).view(W.shape) / W.numel()


# a bill without a model counts as many columns as the entries can touch
FULL_ROWS = {
    m: {"density": 1 / 8, "scores": from_the_top}
    for m in (hra.FISH, hra.LTSFT, hra.RoSA)
} | {
    hra.SpIEL: {"density": 1 / 2},
    hra.SparseAdapter: {"r": 8},
    hra.SparseAdapterLoRA: {"r": 8},
}


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("method", [None, *LAYERWISE])
def test_a_preset_of_a_small_model_is_what_is_measured(which, method):
    preset, model, places, batch = small(which)
    tokens = 64 if which < 3 else 34
    if method is hra.BitFit and not preset.bias:
        with pytest.raises(ValueError, match="the linear layers of it have none"):
            presets.of_preset("it", preset, method, "all", tokens, "fp32", 2, {})
        return
    hyper = {"mask": "struct", "every": 5} if method is hra.SHiRA else {}
    hyper |= {"m": 10} if method is hra.PRANC else {}
    hyper |= FULL_ROWS.get(method, {})
    tuned = hra.attach(model, method, targets=places, **hyper) if method else model
    bill = presets.of_preset("it", preset, method, "all", tokens, "fp32", 2, hyper)
    assert bill == memory.predict(tuned, batch) == memory.measure(tuned, batch)


# ---- what it says


def sentences(choices, **kw):
    w = calculator(**kw)
    state = json.dumps(w.public_state())
    return javascript(
        w,
        f"{json.dumps(choices)}.map(c => {{ const s = {{...{state}, ...c}}; "
        "return m.sentence(s, m.facts(s)); })",
    )


@node
def test_the_sentences_are_so():
    full, bitfit, lora, none, partial, shira, image, every = sentences(
        [
            {"method": "FullFT"},
            {"method": "BitFit"},
            {"method": "LoRA"},
            {"method": "BitFit", "model": "LLaMA-2 7B"},
            {"method": "LoRA", "model": "GPT-3 175B"},
            {"method": "SHiRA", "density": 0.02},
            {"method": "LoRA", "model": "ViT-B/16", "images": 1},
            {"method": "VeRA", "r": 64, "tokens": 1},
        ]
    )
    assert full.startswith("FullFT on a 768 × 768 layer") and "rank" not in full
    assert full.endswith("ordinary fine-tuning. It holds no less.")
    assert "rank" not in bitfit and bitfit.endswith("% of ordinary fine-tuning.")
    assert "LoRA with r = 8" in lora and "It stops being cheaper at r = 2" in lora
    assert (
        none == "BitFit trains biases, and the linear layers of LLaMA-2 7B have none."
    )
    assert "linear layers only: there is no total" in partial and "held" not in partial
    assert "SHiRA with 2 % of the entries" in shira and "rank" not in shira
    assert "1 image, fp32" in image
    assert every.endswith("It is cheaper at every rank.")


def test_every_method_with_a_law_is_in_the_menu_in_the_registrys_order():
    w = calculator(method="VeRA")
    assert list(w.methods) == [PLAIN, *(m.__name__ for m in LAYERWISE)]
    assert list(w.models) == list(memory.PRESETS) and w.model == LAYER
    assert w.r == 256 and calculator().r == 8 and calculator(method="VeRA", r=4).r == 4
    nola = hra.NOLA.hyperparameters({})
    assert w.methods["NOLA"]["values"] == nola and nola["k"] == 64
    assert {m: w.methods[m]["knob"] for m in ("LoRA", "BitFit", "SHiRA")} == {
        "LoRA": "r",
        "BitFit": "",
        "SHiRA": "density",
    }


def test_the_calculators_fallback_and_size():
    w = calculator()
    assert "LoRA, r = 8, one layer" in w.summary()
    assert "ordinary fine-tuning: weights" in w.fallback_figure().words()
    assert len(json.dumps(w.public_state())) < 50_000
    assert len(w._js_path.read_bytes()) < 10_240
    w.model = "GPT-3 175B"
    assert w.summary().endswith("those of the linear layers only; no total")
    with pytest.raises(ValueError, match=r"method='PrefixTuning' is none of these"):
        calculator(method="PrefixTuning")
    with pytest.raises(ValueError, match=r"model='GPT-5' is none of these"):
        calculator(model="GPT-5")
