"""Tasks as text: a prompt and what should follow it. Classification of the addresses,
and tables to be put into words.

party     a passage of an address; Democratic or Republican?
century   a passage of an address; 1800s or 1900s?
table     attributes of a house to let; a sentence that says them all (in the
          spirit of the E2E data: Novikova et al., 2017, arXiv:1706.09254; grammar and
          words are our own)
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hra.data import SPLITS, split

TASKS = ("party", "century", "table")
LABELS = {"party": ("Democratic", "Republican"), "century": ("1800s", "1900s")}
_EACH = 20  # passages of an address
_PASSAGE = (
    240  # characters of an address: with its prompt inside the zoo model's context
)


@dataclass(frozen=True)
class Example:
    """`prompt` is given; `completion` (it begins with a space) is what the model is to
    say.
    """

    prompt: str
    completion: str


def examples(
    task: str, part: str = "train", count: int | None = None, seed: int = 0
) -> list[Example]:
    """The examples of one part, in an order drawn from `seed`; `count` takes the first
    so many.

    party, century: as many of each label, the parts being those of the addresses
    (`hra.data.split`): no address is in two of them. table: no combination of
    attributes is in two parts. Raises ValueError for another task or part.
    """
    if task not in TASKS:
        raise ValueError(
            f"task={task!r} does not exist. The tasks are {', '.join(TASKS)}."
        )
    if part not in SPLITS:
        raise ValueError(
            f"part={part!r} does not exist. The parts are {', '.join(SPLITS)}."
        )
    rng = random.Random(f"hra task {task} {part} {seed}")
    made = _tables(part, rng) if task == "table" else _passages(task, part, rng)
    return made[:count]


def _passages(task: str, part: str, rng: random.Random) -> list[Example]:
    by_label: dict[str, list[Example]] = {label: [] for label in LABELS[task]}
    for d in split("sotu", part):
        label = d["party"] if task == "party" else f"{d['year'] // 100}00s"
        if label in by_label:
            words = d["text"].split()
            for i in range(_EACH):  # evenly over the address
                start = i * len(words) // _EACH
                passage = " ".join(words[start : start + _PASSAGE])[:_PASSAGE].rsplit(
                    " ", 1
                )[0]
                by_label[label].append(
                    Example(f"{passage}\n\n{task.capitalize()}:", f" {label}")
                )
    fewest = min(len(rows) for rows in by_label.values())
    made = [e for label in LABELS[task] for e in rng.sample(by_label[label], fewest)]
    rng.shuffle(made)
    return made


_SLOTS = {
    "kind": ("cottage", "farm", "mill", "chapel", "tower", "barn"),
    "rooms": ("two", "three", "four", "six", "nine"),
    "near": ("the river", "the railroad", "the harbor", "the forest", "the market"),
    "price": ("low", "moderate", "high"),
    "garden": ("yes", "no"),
}
_FORMS = (
    "The {kind} near {near} has {rooms} rooms and {garden}; its price is {price}.",
    "Near {near} there is a {kind} of {rooms} rooms, with {garden}, at a {price} "
    "price.",
    "For a {price} price you may have a {kind} with {rooms} rooms and {garden}, near "
    "{near}.",
)
_GARDEN = {"yes": "a garden", "no": "no garden"}


def _tables(part: str, rng: random.Random) -> list[Example]:
    every = list(itertools.product(*_SLOTS.values()))
    random.Random("hra tables").shuffle(every)  # the parts do not depend on the seed
    a, b = round(0.8 * len(every)), round(0.9 * len(every))
    made = []
    for values in {"train": every[:a], "validation": every[a:b], "test": every[b:]}[
        part
    ]:
        row = dict(zip(_SLOTS, values, strict=True))
        table = ", ".join(f"{k}: {v}" for k, v in row.items())
        sentence = rng.choice(_FORMS).format(
            **{**row, "garden": _GARDEN[row["garden"]]}
        )
        made.append(Example(f"{table}\n\nText:", f" {sentence}"))
    rng.shuffle(made)
    return made


def says_everything(table: str, sentence: str) -> bool:
    """Whether `sentence` holds every attribute of `table` (a prompt of the task
    "table").
    """
    row = dict(pair.split(": ", 1) for pair in table.split("\n")[0].split(", "))
    wanted = [
        row["kind"],
        f"{row['rooms']} rooms",
        f"ear {row['near']}",
        row["price"],
        _GARDEN[row["garden"]],
    ]
    return all(w in sentence for w in wanted)


def _padded(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], length: int
) -> dict[str, Tensor]:
    """{"input_ids", "attention_mask", "labels"}: padded on the right; only the
    completions are counted.
    """
    ids, labels = [], []
    for prompt, completion in pairs:
        p, c = (tokenizer(s, verbose=False)["input_ids"] for s in (prompt, completion))
        c = [*c, tokenizer.eos_token_id]
        if len(c) > length:
            raise ValueError(
                f"a completion of {len(c)} tokens does not fit in length={length}."
            )
        # what does not fit is cut off the prompt's beginning
        p = p[max(0, len(p) + len(c) - length) :]
        ids.append([*p, *c])
        labels.append([-100] * len(p) + c)
    width = max(map(len, ids))
    pad = [width - len(row) for row in ids]
    return {
        "input_ids": torch.tensor(
            [
                row + [tokenizer.eos_token_id] * k
                for row, k in zip(ids, pad, strict=True)
            ]
        ),
        "attention_mask": torch.tensor([[1] * (width - k) + [0] * k for k in pad]),
        "labels": torch.tensor(
            [row + [-100] * k for row, k in zip(labels, pad, strict=True)]
        ),
    }


def batches(
    tokenizer: Any,
    rows: Sequence[Example],
    batch: int = 8,
    length: int = 128,
    seed: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Endless batches drawn with replacement from `seed`; the loss is that of the
    completions alone.
    """
    if not rows:
        raise ValueError("there is no example to draw from.")
    rng = random.Random(f"hra batches {seed}")
    while True:
        yield _padded(
            tokenizer,
            [(e.prompt, e.completion) for e in rng.choices(rows, k=batch)],
            length,
        )


@torch.no_grad()
def accuracy(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Example],
    labels: Sequence[str],
    length: int = 128,
) -> float:
    """Share of the examples whose label the model finds likeliest of `labels` (by the
    sum of its tokens' log-probabilities).
    """
    was_training, right = model.training, 0
    model.eval()
    for e in rows:
        b = _padded(tokenizer, [(e.prompt, f" {label}") for label in labels], length)
        logits = (
            model(input_ids=b["input_ids"], attention_mask=b["attention_mask"])
            .logits[:, :-1]
            .float()
        )
        target = b["labels"][:, 1:]
        nats = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), target, ignore_index=-100, reduction="none"
        ).sum(1)
        right += f" {labels[int(nats.argmin())]}" == e.completion
    model.train(was_training)
    return right / len(rows)
