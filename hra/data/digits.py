"""Handwritten digits, and the shifts away from them (sources and licences in
`hra/data/image/README.md`).

Images are (N, 1, 28, 28) float32 from 0 (paper) to 1 (ink), labels (N,) int64.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hra.data.packed import unpacked

PARTS = ("train", "validation", "test")
SHIFTS = ("uci", "rotated", "inverted", "noisy")
SIDE = 28
MEAN, STD = 0.13, 0.31  # of the train part, to two figures
_FOLDER = Path(__file__).parent / "image"


@cache
def _load(name: str) -> tuple[Tensor, Tensor]:
    """(images as stored, uint8 (N, side, side), labels)."""
    table = np.load(io.BytesIO(unpacked(_FOLDER / f"{name}.npy.xz")))
    side = round((table.shape[1] - 1) ** 0.5)
    return torch.from_numpy(table[:, 1:].copy()).view(-1, side, side), torch.from_numpy(
        table[:, 0].astype(np.int64)
    )


def _part(count: int, name: str, part: str, seed: int) -> Tensor:
    if part not in PARTS:
        raise ValueError(
            f"part={part!r} does not exist. The parts are {', '.join(PARTS)}."
        )
    order = torch.randperm(
        count, generator=torch.Generator().manual_seed(seed + sum(name.encode()))
    )
    a, b = round(0.8 * count), round(0.9 * count)
    return (
        {"train": order[:a], "validation": order[a:b], "test": order[b:]}[part]
        .sort()
        .values
    )


def _classes(
    images: Tensor, labels: Tensor, classes: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    if classes is None:
        return images, labels
    wrong = [c for c in classes if c not in range(10)]
    if wrong or not classes:
        raise ValueError(
            f"classes={list(classes)!r}: the classes are the digits 0 to 9."
        )
    keep = torch.isin(labels, torch.tensor(list(classes)))
    return images[keep], labels[keep]


def digits(
    part: str = "train", classes: Sequence[int] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(images, labels) of one part of 10,000 MNIST digits: 80 % train, 10 % validation,
    10 % test, drawn from `seed`.

    classes: keep these digits only. The zoo's ViTs saw seed 0's train part. Raises
    ValueError for another part or digit.
    """
    images, labels = _load("mnist")
    chosen = _part(len(labels), "mnist", part, seed)
    return _classes(images[chosen].float()[:, None] / 255, labels[chosen], classes)


def shifted(
    kind: str, part: str = "train", classes: Sequence[int] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(images, labels) away from what the zoo's ViTs have seen.

    uci: other writers, another scanner: 8 × 8 pixels, enlarged to 20 × 20 (bilinear) in
    a frame of 28 × 28; rotated: by 45 degrees, counter-clockwise; inverted: black on
    white; noisy: Gaussian noise of 0.5 added, cut to [0, 1]. Raises ValueError for
    another kind, part or digit.
    """
    if kind not in SHIFTS:
        raise ValueError(
            f"kind={kind!r} does not exist. The shifts are {', '.join(SHIFTS)}."
        )
    if kind == "uci":
        small, labels = _load("uci")
        chosen = _part(len(labels), "uci", part, seed)
        large = F.interpolate(
            small[chosen].float()[:, None] / 16,
            size=20,
            mode="bilinear",
            align_corners=False,
        )
        return _classes(F.pad(large, (4, 4, 4, 4)), labels[chosen], classes)
    images, labels = digits(part, classes, seed)
    if kind == "inverted":
        return 1 - images, labels
    if kind == "noisy":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        return (images + 0.5 * noise).clamp(0, 1), labels
    return rotate(images, torch.full((len(images),), 45.0)), labels


def rotate(images: Tensor, degrees: Tensor, shift: Tensor | None = None) -> Tensor:
    """`images` turned counter-clockwise by `degrees` (N,) and moved by `shift` (N, 2),
    in halves of the image's size.
    """
    angle = torch.deg2rad(degrees)
    move = torch.zeros(len(images), 2) if shift is None else shift
    rows = torch.stack(
        [
            torch.cos(angle),
            -torch.sin(angle),
            move[:, 0],
            torch.sin(angle),
            torch.cos(angle),
            move[:, 1],
        ],
        1,
    )
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def pixel_values(images: Tensor) -> Tensor:
    """What the zoo's ViTs are fed, of `images` from 0 to 1: (image - MEAN) / STD.

    `hra.zoo.processor("tiny")` does it to images of any kind.
    """
    return (images - MEAN) / STD


def image_batches(
    images: Tensor,
    labels: Tensor,
    batch: int = 32,
    seed: int = 0,
    augment: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Endless batches {"pixel_values": (batch, 1, 28, 28), "labels"}, drawn with
    replacement from `seed`; the pixels as `pixel_values` makes them of the images.

    augment: each image turned by up to 15 degrees and moved by up to 2 pixels. Raises
    ValueError where there is no image.
    """
    if not len(images):
        raise ValueError("there is no image to draw from.")
    generator = torch.Generator().manual_seed(seed)
    while True:
        i = torch.randint(len(images), (batch,), generator=generator)
        x = images[i]
        if augment:
            turn = 30 * torch.rand(batch, generator=generator) - 15
            x = rotate(
                x, turn, 4 / 28 * (2 * torch.rand(batch, 2, generator=generator) - 1)
            )
        yield {"pixel_values": pixel_values(x), "labels": labels[i]}


@torch.no_grad()
def accuracy(model: Any, images: Tensor, labels: Tensor, batch: int = 250) -> float:
    """Share of the images whose label gets the highest score of `model`."""
    was_training, right = model.training, 0
    model.eval()
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        scores = model(pixel_values=pixel_values(x)).logits
        right += int((scores.argmax(1) == y).sum())
    model.train(was_training)
    return right / len(labels)
