"""The files that travel with the package, packed with xz."""

import lzma
from pathlib import Path


def unpacked(path: Path) -> bytes:
    """The content of an xz file. ValueError: it is damaged."""
    try:
        return lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as e:
        raise ValueError(
            f"{path.name} of hra's data is damaged ({e}): install hra again."
        ) from None
