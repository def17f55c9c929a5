"""Adapter files: one safetensors file an adapter, everything that a loader must know in
its metadata. Never pickle.

Metadata (all strings, as the format demands): `format` = "hra", `format_version`,
`hra_version`, `method`, `hyper` (JSON: every hyperparameter, also those left at their
default), `sites` (JSON: site → [d_out, d_in], or [] for the model itself), `own` (JSON:
site → the hyperparameters in which it differs), `also` (JSON: the modules trained in
full), `base` (JSON: hashes of the adapted weights' shapes and values), `drawn` (hash of
the seeded tensors that the file does not hold), `checksum` (SHA-256 over all other
metadata and over every tensor's name, dtype, shape and bytes).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

FORMAT_VERSION = 2
_JSON = {"hyper": dict, "sites": dict, "own": dict, "also": list, "base": dict}
_TEXT = ("method", "drawn", "checksum")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
# A header is read before anything in it is believed; parsed, it takes some twenty
# times its size. Room for the tensors of a few thousand sites.
LONGEST_HEADER, MOST_ITEMS = 1 << 20, 1 << 16


class AdapterFileError(ValueError):
    """The file cannot be loaded; the model was not touched."""


def _bytes(t: Tensor) -> Any:
    return t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def fingerprint(weights: dict[str, Tensor]) -> dict[str, str]:
    """Hashes of the weights' names and shapes, and of their values: which base an
    adapter belongs to.
    """
    shapes, values = hashlib.sha256(), hashlib.sha256()
    for name in sorted(weights):
        shapes.update(f"{name}{tuple(weights[name].shape)}".encode())
        values.update(str(weights[name].dtype).encode())
        values.update(_bytes(weights[name]))
    return {"shapes": shapes.hexdigest(), "weights": values.hexdigest()}


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    own = {k: v for k, v in metadata.items() if k != "checksum"}
    h = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name]
        h.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        h.update(_bytes(t))
    return h.hexdigest()


def finite(tensors: dict[str, Tensor]) -> str:
    """The name of a tensor that holds NaN or Inf, or ""."""
    return next((n for n, t in tensors.items() if not torch.isfinite(t).all()), "")


def write(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Write an adapter file under a temporary name in the same folder, then rename it
    over `path`.

    Raises ValueError when a tensor holds NaN or Inf or a hyperparameter is no JSON
    value. On any failure `path` is as it was.
    """
    from safetensors.torch import save

    bad = finite(tensors)
    if bad:
        raise ValueError(
            f"{bad} holds NaN or Inf: the adapter is not saved. Did the training "
            "diverge?"
        )
    try:
        meta = {
            k: json.dumps(v, sort_keys=True, allow_nan=False) if k in _JSON else str(v)
            for k, v in metadata.items()
        }
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"a hyperparameter cannot be written to the file: {e}."
        ) from None
    meta |= {"format": "hra", "format_version": str(FORMAT_VERSION)}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    meta["checksum"] = checksum(tensors, meta)
    replace(path, _sorted_header(save(tensors, metadata=meta)))


def _sorted_header(raw: bytes) -> bytes:
    """The same file with its header's keys in order: safetensors writes them in a
    random one.
    """
    n = int.from_bytes(raw[:8], "little")
    keys = json.loads(raw[8 : 8 + n])
    header = json.dumps(keys, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + n :]


def replace(path: str | os.PathLike[str], raw: bytes) -> None:
    """Put `raw` where `path` is (where its link leads), all of it or nothing.

    The file keeps its mode; a new one gets the umask's.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# ---- reading -----------------------------------------------------------------------


@dataclass
class AdapterFile:
    """An open adapter file whose header stands: names, dtypes and shapes are known, no
    tensor is read yet.
    """

    path: Path
    meta: dict[str, Any]  # the JSON parts parsed
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    raw: dict[str, str]  # the metadata as it stands there
    _file: BinaryIO
    _header: bytes

    def refuse(self, why: str) -> AdapterFileError:
        return AdapterFileError(f"{self.path}{why}")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, once their checksum is right.

        Raises AdapterFileError for NaN or Inf, or when a bit has changed.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            found = load(self._header + self._file.read())
        except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as e:
            raise self.refuse(f" is damaged: {e}.") from None
        if checksum(found, self.raw) != self.meta["checksum"]:
            raise self.refuse(
                " is damaged: its checksum does not match its content. Fetch or save "
                "it again."
            )
        bad = finite(found)
        if bad:
            raise self.refuse(f": {bad} holds NaN or Inf.")
        return found


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[AdapterFile]:
    """The adapter file at `path`, open; what is read later is read from this very file,
    whatever is renamed over it meanwhile.

    Raises FileNotFoundError, or AdapterFileError when the file is no safetensors file,
    truncated, not hra's, of another format, or its metadata does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file.")
    with path.open("rb") as f:
        yield _header(path, f)


