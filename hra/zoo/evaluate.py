"""What the zoo's models know, beside simple rivals; writes each one's evaluation.json
and its card README.md.

    python -m hra.zoo.evaluate [gpt2-tiny] [vit-tiny] [vit-tiny-0-5]    # default: all

gpt2-tiny: bits a character beside a Kneser–Ney 5-gram and xz, on the same held-out
text. The ViTs: accuracy beside the three nearest neighbours among the training pixels.

The 5-gram (interpolated, one discount per order, Kneser & Ney 1995; Chen & Goodman
1999) runs over the same tokens and is trained on the same text as the model. xz is
given the training text first, then charged for what the test adds.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch
from torch import Tensor

from hra import data, zoo
from hra.data import digits

FOLDER = Path(__file__).parent / "gpt2-tiny"
LIMIT = 200_000


class KneserNey:
    """Interpolated Kneser–Ney over token ids: p(w | h) = max(c(hw) − D, 0) / c(h·) + D
    N₊(h·) / c(h·) p(w | h′).
    """

    def __init__(self, ids: list[int], order: int, vocabulary: int) -> None:
        self.order, self.vocabulary = order, vocabulary
        self.counts: list[Counter] = [Counter() for _ in range(order)]
        self.counts[-1] = Counter(zip(*(ids[i:] for i in range(order)), strict=False))
        for n in range(order - 1, 0, -1):  # lower orders count distinct left contexts
            self.counts[n - 1] = Counter(gram[1:] for gram in self.counts[n])
        self.totals: list[dict] = []
        self.kinds: list[dict] = []
        self.discounts = []
        for counts in self.counts:
            total: dict = defaultdict(int)
            kind: dict = defaultdict(int)
            for gram, c in counts.items():
                total[gram[:-1]] += c
                kind[gram[:-1]] += 1
            ones, twos = (sum(c == k for c in counts.values()) for k in (1, 2))
            self.totals.append(total)
            self.kinds.append(kind)
            self.discounts.append(ones / (ones + 2 * twos) if ones else 0.5)

    def probability(self, history: tuple, word: int) -> float:
        p = 1 / self.vocabulary
        for n in range(1, self.order + 1):
            h = history[len(history) - n + 1 :]
            total = self.totals[n - 1].get(h)
            if not total:
                break
            d = self.discounts[n - 1]
            p = (
                max(self.counts[n - 1].get((*h, word), 0) - d, 0) / total
                + d * self.kinds[n - 1][h] / total * p
            )
        return p

    def bits(self, ids: list[int]) -> float:
        return -sum(
            math.log2(
                self.probability(tuple(ids[max(0, i - self.order + 1) : i]), ids[i])
            )
            for i in range(1, len(ids))
        )


def xz_bits(train: str, test: str) -> int:
    """Bits that `test` adds to an xz file of `train`."""
    size = [
        len(lzma.compress(t.encode(), preset=9 | lzma.PRESET_EXTREME))
        for t in (train, train + test)
    ]
    return 8 * (size[1] - size[0])


def neighbours(train: tuple[Tensor, Tensor], images: Tensor, k: int = 3) -> Tensor:
    """The class most frequent among the k nearest training images (Euclidean, on
    pixels; ties go to the nearest).
    """
    x, y = train
    near = torch.cdist(images.flatten(1), x.flatten(1)).topk(k, largest=False).indices
    votes = (
        torch.nn.functional.one_hot(y[near], 10).float()
        * torch.tensor([1.0, 0.9, 0.8])[:k, None]
    )
    return votes.sum(1).argmax(1)


def vit(name: str) -> None:
    folder = Path(__file__).parent / name
    model = zoo.vit(name.removeprefix("vit-"))
    log = json.loads((folder / "log.json").read_text())
    classes = log["setting"]["classes"]
    train = digits.digits("train", classes)
    sets = {"held out": digits.digits("test", classes)} | {
        k: digits.shifted(k, "test", classes) for k in digits.SHIFTS
    }
    table = {
        k: {
            name: digits.accuracy(model, x, y),
            "3 nearest neighbours": (neighbours(train, x) == y).float().mean().item(),
        }
        for k, (x, y) in sets.items()
    }
    for k, row in table.items():
        print(name, k, row)
    ours = {k: round(row[name], 4) for k, row in table.items()}
    (folder / "evaluation.json").write_text(
        json.dumps(
            {
                "accuracy": ours,
                "neighbours": {
                    k: round(row["3 nearest neighbours"], 4) for k, row in table.items()
                },
            },
            indent=1,
        )
        + "\n"
    )
    every, c = log["log"], model.config
    every = every if len(every) < 12 else [*every[::2], every[-1]]
    lines = [
        f"# {name}",
        "",
        f"A ViT of {sum(p.numel() for p in model.parameters()):,} parameters (width "
        f"{c.hidden_size}, "
        f"{c.num_hidden_layers} layers, {c.num_attention_heads} heads, patches of "
        f"{c.patch_size} × {c.patch_size}), "
        f"trained from scratch by `python -m hra.zoo.pretrain {name}` on "
        f"{log['setting']['images']:,} MNIST digits "
        f"({classes[0]} to {classes[-1]}), "
        "turned by up to 15 degrees and moved by up to 2 pixels. Its head has ten "
        "classes.",
        "",
        f"Setting: {json.dumps(log['setting'])}. Stored as fp16; "
        f'`hra.zoo.vit("{name.removeprefix("vit-")}")` gives fp32. '
        "This card is written by `python -m hra.zoo.evaluate`.",
        "",
        "## Accuracy on test images",
        "",
        f"| images | {name} | 3 nearest neighbours |",
        "|---|---|---|",
        *(
            f"| {k} ({len(sets[k][1]):,}) | "
            + " | ".join(f"{a:.1%}" for a in r.values())
            + " |"
            for k, r in table.items()
        ),
        "",
        "Both have seen the same training images, the neighbours without the turns "
        "and moves. `hra.data.digits.shifted` makes "
        "the other sets.",
        "",
        "## Loss (nats an image)",
        "",
        "| step | train (one batch) | validation | seconds |",
        "|---|---|---|---|",
        *(
            f"| {e['step']} | {e['train']:.3f} | {e['validation']:.3f} | "
            f"{e['seconds']} |"
            for e in every
        ),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def gpt2_tiny() -> None:
    model, tok = zoo.gpt2("tiny"), zoo.tokenizer("tiny")
    train = data.text("sotu")
    ids = data.tokens(tok, "sotu").tolist()
    rival = KneserNey(ids, 5, len(tok))
    table = {}
    for corpus in data.CORPORA:
        text = data.text(corpus, "test")[:LIMIT]
        own = [tok.eos_token_id, *tok(text, verbose=False)["input_ids"]]
        table[corpus] = {
            "gpt2-tiny": data.bits_per_character(model, tok, text, stride=32),
            "5-gram, Kneser–Ney": rival.bits(own) / len(text),
            "xz": xz_bits(train, text) / len(text),
        }
        table[corpus] = {k: round(v, 3) for k, v in table[corpus].items()}
        print(corpus, table[corpus], flush=True)
    prompts = (
        "The people of the United States",
        "Our relations with Great Britain",
        "I ask the Congress",
    )
    samples = [zoo.generate(model, tok, p, 60, 0.7, seed=0) for p in prompts]
    log = json.loads((FOLDER / "log.json").read_text())
    (FOLDER / "evaluation.json").write_text(
        json.dumps(
            {"characters": LIMIT, "bits_per_character": table, "samples": samples},
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )
    card(model, log, table, samples)


def card(model, log: dict, table: dict, samples: list[str]) -> None:
    rivals = list(next(iter(table.values())))
    every = log["log"][:: max(1, len(log["log"]) // 8)]
    every = every if every[-1] is log["log"][-1] else [*every, log["log"][-1]]
    lines = [
        "# gpt2-tiny",
        "",
        f"A GPT-2 of {sum(p.numel() for p in model.parameters()):,} parameters (width "
        "192, 6 layers, 6 heads, context 128, "
        "byte-level BPE of 2,048), trained from scratch by `python -m "
        "hra.zoo.pretrain gpt2-tiny` on the train part of the "
        "State of the Union addresses. Moby Dick and the Jargon File were never read.",
        "",
        f"Setting: {json.dumps(log['setting'])}. Stored as fp16; "
        '`hra.zoo.gpt2("tiny")` gives fp32. '
        "This card is written by `python -m hra.zoo.evaluate`.",
        "",
        f"## Bits a character (first {LIMIT:,} characters of each test part)",
        "",
        "| text | " + " | ".join(rivals) + " |",
        "|---|" + "---|" * len(rivals),
        *(
            f"| {c} | " + " | ".join(f"{row[r]:.3f}" for r in rivals) + " |"
            for c, row in table.items()
        ),
        "",
        "The 5-gram has the model's tokens and training text; xz is charged for what "
        "the test text adds to the training text. "
        "The model sees at least 96 tokens before almost every token that it predicts "
        "(windows of 128 that overlap).",
        "",
        "## Loss (nats a token)",
        "",
        "| step | train (one batch) | validation | seconds |",
        "|---|---|---|---|",
        *(
            f"| {e['step']} | {e['train']:.3f} | {e['validation']:.3f} | "
            f"{e['seconds']} |"
            for e in every
        ),
        "",
        "## Samples (temperature 0.7, seed 0)",
        "",
        *(f"> {s.replace(chr(10), ' ')}\n" for s in samples),
    ]
    (FOLDER / "README.md").write_text("\n".join(lines).rstrip() + "\n")


def main(names: list[str]) -> None:
    for name in names or ["gpt2-tiny", *zoo._VITS.values()]:
        if name == "gpt2-tiny":
            gpt2_tiny()
        elif name in zoo._VITS.values():
            vit(name)
        else:
            raise SystemExit(
                f"{name} is no model of the zoo: gpt2-tiny, "
                f"{', '.join(zoo._VITS.values())}."
            )


if __name__ == "__main__":
    main(sys.argv[1:])
