"""Corpora and models: split by document, seeded, checked by hash; the model knows
English.
"""

import json
from pathlib import Path

import pytest
import torch

import hra
from hra import data, zoo
from hra.data.packed import unpacked

CARD = Path(zoo.__file__).parent / "gpt2-tiny"


@pytest.mark.parametrize("corpus", data.CORPORA)
def test_splits_are_disjoint_and_whole(corpus):
    ids = [{d["id"] for d in data.split(corpus, part)} for part in data.SPLITS]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    assert sum(map(len, ids)) == len(data.documents(corpus)) > 100
    assert data.split(corpus, "test", seed=1) != data.split(corpus, "test", seed=0)


def test_addresses_know_their_year_and_party():
    doc = data.documents("sotu")[0]
    assert (
        doc["year"] == 1790
        and doc["president"] == "George Washington"
        and len(doc["text"]) > 5000
    )


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(ValueError, match="sotu, moby_dick, jargon"):
        data.documents("bible")
    with pytest.raises(ValueError, match="train, validation, test"):
        data.split("sotu", "dev")


def test_batches_depend_on_the_seed_alone():
    ids = torch.arange(1000)
    a, b, c = (
        next(data.lm_batches(ids, 4, 32, seed=s))["input_ids"] for s in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(a[:, 1:], a[:, :-1] + 1)
    with pytest.raises(ValueError, match="cannot fill"):
        next(data.lm_batches(ids[:5], 1, 10))


def test_bits_per_character_of_a_uniform_model():
    model, tok = zoo.gpt2("random", vocab_size=2048), zoo.tokenizer("tiny")
    model.transformer.wte.weight.data.zero_()
    text = data.text("moby_dick", "test")[:3000]
    n = len(tok(text)["input_ids"])
    for stride in (None, 1, 5, 64):
        assert data.bits_per_character(
            model, tok, text, stride=stride
        ) == pytest.approx(11 * n / 3000, rel=1e-5)
    with pytest.raises(ValueError, match="stride=65"):
        data.bits_per_character(model, tok, text, stride=65)


def test_the_tokenizer_loses_nothing():
    tok = zoo.tokenizer("tiny")
    for text in (
        "Call me Ishmael.",
        "naïve — £5, 鯨",
        data.text("jargon", "test")[:2000],
    ):
        assert tok.decode(tok(text)["input_ids"]) == text


def test_tiny_is_a_pretrained_gpt2():
    model, tok = zoo.gpt2("tiny"), zoo.tokenizer("tiny")
    assert type(model).__name__ == "GPT2LMHeadModel" and not model.training
    assert (
        model.lm_head.weight is model.transformer.wte.weight
        and model.dtype == torch.float32
    )
    report = json.loads((CARD / "evaluation.json").read_text())["bits_per_character"][
        "sotu"
    ]
    bits = data.bits_per_character(
        model, tok, data.text("sotu", "test"), limit=20_000, stride=64
    )
    assert bits == pytest.approx(report["gpt2-tiny"], abs=0.2)
    assert report["gpt2-tiny"] < min(v for k, v in report.items() if k != "gpt2-tiny")


def test_a_damaged_model_file_is_refused(tmp_path):
    for f in CARD.iterdir():
        if f.is_file() and f.name != "checkpoint.pt":
            (tmp_path / f.name).write_bytes(f.read_bytes())
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        zoo._checked(tmp_path)


def test_a_damaged_corpus_is_refused(tmp_path):
    good = (data._FOLDER / "jargon.jsonl.xz").read_bytes()
    (tmp_path / "x.xz").write_bytes(good)
    assert unpacked(tmp_path / "x.xz")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (bytes(flipped), good[:-9], good[:7], b"", b"PK"):
        (tmp_path / "x.xz").write_bytes(bad)
        with pytest.raises(ValueError, match=r"x\.xz of hra's data is damaged"):
            unpacked(tmp_path / "x.xz")


def test_any_gpt2_loads_from_a_folder(tmp_path):
    zoo.gpt2("random", seed=3).save_pretrained(tmp_path)
    model = zoo.gpt2(str(tmp_path))
    ids = torch.arange(9)[None]
    torch.testing.assert_close(
        model(input_ids=ids).logits, zoo.gpt2("random", seed=3)(input_ids=ids).logits
    )


def test_an_absent_model_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"Offline, use gpt2\('tiny'\)"):
        zoo.gpt2("no-such-folder/no-such-model")


def test_kneser_ney_is_a_distribution_and_beats_uniform():
    from hra.zoo.evaluate import KneserNey

    g = torch.Generator().manual_seed(0)
    ids = (torch.rand(400, generator=g) ** 2 * 10).long().tolist()
    lm = KneserNey(ids, 3, 10)
    for history in ((), (1,), (0, 1), (7, 7), (9, 9)):
        assert sum(lm.probability(history, w) for w in range(10)) == pytest.approx(1.0)
    assert lm.bits(ids) < 400 * 3.3219


def test_generation_is_seeded():
    model, tok = zoo.gpt2("tiny"), zoo.tokenizer("tiny")
    a, b = (zoo.generate(model, tok, "The whale", 8, seed=4) for _ in range(2))
    assert a == b and a.startswith("The whale")


def test_import_hra_names_lazily():
    assert "zoo" in dir(hra)
    with pytest.raises(AttributeError, match="hra has no attribute 'Lora'"):
        _ = hra.Lora
