"""Real text in the repository, split by document, and packed into batches.

Corpora (sources and licences in `hra/data/text/README.md`):
  `sotu`       State of the Union addresses, 1790-2021: the general corpus of the zoo's models
  `moby_dick`  Moby-Dick; or, The Whale (Melville, 1851): an adaptation domain
  `jargon`     The Jargon File 4.4.7: an adaptation domain, an informal dictionary
"""
from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CORPORA = ("sotu", "moby_dick", "jargon")
SPLITS = ("train", "validation", "test")
_FOLDER = Path(__file__).parent / "text"


@cache
def documents(corpus: str) -> list[dict[str, Any]]:
    """Every document of a corpus, in order: dicts with `id`, `text` and what the source knows (year, party, title, …).

    Raises ValueError for a corpus that does not exist.
    """
    if corpus not in CORPORA:
        raise ValueError(f"corpus={corpus!r} does not exist. The corpora are {', '.join(CORPORA)}.")
    with lzma.open(_FOLDER / f"{corpus}.jsonl.xz", "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def split(corpus: str, part: str = "train", seed: int = 0) -> list[dict[str, Any]]:
    """The documents of one part: 80 % train, 10 % validation, 10 % test, drawn by whole documents from `seed`.

    No document is in two parts, and the zoo's models saw seed 0's `sotu` train part only.
    """
    if part not in SPLITS:
        raise ValueError(f"part={part!r} does not exist. The parts are {', '.join(SPLITS)}.")
    docs = documents(corpus)
    order = list(range(len(docs)))
    random.Random(f"hra split {corpus} {seed}").shuffle(order)
    a, b = round(0.8 * len(docs)), round(0.9 * len(docs))
    chosen = {"train": order[:a], "validation": order[a:b], "test": order[b:]}[part]
    return [docs[i] for i in sorted(chosen)]


def text(corpus: str, part: str = "train", seed: int = 0) -> str:
    """The part's documents as one string, separated by blank lines."""
    return "\n\n".join(d["text"] for d in split(corpus, part, seed))


def tokens(tokenizer: Any, corpus: str, part: str = "train", seed: int = 0) -> Tensor:
    """The part as one int64 vector of token ids, an end-of-text token after every document."""
    ids = tokenizer([d["text"] for d in split(corpus, part, seed)], verbose=False)["input_ids"]
    return torch.tensor([t for doc in ids for t in [*doc, tokenizer.eos_token_id]])


def lm_batches(ids: Tensor, batch: int = 16, length: int = 128, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Endless language-model batches: `batch` windows of `length` tokens at random offsets of `ids`.

    The same seed gives the same batches on every machine. Each batch is {"input_ids", "labels"}, (batch, length)
    int64, the labels equal to the inputs (transformers shifts them).
    """
    if len(ids) < length:
        raise ValueError(f"{len(ids)} tokens cannot fill a window of length={length}; give more text or a shorter window.")
    generator = torch.Generator().manual_seed(seed)
    windows = torch.arange(length)
    while True:
        start = torch.randint(len(ids) - length + 1, (batch, 1), generator=generator)
        x = ids[start + windows]
        yield {"input_ids": x, "labels": x}


@torch.no_grad()
def bits_per_character(model: Any, tokenizer: Any, string: str, batch: int = 16, limit: int | None = None) -> float:
    """Cost of `string` under a causal language model, in bits a character of the string (lower is better).

    The text is cut into windows of the model's context, each predicted from its own beginning (an end-of-text token
    stands before it), so every token is paid for. `limit` takes only the first so many characters.
    """
    string = string[:limit]
    ids = torch.tensor(tokenizer(string, verbose=False)["input_ids"])
    length = model.config.n_positions - 1
    pad = -len(ids) % length
    padded = torch.cat([ids, ids.new_full((pad,), -100)]).view(-1, length)
    was_training, nats = model.training, 0.0
    model.eval()
    for labels in padded.split(batch):
        bos = labels.new_full((len(labels), 1), tokenizer.eos_token_id)
        inputs = torch.cat([bos, labels[:, :-1].clamp(min=0)], dim=1)
        logits = model(input_ids=inputs).logits
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum").item()
    model.train(was_training)
    return nats / torch.tensor(2.0).log().item() / len(string)
