"""Models and adapters packed for a page: safetensors in memory, matrices as int8 by
rows, vectors as fp16; and the scripts that bring them there.

A page opened from a disk may neither fetch nor import, but it may add a <script>: so a
file is a script that puts base64 into `globalThis.hraFiles`. Its name carries a hash of
what it holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hra import sparse
from hra.adapter import Adapter
from hra.data import digits

MOST_RANKS = 32  # of a change kept as factors
FOLDER = "HRA_SITE_FILES"  # environment: where the build of a site wants the scripts


def _rows(name: str, W: Tensor) -> dict[str, Tensor]:
    """`W` (rows, columns) as int8, a row's largest entry being ±127, and the rows'
    scales, fp16.
    """
    W = W.detach().float()
    scale = (W.abs().amax(1) / 127 * (1 + 2**-10)).half()  # not rounded below it
    q = (W / scale.float().clamp(min=1e-30)[:, None]).round().clamp(-127, 127)
    return {name: q.to(torch.int8), f"{name}.scale": scale}


def _file(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    return save(
        {k: v.contiguous() for k, v in tensors.items()},
        {"hra": json.dumps(about, sort_keys=True)},
    )


def unpack(data: bytes) -> dict[str, Tensor]:
    """A packed file's tensors in float32, int8 multiplied out; uint8 (gaps, grey
    values, labels) as it is.
    """
    held, out = load(data), {}
    for name, t in held.items():
        scale = held.get(f"{name}.scale")
        if scale is not None:
            t = (scale.float()[:, None] * t.view(len(scale), -1)).view(t.shape)
        if not name.endswith(".scale"):
            out[name] = t.float() if t.is_floating_point() else t
    return out


def vit(model: Any) -> bytes:
    """A transformers ViTForImageClassification of one channel."""
    c, tensors = model.config, dict[str, Tensor]()
    for name, p in model.named_parameters():
        W = p.detach()
        if name.endswith("projection.weight"):  # (d, 1, 7, 7): a row a patch's weights
            W = W.flatten(1)
        tensors |= _rows(name, W) if W.dim() == 2 else {name: W.flatten().half()}
    return _file(
        tensors,
        {
            "side": c.image_size,
            "patch": c.patch_size,
            "layers": c.num_hidden_layers,
            "heads": c.num_attention_heads,
            "eps": c.layer_norm_eps,
            "mean": digits.MEAN,
            "std": digits.STD,
        },
    )


def change(adapters: dict[str, Adapter]) -> bytes:
    """ΔW of every site: entries as gaps and values, or else factors in order of rank.

    site.gaps, site.values: as in an adapter file, int8 with one scale a matrix.
    site.factors (r, d_out + d_in): rows (b, a), ΔW = Σ b aᵀ, from the singular values:
    the first k are the best approximation of rank k. ValueError where ΔW has a rank
    above 32 and no list of entries.
    """
    tensors: dict[str, Tensor] = {}
    for site, a in adapters.items():
        index, values = a.entries()
        if index is not None:
            q = _rows(f"{site}.values", values.flatten()[None])
            q[f"{site}.values"] = q[f"{site}.values"][0]
            tensors |= q | {f"{site}.gaps": sparse.pack(index.cpu())}
            continue
        U, S, V = torch.linalg.svd(values.double(), full_matrices=False)
        r = int((S > 1e-6 * S[0]).sum())
        if r > MOST_RANKS:
            raise ValueError(
                f"the change at {site} has rank {r} and no list of entries: a page "
                f"takes entries, or factors of rank {MOST_RANKS} at most."
            )
        half = S[:r].sqrt()
        both = torch.cat([(U[:, :r] * half).T, half[:, None] * V[:r]], 1)
        tensors |= _rows(f"{site}.factors", both)
    return _file(tensors, {"sites": list(adapters)})


def about(data: bytes) -> dict[str, Any]:
    """A packed change: `ranks`, the most of a site's (0: a list of entries), and
    `numbers`, how many are kept at 0 to 8 eighths.
    """
    held = load(data)
    factors = [t for name, t in held.items() if name.endswith(".factors")]
    values = [t for name, t in held.items() if name.endswith(".values")]
    return {
        "ranks": max((len(t) for t in factors), default=0),
        "numbers": [
            sum(_share(len(t), keep) * t[0].numel() for t in factors + values)
            for keep in range(9)
        ],
    }


def _share(n: int, keep: int) -> int:
    """`keep` eighths of n, as JavaScript's Math.round has it."""
    return math.floor(n * keep / 8 + 0.5)


def adapted(model: bytes, changes: list[tuple[bytes, float, int]]) -> dict[str, Tensor]:
    """The packed model's tensors with W0 + Σ α ΔW in them: what the page computes with.

    changes: (packed change, α, keep); of each ΔW `keep` eighths: of its ranks the
    first, of its entries the largest.
    """
    W = unpack(model)
    for data, alpha, keep in changes:
        held, raw = unpack(data), load(data)
        for name, part in held.items():
            site, _, kind = name.rpartition(".")
            if kind == "factors":
                W0 = W[f"{site}.weight"]
                b, a = part[: _share(len(part), keep)].split(list(W0.shape), 1)
                W0 += alpha * b.T @ a
            elif kind == "values":
                order = raw[name].int().abs().argsort(descending=True, stable=True)
                best = order[: _share(len(order), keep)]
                total = W[f"{site}.weight"].numel()
                index = sparse.unpack(held[f"{site}.gaps"], len(part), total)
                W[f"{site}.weight"].view(-1)[index[best]] += alpha * part[best]
    return W


def images(x: Tensor, labels: Tensor) -> bytes:
    """Images (N, 1, side, side) from 0 to 1 as the gaps and grey values of their
    pixels that are not paper.
    """
    grey = (255 * x).round().to(torch.uint8).flatten()
    index = grey.nonzero()[:, 0]
    return _file(
        {
            "gaps": sparse.pack(index),
            "values": grey[index],
            "labels": labels.to(torch.uint8),
        },
        {"side": x.shape[-1], "images": len(x)},
    )


def name_of(stem: str, data: bytes) -> str:
    """`stem` and eight digits of the contents' SHA-256."""
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}"


def write_scripts(files: dict[str, bytes]) -> None:
    """Each file as a script in the folder that `HRA_SITE_FILES` names, if it names
    one."""
    if not (folder := os.environ.get(FOLDER)):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = Path(folder) / f"{name}.js"
        if not path.exists():
            text = base64.b64encode(data).decode()
            new = path.with_suffix(f".{os.getpid()}")
            new.write_text(f'(globalThis.hraFiles ??= {{}})["{name}"]="{text}";\n')
            new.replace(path)
