"""Adapter files: one safetensors file an adapter, everything that a loader must know in
its metadata. Never pickle.

Metadata (all strings, as the format demands): `format` = "hra", `format_version`,
`hra_version`, `method`, `hyper` (JSON), `sites` (JSON: site → [d_out, d_in], or [] for
the model itself), `base` (JSON: hashes of the adapted weights' shapes and values),
`checksum` (SHA-256 over all other metadata and over every tensor's name, dtype, shape
and bytes).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT_VERSION = 1
_JSON = ("hyper", "sites", "base")


class AdapterFileError(ValueError):
    """The file cannot be loaded; the model was not touched."""


def _bytes(t: Tensor) -> bytes:
    return t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def fingerprint(weights: dict[str, Tensor]) -> dict[str, str]:
    """Hashes of the adapted weights' names and shapes, and of their values: which base
    an adapter belongs to.
    """
    shapes, values = hashlib.sha256(), hashlib.sha256()
    for name in sorted(weights):
        shapes.update(f"{name}{tuple(weights[name].shape)}".encode())
        values.update(str(weights[name].dtype).encode() + _bytes(weights[name]))
    return {"shapes": shapes.hexdigest(), "weights": values.hexdigest()}


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    h = hashlib.sha256(
        json.dumps(
            {k: v for k, v in metadata.items() if k != "checksum"}, sort_keys=True
        ).encode()
    )
    for name in sorted(tensors):
        t = tensors[name]
        h.update(f"{name}{t.dtype}{tuple(t.shape)}".encode() + _bytes(t))
    return h.hexdigest()


def write(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Write an adapter file under a temporary name in the same folder, then rename it
    over `path`.

    Raises ValueError when a tensor holds NaN or Inf or a hyperparameter is no JSON
    value. On any failure `path` is as it was.
    """
    from safetensors.torch import save

    path = Path(path)
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise ValueError(
                f"{name} holds NaN or Inf: the adapter is not saved. Did the training "
                "diverge?"
            )
    try:
        meta = {
            k: json.dumps(v, sort_keys=True) if k in _JSON else str(v)
            for k, v in metadata.items()
        }
    except TypeError as e:
        raise ValueError(
            f"a hyperparameter cannot be written to the file: {e}."
        ) from None
    meta |= {"format": "hra", "format_version": str(FORMAT_VERSION)}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    meta["checksum"] = checksum(tensors, meta)
    raw = _sorted_header(save(tensors, metadata=meta))
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".part"
    )
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sorted_header(raw: bytes) -> bytes:
    """The same file with its header's keys in order: safetensors writes them in a
    random one.
    """
    n = int.from_bytes(raw[:8], "little")
    header = json.dumps(
        json.loads(raw[8 : 8 + n]), sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + n :]


def _header(path: Path) -> None:
    """Tell a file that is no safetensors file from one that was cut short."""
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(9)
        n = int.from_bytes(start[:8], "little")
        if len(start) < 9 or start[8:9] != b"{" or n > 100_000_000:
            raise AdapterFileError(f"{path} is not a safetensors file.")
        if size < 8 + n:
            raise AdapterFileError(
                f"{path} is truncated: its header of {n} bytes does not fit in {size} "
                "bytes."
            )
        f.seek(8)
        try:
            header = json.loads(f.read(n))
            ends = [
                v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"
            ]
            end = 8 + n + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise AdapterFileError(
                f"{path} is not a safetensors file: its header does not parse."
            ) from None
    if size < end:
        raise AdapterFileError(f"{path} is truncated: {size} bytes of {end}.")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of an adapter file, the JSON parts of the metadata parsed.

    Raises FileNotFoundError, or AdapterFileError when the file is no safetensors file,
    truncated, not hra's, of a newer format, or its metadata does not parse. The
    checksum is left to `verify`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file.")
    _header(path)
    try:
        with safe_open(path, framework="pt") as f:
            raw = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as e:
        raise AdapterFileError(f"{path} is damaged: {e}.") from None
    if raw.get("format") != "hra":
        raise AdapterFileError(
            f"{path} was not written by hra: its metadata has no format='hra'."
        )
    try:
        version = int(raw["format_version"])
    except (KeyError, ValueError):
        raise AdapterFileError(
            f"{path}: the metadata does not parse: "
            f"format_version={raw.get('format_version')!r}."
        ) from None
    if version > FORMAT_VERSION:
        raise AdapterFileError(
            f"{path} is of format {version}; this hra reads up to {FORMAT_VERSION}. "
            "Upgrade hra."
        )
    metadata: dict[str, Any] = dict(raw)
    try:
        for k in _JSON:
            metadata[k] = json.loads(raw[k])
            if not isinstance(metadata[k], dict):
                raise ValueError(f"{k} is not an object")
        metadata["method"], metadata["checksum"] = raw["method"], raw["checksum"]
        for site, shape in metadata["sites"].items():
            if not (
                isinstance(shape, list)
                and len(shape) in (0, 2)
                and all(type(d) is int for d in shape)
            ):
                raise ValueError(f"the shape of {site} is {shape!r}")
    except (KeyError, ValueError) as e:
        raise AdapterFileError(f"{path}: the metadata does not parse: {e}.") from None
    metadata["_raw"] = raw
    return tensors, metadata


def verify(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Raise AdapterFileError for NaN or Inf, or when the checksum shows that a bit has
    changed.
    """
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise AdapterFileError(f"{path}: {name} holds NaN or Inf.")
    if checksum(tensors, metadata["_raw"]) != metadata["checksum"]:
        raise AdapterFileError(
            f"{path} is damaged: its checksum does not match its content. Fetch or "
            "save it again."
        )
