"""A smoke run of what made the small models, and of the rules beside them."""

import json

import pytest
import torch

from hra import data, zoo
from hra.data import digits
from hra.zoo import evaluate, pretrain


def test_a_gpt2_is_pretrained_goes_on_where_it_stopped_and_is_exported(
    tmp_path, monkeypatch
):
    whole = data.split  # a tenth of the documents has enough words for every token
    monkeypatch.setattr(data, "split", lambda *which: whole(*which)[::10])
    pretrain.gpt2_tiny(tmp_path, steps=2, batch=2)
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["log"][-1]["step"] == 2 and log["log"][-1]["validation"] > 1
    model, tok = zoo.gpt2(str(tmp_path)), zoo.tokenizer(str(tmp_path))
    text = "Fellow citizens of the Senate"
    ids = torch.tensor([tok(text)["input_ids"]])
    assert tok.decode(ids[0]) == text
    assert torch.isfinite(model(ids).logits).all()
    assert (tmp_path / "checkpoint.pt").exists()
    pretrain.gpt2_tiny(tmp_path, steps=3, batch=2)  # from step 2
    again = json.loads((tmp_path / "log.json").read_text())["log"]
    assert [e["step"] for e in again] == [2, 3]


def test_a_vit_is_pretrained_on_the_digits_it_is_given(tmp_path):
    pretrain.vit_tiny(tmp_path, steps=2, classes=(0, 1), batch=8)
    model = zoo.vit(str(tmp_path))
    images, labels = digits.digits("test", (0, 1))
    assert model.config.num_labels == 10
    assert 0 <= digits.accuracy(model, images[:64], labels[:64]) <= 1


def test_the_learning_rate_warms_up_and_falls():
    rates = [pretrain.learning_rate(s, 1000, 1.0, warmup=100) for s in range(1000)]
    assert rates[:101] == sorted(rates[:101]) and max(rates) == pytest.approx(
        1, abs=0.02
    )
    assert rates[100:] == sorted(rates[100:], reverse=True) and rates[-1] < 0.05


def test_the_rules_that_the_models_are_compared_with():
    train = data.text("sotu", "validation")[:60_000]
    test = data.text("sotu", "test")[:2_000]
    bits = evaluate.xz_bits(train, test) / len(test)
    assert 0.5 < bits < 8
    assert evaluate.xz_bits(train, train[:2_000]) < bits * 2_000 / 4  # seen before
    images, labels = digits.digits("train", (0, 1))
    guess = evaluate.neighbours((images[:400], labels[:400]), images[400:500])
    assert (guess == labels[400:500]).float().mean() > 0.95
