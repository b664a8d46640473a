"""Short records of the shipped corpora, some nearly the same as others: `make(folder, rows)`, always the same bytes.

A record is several passages of one kind (runs of at most eight words out of the CSVs and texts of data/) put one after
the other until they are 100 to 200 characters, with a number as work orders carry one. Three in 100 repeat an earlier
record but for case and spaces, five in 100 but for a letter or two.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

DATA = Path(__file__).resolve().parents[2] / "data"
_CSV = {
    "maintenance": ("maintenance/work_orders.csv", "text"),
    "medicine": ("medical/icd10cm_terms.csv", "term"),
    "finance": ("finance/line_items.csv", "label"),
}
_JSONL = {"speech": "general/speeches.jsonl", "country": "general/countries.jsonl"}
_TEXT = {"law": "legal/us_constitution.txt", "regulation": "legal/cfr_34_part_99.txt"}
_SENTENCE = re.compile(r"(?<=[.;:])\s+|\n\s*\n")
_WORDS = 8
_SEED, _EXACT, _NEAR = 6, 0.03, 0.05
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Record(NamedTuple):
    id: str
    kind: str
    text: str
    repeats: str
    """The id of the record that this one repeats, '' for none."""


def make(folder: Path, rows: int) -> Path:
    """records-<rows>.jsonl in `folder`, made once."""
    path = folder / f"records-{rows}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(".partial")
        with begun.open("w", encoding="utf-8") as file:
            for record in records(rows):
                file.write(json.dumps(record._asdict(), ensure_ascii=False) + "\n")
        begun.rename(path)
    return path


def records(rows: int) -> Iterator[Record]:
    random = Random(_SEED)  # noqa: S311 - reproducible, not secret
    held = passages()
    kinds = sorted(held)
    earlier: list[Record] = []
    for index in range(rows):
        dice = random.random()
        if earlier and dice < _EXACT + _NEAR:
            record = random.choice(earlier)
            text = _respaced(record.text) if dice < _EXACT else _edited(record.text, random)
            yield Record(f"r{index}", record.kind, text, record.id)
            continue
        kind = random.choice(kinds)
        text = f"{random.randrange(10**6):06d}"
        while len(text) < 100:
            text = f"{text} {random.choice(held[kind])}"
        record = Record(f"r{index}", kind, text[:200].strip(), "")
        if index % 8 == 0:  # so many are repeated that clusters of several rows appear
            earlier.append(record)
        yield record


def passages() -> dict[str, list[str]]:
    """kind -> passages of 12 to 90 characters, each once."""
    found: dict[str, list[str]] = {}
    for kind, (name, column) in _CSV.items():
        with (DATA / name).open(encoding="utf-8", newline="") as file:
            found[kind] = [row[column] for row in csv.DictReader(file)]
    for kind, name in _JSONL.items():
        lines = (DATA / name).read_text(encoding="utf-8").splitlines()
        found[kind] = [part for line in lines for part in _SENTENCE.split(json.loads(line)["text"])]
    for kind, name in _TEXT.items():
        found[kind] = _SENTENCE.split((DATA / name).read_text(encoding="utf-8"))
    runs = {kind: [run for part in parts for run in _runs(part.split())] for kind, parts in found.items()}
    return {kind: list(dict.fromkeys(run for run in held if 12 <= len(run) <= 90)) for kind, held in runs.items()}


def _runs(words: list[str]) -> Iterator[str]:
    for begin in range(0, len(words), _WORDS):
        yield " ".join(words[begin : begin + _WORDS])


def _respaced(text: str) -> str:
    return "  ".join(text.upper().split())


def _edited(text: str, random: Random) -> str:
    """One letter changed or two swapped: of 100 characters' 5-grams 0.88 or more are shared, if none comes twice."""
    place = random.randrange(8, len(text) - 1)
    put = random.choice((random.choice(_LETTERS), text[place + 1]))
    return text[:place] + put + (text[place] if put == text[place + 1] else text[place + 1]) + text[place + 2 :]
