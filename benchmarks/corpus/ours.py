"""Our own removal of near duplicates alone, as PREPARE does it: `python ours.py RECORDS.jsonl FOLDER WORKERS`.

Pieces are read and sketched on every core; duplicates are found on the sketches of all, and texts are read again only
for candidates. The same work as peers.py: from the JSONL to the ids that are left.
"""

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from finetune.config.data import Source
from finetune.corpus import dedup, near
from finetune.corpus.engine import Engine, work_off
from finetune.corpus.read import Piece, find_documents, list_files, pieces, rows

BATCH = 4096


def main(records: Path, folder: Path, workers: int) -> None:
    source = Source(path=records.name, licence="data/SOURCES.md")
    files = list_files({"records": source}, find_documents({"records": source}, records.parent))["records"]
    units = [piece for file in files for piece in pieces(file, source, "records")]
    folders = work_off("sketch", units, partial(sketch, source), scratch=folder, engine=Engine(workers))
    sketches = np.concatenate([np.fromfile(path / "sketches", dedup.SKETCH) for path in folders])
    began = time.process_time()
    found = near.find_near(sketches, 0.85, Texts(folders).read, folder)
    spent = time.process_time() - began + sum(float((path / "spent").read_text()) for path in folders)
    dropped = set(found.dropped.tolist())
    ids = [line for path in folders for line in (path / "ids").read_text(encoding="utf-8").splitlines()]
    with (folder / "kept.txt").open("w", encoding="utf-8") as kept:
        kept.writelines(f"{name}\n" for index, name in enumerate(ids) if index not in dropped)
    (folder / "near_cpu_s").write_text(f"{spent:.2f}")


def sketch(source: Source, piece: Piece, folder: Path) -> None:
    held: list[dict[str, str]] = []
    spent = 0.0
    with (
        (folder / "sketches").open("wb") as sketches,
        (folder / "texts.jsonl").open("w", encoding="utf-8") as texts,
        (folder / "ids").open("w", encoding="utf-8") as ids,
    ):
        for row in rows(piece, source, "records", []):
            held.append(row)
            if len(held) == BATCH:
                spent += _flush(held, sketches)
            ids.write(f"{row['id']}\n")
            texts.write(json.dumps(row["text"]) + "\n")
        spent += _flush(held, sketches)
    (folder / "spent").write_text(str(spent))


def _flush(held: list[dict[str, str]], sketches: BinaryIO) -> float:
    """CPU seconds of the sketches alone."""
    began = time.process_time()
    dedup.sketches([row["text"] for row in held]).tofile(sketches)
    held.clear()
    return time.process_time() - began


class Texts:
    """Texts by their position over all pieces, read from where they lie."""

    def __init__(self, folders: list[Path]) -> None:
        self.files = [(folder / "texts.jsonl").open("rb") for folder in folders]
        self.places: list[tuple[int, int]] = []
        for number, file in enumerate(self.files):
            place = 0
            for line in file:
                self.places.append((number, place))
                place += len(line)

    def read(self, positions: Sequence[int]) -> list[str]:
        found = []
        for number, place in map(self.places.__getitem__, positions):
            self.files[number].seek(place)
            found.append(json.loads(self.files[number].readline()))
        return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