def _header(path: Path, f: BinaryIO) -> AdapterFile:
    def refuse(why: str) -> AdapterFileError:
        return AdapterFileError(f"{path}{why}")

    size, start = os.fstat(f.fileno()).st_size, f.read(8)
    n = int.from_bytes(start, "little")
    first = f.read(1)
    if len(start) < 8 or first != b"{":
        raise refuse(" is not a safetensors file.")
    if size < 8 + n:
        raise refuse(
            f" is truncated: its header of {n} bytes does not fit in {size} bytes."
        )
    if n > LONGEST_HEADER:
        raise refuse(f" is not an adapter file: its header has {n} bytes.")
    text = first + f.read(n - 1)
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_ITEMS:
        raise refuse(" is not an adapter file: its header has too many parts.")
    try:
        header = json.loads(text)
        raw = header.pop("__metadata__", {})
        shapes, dtypes, spans = _entries(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise refuse(" is not a safetensors file: its header does not parse.") from None
    end = 8 + n
    for begin, stop in sorted(spans):
        if 8 + n + begin != end:
            raise refuse(" is damaged: its tensors overlap or leave gaps.")
        end = 8 + n + stop
    if size < end:
        raise refuse(f" is truncated: {size} bytes of {end}.")
    if size > end:
        raise refuse(f" is damaged: {size - end} bytes too many.")
    if not isinstance(raw, dict) or raw.get("format") != "hra":
        raise refuse(" was not written by hra: its metadata has no format='hra'.")
    meta = _metadata(raw, refuse)
    return AdapterFile(path, meta, shapes, dtypes, raw, f, start + text)


def _entries(header: dict[str, Any]) -> tuple[dict, dict, list[tuple[int, int]]]:
    """Shapes, dtypes and byte ranges of a header's tensors; ValueError if they differ
    from one another.
    """
    shapes, dtypes, spans = {}, {}, []
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        if not all(type(d) is int and d >= 0 for d in (*shape, begin, end)):
            raise ValueError
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError
        shapes[name], dtypes[name] = tuple(shape), dtype
        spans.append((begin, end))
    return shapes, dtypes, spans


def _metadata(raw: dict[str, str], refuse: Any) -> dict[str, Any]:
    unparsed = ": the metadata does not parse: "
    try:
        version = int(raw["format_version"])
    except (KeyError, ValueError, TypeError):
        found = raw.get("format_version")
        raise refuse(f"{unparsed}format_version={found!r}.") from None
    if version > FORMAT_VERSION:
        raise refuse(
            f" is of format {version}; this hra reads format {FORMAT_VERSION}. "
            "Upgrade hra."
        )
    if version < FORMAT_VERSION:
        raise refuse(
            f" is of format {version}, which did not hold all that its adapter depends "
            f"on; this hra reads format {FORMAT_VERSION}. Load it with the hra that "
            "wrote it, and train or save it again with this one."
        )
    meta: dict[str, Any] = dict(raw)
    try:
        for k, kind in _JSON.items():
            meta[k] = json.loads(raw[k], parse_constant=_no_constant)
            if not isinstance(meta[k], kind):
                raise ValueError(f"{k} is no {kind.__name__}")
        for k in _TEXT:
            if not isinstance(raw[k], str):
                raise ValueError(f"{k} is no text")
        for site, shape in meta["sites"].items():
            if not (
                isinstance(shape, list)
                and len(shape) in (0, 2)
                and all(type(d) is int and d > 0 for d in shape)
            ):
                raise ValueError(f"the shape of {site} is {shape!r}")
        if not meta["sites"]:
            raise ValueError("it names no site")
        if not all(
            site in meta["sites"] and isinstance(own, dict)
            for site, own in meta["own"].items()
        ):
            raise ValueError("own is not of its sites")
        also = meta["also"]
        if not all(isinstance(name, str) for name in also):
            raise ValueError("also holds no names")
        if len(set(also)) < len(also):
            raise ValueError("also holds a name twice")
    except (KeyError, ValueError, TypeError, RecursionError) as e:
        raise refuse(f"{unparsed}{e}.") from None
    return meta


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
