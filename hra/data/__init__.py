"""Real text in the repository, split by document, and packed into batches.

Corpora (sources and licences in `hra/data/text/README.md`):
  `sotu`       State of the Union addresses, 1790-2021: the zoo's general corpus
  `moby_dick`  Moby-Dick; or, The Whale (Melville, 1851): an adaptation domain
  `jargon`     The Jargon File 4.4.7: an adaptation domain, an informal dictionary
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hra.data.packed import unpacked

CORPORA = ("sotu", "moby_dick", "jargon")
SPLITS = ("train", "validation", "test")
_FOLDER = Path(__file__).parent / "text"


@cache
def documents(corpus: str) -> list[dict[str, Any]]:
    """Every document of a corpus, in order: dicts with `id`, `text` and what the source
    knows (year, party, title, …).

    Raises ValueError for a corpus that does not exist.
    """
    if corpus not in CORPORA:
        raise ValueError(
            f"corpus={corpus!r} does not exist. The corpora are {', '.join(CORPORA)}."
        )
    text = unpacked(_FOLDER / f"{corpus}.jsonl.xz").decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def split(corpus: str, part: str = "train", seed: int = 0) -> list[dict[str, Any]]:
    """The documents of one part: 80 % train, 10 % validation, 10 % test, drawn by whole
    documents from `seed`.

    No document is in two parts, and the zoo's models saw seed 0's `sotu` train part
    only.
    """
    if part not in SPLITS:
        raise ValueError(
            f"part={part!r} does not exist. The parts are {', '.join(SPLITS)}."
        )
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
    """The part as one int64 vector of token ids, an end-of-text token after every
    document.
    """
    ids = tokenizer([d["text"] for d in split(corpus, part, seed)], verbose=False)[
        "input_ids"
    ]
    return torch.tensor([t for doc in ids for t in [*doc, tokenizer.eos_token_id]])


def lm_batches(
    ids: Tensor, batch: int = 16, length: int = 128, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Endless language-model batches: `batch` windows of `length` tokens at random
    offsets of `ids`.

    The same seed gives the same batches on every machine. Each batch is {"input_ids",
    "labels"}, (batch, length) int64, the labels equal to the inputs (transformers
    shifts them).
    """
    if len(ids) < length:
        raise ValueError(
            f"{len(ids)} tokens cannot fill a window of length={length}; give more "
            "text or a shorter window."
        )
    generator = torch.Generator().manual_seed(seed)
    windows = torch.arange(length)
    while True:
        start = torch.randint(len(ids) - length + 1, (batch, 1), generator=generator)
        x = ids[start + windows]
        yield {"input_ids": x, "labels": x}


@torch.no_grad()
def bits_per_character(
    model: Any,
    tokenizer: Any,
    string: str,
    batch: int = 16,
    limit: int | None = None,
    stride: int | None = None,
    length: int | None = None,
) -> float:
    """Cost of `string` under a causal language model, in bits a character of the string
    (lower is better).

    The text, after an end-of-text token, is cut into windows of the model's context;
    every token is paid for once. With `stride=None` each window is predicted from its
    own beginning; with a smaller `stride` windows overlap and only the last `stride`
    tokens of each are counted, so that (almost) every token has context: dearer to
    compute, and lower. `limit` takes only the first so many characters; `length` makes
    the windows shorter than the context (room for a prompt).
    """
    string = string[:limit]
    length = model.config.n_positions if length is None else length
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(
            f"stride={stride} is out of range: 1 to the window's {length} tokens."
        )
    ids = torch.tensor(
        [tokenizer.eos_token_id, *tokenizer(string, verbose=False)["input_ids"]]
    )
    x, y = ids[:-1], ids[1:]
    inputs, labels, done = [], [], 0
    while done < len(y):
        end = min(len(y), length if done == 0 else done + stride)
        begin = max(0, end - length)
        target = y[begin:end].clone()
        target[: done - begin] = -100  # counted by an earlier window
        inputs.append(
            torch.nn.functional.pad(x[begin:end], (0, length - (end - begin)))
        )
        labels.append(
            torch.nn.functional.pad(target, (0, length - (end - begin)), value=-100)
        )
        done = end
    was_training, nats = model.training, 0.0
    model.eval()
    for i in range(0, len(inputs), batch):
        logits = (
            model(input_ids=torch.stack(inputs[i : i + batch]))
            .logits.flatten(0, 1)
            .float()
        )
        nats += torch.nn.functional.cross_entropy(
            logits,
            torch.stack(labels[i : i + batch]).flatten(),
            ignore_index=-100,
            reduction="sum",
        ).item()
    model.train(was_training)
    return nats / math.log(2) / len(string)


# at the end: tasks reads the corpora above
from hra.data import digits, tasks  # noqa: E402, F401
