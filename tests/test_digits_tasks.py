"""Digits, the ViTs that have seen them, and the tasks made of text."""

import hashlib
import itertools
import json
import math
import shutil
import uuid

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

import hra
from hra import zoo
from hra.data import digits, tasks


def test_parts_are_disjoint_and_complete():
    images = [digits.digits(p)[0] for p in digits.PARTS]
    assert [len(x) for x in images] == [8000, 1000, 1000]
    chosen = [set(digits._part(10_000, "mnist", p, 0).tolist()) for p in digits.PARTS]
    assert len(set.union(*chosen)) == 10_000 == sum(map(len, chosen))
    assert (
        images[0].shape[1:] == (1, 28, 28)
        and images[0].min() == 0
        and images[0].max() == 1
    )
    assert (
        abs(images[0].mean() - digits.MEAN) < 5e-3
        and abs(images[0].std() - digits.STD) < 5e-3
    )


def test_classes_and_shifts():
    x, y = digits.digits("test", classes=(6, 7))
    assert set(y.tolist()) == {6, 7} and len(x) == len(y)
    plain, labels = digits.digits("test")
    for kind in digits.SHIFTS:
        x, y = digits.shifted(kind, "test")
        assert (
            x.shape[1:] == (1, 28, 28)
            and x.min() >= 0
            and x.max() <= 1
            and len(x) == len(y)
        )
        if kind != "uci":
            assert torch.equal(y, labels) and not torch.equal(x, plain)
            assert torch.equal(x, digits.shifted(kind, "test")[0])
    assert_close(digits.shifted("inverted", "test")[0], 1 - plain)
    assert_close(
        digits.rotate(plain[:5], torch.full((5,), 90.0)),
        plain[:5].rot90(1, (2, 3)),
        rtol=0,
        atol=1e-4,
    )
    assert_close(digits.rotate(plain[:5], torch.zeros(5)), plain[:5], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: digits.digits("dev"), "part='dev' .* train, validation, test"),
        (lambda: digits.shifted("blurred"), "uci, rotated"),
        (lambda: digits.digits(classes=[3, 12]), "digits 0 to 9"),
        (lambda: digits.digits(classes=[]), "digits 0 to 9"),
        (
            lambda: next(
                digits.image_batches(torch.empty(0, 1, 28, 28), torch.empty(0))
            ),
            "no image",
        ),
        (lambda: tasks.examples("sentiment"), "party, century, table"),
        (lambda: tasks.examples("table", "dev"), "The parts are"),
        (lambda: next(tasks.batches(None, [])), "no example"),
    ],
)
def test_errors_say_what_exists(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("augment", [False, True])
def test_image_batches_come_from_the_seed(augment):
    x, y = digits.digits("validation")
    a, b, c = (
        next(digits.image_batches(x, y, 16, seed, augment)) for seed in (0, 0, 1)
    )
    assert torch.equal(a["pixel_values"], b["pixel_values"]) and not torch.equal(
        a["pixel_values"], c["pixel_values"]
    )
    assert (
        a["pixel_values"].shape == (16, 1, 28, 28) and a["labels"].dtype == torch.int64
    )


@pytest.mark.parametrize(
    ("name", "classes"), [("tiny", range(10)), ("tiny-0-5", range(6))]
)
def test_the_vits_read_held_out_digits(name, classes):
    model = zoo.vit(name)
    right = digits.accuracy(model, *digits.digits("test", tuple(classes)))
    card = json.loads((zoo._HERE / zoo._VITS[name] / "evaluation.json").read_text())
    assert right >= 0.97 and abs(right - card["accuracy"]["held out"]) < 0.005
    assert (zoo._HERE / zoo._VITS[name] / "model.safetensors").stat().st_size <= 4e6
    assert (
        0.7e6 < sum(p.numel() for p in model.parameters()) < 1.5e6
        and not model.training
    )


def test_a_damaged_vit_is_refused(tmp_path, monkeypatch):
    shutil.copytree(zoo._HERE / "vit-tiny", tmp_path / "vit-tiny")
    raw = bytearray((tmp_path / "vit-tiny/model.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "vit-tiny/model.safetensors").write_bytes(raw)
    assert (
        hashlib.sha256(raw).hexdigest()
        not in (tmp_path / "vit-tiny/SHA256SUMS").read_text()
    )
    monkeypatch.setattr(zoo, "_HERE", tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.safetensors of hra's vit-tiny is damaged"
    ):
        zoo.vit("tiny")


def test_absent_vit_says_what_to_do():
    with pytest.raises(
        OSError, match=r"neither a model of hra \(tiny, tiny-0-5\).*use vit\('tiny'\)"
    ):
        zoo.vit("no/such-model")
    with pytest.raises(TypeError, match=r"belong to vit\('random'"):
        zoo.vit("tiny", hidden_size=3)


@pytest.mark.parametrize("method", [hra.LoRA, hra.FullFT])
def test_a_vit_learns_new_digits(method):
    x, y = digits.digits("train", (6, 7, 8, 9))
    model = zoo.vit("tiny-0-5")
    before = digits.accuracy(model, *digits.digits("validation", (6, 7)))
    targets = "q_proj|v_proj|fc1|fc2|classifier"
    tuned = hra.attach(
        model, method, targets=targets, **({"r": 8} if method is hra.LoRA else {})
    )
    hra.fit(tuned, digits.image_batches(x, y, 32), steps=40, lr=3e-3, progress=False)
    assert (
        before < 0.05
        and digits.accuracy(model, *digits.digits("validation", (6, 7))) > 0.5
    )


@pytest.mark.parametrize("task", tasks.TASKS)
def test_task_parts_share_nothing_and_are_drawn_from_the_seed(task):
    rows = {p: tasks.examples(task, p) for p in ("train", "validation", "test")}
    for a, b in itertools.combinations(rows.values(), 2):
        assert not {e.prompt for e in a} & {e.prompt for e in b}
    assert (
        tasks.examples(task, "test", 5)
        == rows["test"][:5]
        != tasks.examples(task, "test", 5, seed=1)
    )
    if task in tasks.LABELS:
        counts = [
            sum(e.completion == f" {label}" for e in rows["train"])
            for label in tasks.LABELS[task]
        ]
        assert counts[0] == counts[1] > 100
    elif task == "table":
        assert all(
            tasks.says_everything(e.prompt, e.completion)
            for e in rows["train"] + rows["test"]
        )
        assert not tasks.says_everything(
            rows["test"][0].prompt, rows["test"][1].completion
        )


def test_a_uuid_is_random_but_for_its_format():
    rows = tasks.examples("uuid", count=4000, seed=3)
    assert len(tasks.examples("uuid")) == 128
    values = [e.completion for e in rows] + [e.prompt[:-1] for e in rows]
    assert len(set(values)) == 8000
    assert all(str(uuid.UUID(v)) == v and v[14] == "4" for v in values)
    assert {v[19] for v in values} == set("89ab")
    # what the best guess of a place gets right, by simulation
    guess = ["4" if i == 14 else "8" if i == 19 else "7" for i in range(36)]
    places = [i for i in range(36) if i not in (8, 13, 18, 23)]
    right = [[v[i] == guess[i] for i in places] for v in values]
    assert abs(np.mean(right) - tasks.UUID_CHANCE) < 0.003
    assert round(100 * tasks.UUID_CHANCE, 2) == 9.77


def test_sums_and_instructions_are_right():
    rows = tasks.examples("sum", "train") + tasks.examples("sum", "test")
    assert len(rows) == 9000
    for e in rows:
        a, b = e.prompt.removesuffix(" =").split(" + ")
        assert int(a) + int(b) == int(e.completion) and e.completion[0] == " "
    e = tasks.examples("instruction", "test")
    assert len(e) == 288
    for x in e:
        words = x.prompt.split("Input: ")[1].split("\n")[0].split()
        said = {
            "capitals.": " ".join(words).upper(),
            "order.": " ".join(reversed(words)),
            "word.": words[0],
            "commas.": ", ".join(words),
        }[x.prompt.split("\n")[0].split()[-1]]
        assert x.completion == f" {said}"


def test_recall_counts_what_the_model_says(monkeypatch):
    model, tok = zoo.gpt2("tiny"), zoo.tokenizer("tiny")
    rows = tasks.examples("uuid", count=5) + tasks.examples("sum", count=2)
    said = [e.completion for e in rows]
    said[1] = said[1][:-1] + ("0" if said[1][-1] != "0" else "1")  # one digit
    said[2] = said[2][:8] + "+" + said[2][9:]  # a hyphen, which is no digit
    said[3] = ""
    monkeypatch.setattr(tasks, "_say", lambda m, t, some: said[: len(some)])
    found = tasks.recall(model, tok, rows)
    wanted = 5 * 32 + sum(len(e.completion) for e in rows[5:])
    assert found["exact"] == 4 / 7
    assert found["characters"] == (wanted - 1 - 32) / wanted
    nats = 0.0
    for e in rows:  # each alone, without a padding
        b = tasks._padded(tok, [(e.prompt, e.completion)], 128)
        nats += model(**b).loss.item() * int((b["labels"] >= 0).sum())
    assert found["bits"] == pytest.approx(nats / math.log(2), rel=1e-4)
    with pytest.raises(ValueError, match="no example"):
        tasks.recall(model, tok, [])


def test_what_was_memorised_is_said():
    """Prompts of several lengths, padded on the left, decoded together."""
    model, tok = zoo.gpt2("tiny"), zoo.tokenizer("tiny")
    rows = tasks.examples("uuid", count=1) + tasks.examples("sum", count=1)
    tuned = hra.attach(model, hra.FullFT, targets="c_attn|c_proj|c_fc")
    before = tasks.recall(model, tok, rows)
    hra.fit(tuned, tasks.batches(tok, rows, 4), 100, 2e-3, progress=False)
    after = tasks.recall(model, tok, rows)
    assert before["exact"] == 0 and after["exact"] == after["characters"] == 1
    assert after["bits"] < 0.05 * before["bits"]


def test_only_completions_are_counted():
    tok = zoo.tokenizer("tiny")
    rows = tasks.examples("party", "train", 50)
    b = next(tasks.batches(tok, rows, 8, 96))
    assert (
        b["input_ids"].shape == b["labels"].shape == b["attention_mask"].shape
        and b["input_ids"].shape[1] <= 96
    )
    for ids, labels, mask in zip(
        b["input_ids"], b["labels"], b["attention_mask"], strict=True
    ):
        assert (
            tok.decode(ids[labels >= 0]).replace(tok.eos_token, "").strip()
            in tasks.LABELS["party"]
        )
        assert not mask[mask.argmin() :].any() or mask.all()
    assert torch.equal(
        b["input_ids"], next(tasks.batches(tok, rows, 8, 96))["input_ids"]
    )


def test_accuracy_is_the_likelier_label():
    model, tok = zoo.gpt2("tiny"), zoo.tokenizer("tiny")
    rows = tasks.examples("century", "validation", 12)
    share = tasks.accuracy(model, tok, rows, tasks.LABELS["century"])
    swapped = [
        tasks.Example(e.prompt, " 1900s" if e.completion == " 1800s" else " 1800s")
        for e in rows
    ]
    assert share + tasks.accuracy(
        model, tok, swapped, tasks.LABELS["century"]
    ) == pytest.approx(1.0)


def test_the_processor_is_what_the_model_expects():
    model, (images, labels) = zoo.vit("tiny"), digits.digits("test")
    prepare = zoo.processor("tiny")

    @torch.no_grad()
    def right(pixels):
        return (model(pixel_values=pixels).logits.argmax(1) == labels).double().mean()

    pixels = prepare(images)["pixel_values"]
    assert right(pixels) == digits.accuracy(model, images, labels) > 0.97
    assert right(images) < 0.5  # as they are: what the processor is for
    batch = next(digits.image_batches(images, labels, 8, seed=0))
    drawn = torch.randint(len(images), (8,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch["pixel_values"], pixels[drawn])


def test_the_processor_takes_what_a_transformers_processor_takes():
    image = pytest.importorskip("PIL.Image")
    prepare, images = zoo.processor("tiny"), digits.digits("test")[0][:3]
    want = prepare(images, return_tensors="pt")["pixel_values"]
    grey = (255 * images).round().to(torch.uint8)
    pictures = [image.fromarray(g[0].numpy()) for g in grey]
    for given in (
        images[:, 0],
        images.numpy(),
        list(images),
        list(images[:, 0].numpy()),
        grey,
        pictures,
        [p.convert("RGB") for p in pictures],
    ):
        torch.testing.assert_close(prepare(given)["pixel_values"], want)
    assert prepare(pictures[0])["pixel_values"].shape == (1, 1, 28, 28)
    assert prepare(images, return_tensors="np")["pixel_values"].dtype == np.float32
    look = transformers.pipeline(
        "image-classification", model=zoo.vit("tiny"), image_processor=prepare
    )
    with torch.no_grad():
        best = zoo.vit("tiny")(pixel_values=want).logits.argmax(1)
    said = [look(p)[0]["label"] for p in pictures]
    assert said == [f"LABEL_{k}" for k in best.tolist()]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(2, 3, 28, 28), r"shape \(2, 3, 28, 28\); needed"),
        (torch.zeros(1, 28, 27), "an image of shape"),
        (torch.zeros(28), "an image of shape"),
        (torch.zeros(1, 1, 1, 28, 28), "an image of shape"),
        (torch.full((28, 28), 255.0), "0 .paper. to 1 .ink., or uint8"),
        (torch.full((28, 28), -0.4), "Are they normalised already"),
        (torch.full((28, 28), float("nan")), "pixels from nan"),
        ([], "no image"),
    ],
)
def test_the_processor_refuses(given, words):
    with pytest.raises(ValueError, match=words):
        zoo.processor("tiny")(given)
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        zoo.processor("tiny")(torch.zeros(28, 28), return_tensors="tf")
    with pytest.raises(OSError, match=r"processor\('tiny'\)"):
        zoo.processor("no/such")
