"""Tasks as text: a prompt and what should follow it. Classification of the addresses,
tables to be put into words, and three needs that MoRA's paper tells apart (Jiang et
al., 2024, arXiv:2405.12130): memory, reasoning, a format.

party        a passage of an address; Democratic or Republican?
century      a passage of an address; 1800s or 1900s?
table        attributes of a house to let; a sentence that says them all (in the
             spirit of the E2E data: Novikova et al., 2017, arXiv:1706.09254; grammar
             and words are our own)
uuid         a random UUID and a colon; another one, which only memory can know
sum          two numbers below 100; their sum
instruction  one of four instructions and some words; what it asks for
"""

from __future__ import annotations

import itertools
import math
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hra.data import SPLITS, split

TASKS = ("party", "century", "table", "uuid", "sum", "instruction")
LABELS = {"party": ("Democratic", "Republican"), "century": ("1800s", "1900s")}
_EACH = 20  # passages of an address
_PASSAGE = (
    240  # characters of an address: with its prompt inside the zoo model's context
)


# what knowing the format alone gets right of 32 hexadecimal digits: the version is
# always 4, the variant one of four, the others are one of sixteen
UUID_CHANCE = (1 + 1 / 4 + 30 / 16) / 32
_UUID_DIGITS = [i for i in range(36) if i not in (8, 13, 18, 23)]


@dataclass(frozen=True)
class Example:
    """`prompt` is given; `completion` (it begins with a space, but a UUID) is what the
    model is to say.
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
    attributes, no pair of numbers, no instruction with its words is in two parts. uuid:
    fresh pairs for each part and seed, 128 without a `count`. Raises ValueError for
    another task or part.
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
    if task == "uuid":
        return [_uuids(rng) for _ in range(128 if count is None else count)]
    makers = {"table": _tables, "sum": _sums, "instruction": _instructions}
    made = makers[task](part, rng) if task in makers else _passages(task, part, rng)
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


def _uuids(rng: random.Random) -> Example:
    """The format of the paper's authors: key, colon, value, without a space."""
    key, value = (uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(2))
    return Example(f"{key}:", str(value))


def _part(every: list[Any], part: str, what: str) -> list[Any]:
    """80, 10 or 10 % of `every`, whatever the seed."""
    random.Random(f"hra {what}").shuffle(every)
    a, b = round(0.8 * len(every)), round(0.9 * len(every))
    return {"train": every[:a], "validation": every[a:b], "test": every[b:]}[part]


def _sums(part: str, rng: random.Random) -> list[Example]:
    every = _part(list(itertools.product(range(100), repeat=2)), part, "sums")
    rng.shuffle(every)
    return [Example(f"{a} + {b} =", f" {a + b}") for a, b in every]


_WORDS = "river harbor market forest tower bridge garden mill road island".split()
_INSTRUCTIONS = {
    "Write the words in capitals.": lambda w: " ".join(w).upper(),
    "Write the words in reverse order.": lambda w: " ".join(w[::-1]),
    "Write the first word.": lambda w: w[0],
    "Write the words with commas.": lambda w: ", ".join(w),
}


def _instructions(part: str, rng: random.Random) -> list[Example]:
    every = list(itertools.product(_INSTRUCTIONS, itertools.permutations(_WORDS, 3)))
    chosen = _part(every, part, "instructions")
    rng.shuffle(chosen)
    return [
        Example(
            f"Instruction: {what}\nInput: {' '.join(words)}\nResponse:",
            f" {_INSTRUCTIONS[what](list(words))}",
        )
        for what, words in chosen
    ]


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


@torch.no_grad()
def recall(
    model: Any, tokenizer: Any, rows: Sequence[Example], batch: int = 32
) -> dict[str, float]:
    """What the model says of the completions, decoding greedily.

    exact: the share that it says to the letter. characters: the share of their
    characters in the right place; of UUIDs the 32 hexadecimal digits alone, where
    knowing the format gives `UUID_CHANCE`. bits: the code length of all completions
    under the model, each with its end of text, summed; how far it falls in training
    says how much was learnt (122 random bits stand in a UUID).
    """
    if not rows:
        raise ValueError("there is no example to recall.")
    was_training = model.training
    model.eval()
    exact = right = wanted = 0
    nats = 0.0
    try:
        for i in range(0, len(rows), batch):
            some = rows[i : i + batch]
            for e, said in zip(some, _say(model, tokenizer, some), strict=True):
                own = e.completion
                is_uuid = len(own) == 36 and own.count("-") == 4
                places = _UUID_DIGITS if is_uuid else list(range(len(own)))
                exact += said == own
                right += sum(said[k : k + 1] == own[k] for k in places)
                wanted += len(places)
            b = _padded(tokenizer, [(e.prompt, e.completion) for e in some], 10**6)
            labels = b.pop("labels")[:, 1:]
            logits = model(**b).logits[:, :-1].float()
            nats += torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=-100, reduction="sum"
            ).item()
    finally:
        model.train(was_training)
    bits = nats / math.log(2)
    return {"exact": exact / len(rows), "characters": right / wanted, "bits": bits}


def _say(model: Any, tokenizer: Any, rows: Sequence[Example]) -> list[str]:
    """What the model writes after each prompt, until it ends the text."""
    prompts = tokenizer([e.prompt for e in rows], verbose=False)["input_ids"]
    longest = max(
        len(ids) for ids in tokenizer([e.completion for e in rows])["input_ids"]
    )
    width, end = max(map(len, prompts)), tokenizer.eos_token_id
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=longest + 2,
        do_sample=False,
        pad_token_id=end,
    )
    return tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
