"""Rows on disk between the steps: each unit of work has a folder with its items, and arrays with an entry for each.

Steps that look at all rows of a source read the arrays; texts are read row by row, or a group of rows at a time.
"""

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.corpus.build import Item
from finetune.corpus.ledger import Reject

Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

ITEMS = "items.parquet"
NAMED, FILES = "named.bin", "files.json"
"""For each row that was named four numbers of 64 bits: two as the key of its id, the place of its file, its line."""
KEYS, SKETCHES = "keys.bin", "sketches.bin"
"""dedup.KEY and dedup.SKETCH for each item."""
TEXTS = "texts.bin"
"""What near duplicates are looked for in: length in bytes and UTF-8 text of each item."""
_GROUP = 1024
_GROUP_BYTES = 16 << 20
_ITEM = pa.schema([("id", pa.string()), ("group", pa.string()), ("file", pa.string()), ("line", pa.int64()),
                   ("columns", pa.string())])  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """The items of one unit of work; `kept` is a file with a mask of those that are still there (None: all)."""

    source: str
    folder: Path
    kept: Path | None = None

    def items(self, nested: frozenset[str] = frozenset()) -> Iterator[Item]:
        """`nested`: the columns that hold JSON."""
        return items(self.folder / ITEMS, self.source, self.mask(), nested)

    def mask(self) -> Mask | None:
        return None if self.kept is None else np.load(self.kept)

    def named(self) -> Array:
        return np.fromfile(self.folder / NAMED, np.uint64).reshape(-1, 4)

    @property
    def rows_named(self) -> int:
        return (self.folder / NAMED).stat().st_size // 32

    def narrowed(self, keep: Mask, path: Path) -> "Shard":
        """The shard with only those of its rows for which `keep` holds; the mask is written to `path` (.npy)."""
        whole = self.mask()
        if whole is None:
            whole = np.ones(len(keep), bool)
        whole[np.flatnonzero(whole)] = keep
        np.save(path, whole)
        return Shard(self.source, self.folder, path)

    def __len__(self) -> int:
        mask = self.mask()
        return pq.read_metadata(self.folder / ITEMS).num_rows if mask is None else int(mask.sum())


class Table:
    """A Parquet file written row by row, of which at most a group of rows is in memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)
        self._rows: list[dict[str, Any]] = []
        self._size = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        """`size`: about how many bytes the row takes."""
        self._rows.append(row)
        self._size += size
        if len(self._rows) == _GROUP or self._size > _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._size = [], 0


def add_item(table: Table, item: Item) -> None:
    columns = {name: value for name, value in item.columns.items() if name not in ("_file", "_line")}
    text = json.dumps(columns, ensure_ascii=False)
    table.add({"id": item.id, "group": item.group, "file": item.file, "line": item.line, "columns": text}, len(text))


def items_table(folder: Path) -> Table:
    return Table(folder / ITEMS, _ITEM)


def items(path: Path, source: str, mask: Mask | None, nested: frozenset[str]) -> Iterator[Item]:
    for row in read(path, mask):
        columns = {**json.loads(row["columns"]), "_file": row["file"], "_line": str(row["line"])}
        yield Item(source, row["id"], row["group"], columns, nested)


def read(path: Path, mask: Mask | None = None, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file for which `mask` holds."""
    for batch in batches(path, mask, columns):
        yield from batch.to_pylist()


def batches(path: Path, mask: Mask | None = None, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    at = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_GROUP, columns=columns):
            if mask is None:
                yield batch
            elif (wanted := mask[at : at + len(batch)]).any():
                yield batch.filter(pa.array(wanted))
            at += len(batch)


def rejects(
    path: Path,
    gone: Mask,
    step: str,
    reasons: Sequence[str] | str,
    details: Sequence[str] | str = "",
    tokens: Array | None = None,
) -> Iterator[Reject]:
    """A reject for each row of `path` for which `gone` holds; `reasons`, `details` and `tokens` belong to those."""
    rows = read(path, gone, ["id", "file", "line"])
    for number, row in enumerate(rows):
        reason = reasons if isinstance(reasons, str) else reasons[number]
        detail = details if isinstance(details, str) else details[number]
        lost = 0 if tokens is None else int(tokens[number])
        yield Reject(row["file"], row["line"], row["id"], step, reason, detail, supervised_tokens=lost)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text(json.dumps(lines, ensure_ascii=False), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    lines: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return lines


def add_texts(file: BinaryIO, texts: Sequence[str]) -> None:
    """Append texts for `Texts`: the length of each in eight bytes, then its UTF-8."""
    for text in texts:
        data = text.encode()
        file.write(len(data).to_bytes(8, "little") + data)


class Texts:
    """The texts of a source at any place, read from disk as they are asked for; where they begin lies there, too."""

    def __init__(self, shards: Sequence[Shard], alive: Mask, scratch: Path) -> None:
        """Places count the rows of all shards for which `alive` holds, one at least."""
        self._paths = [shard.folder / TEXTS for shard in shards]
        self._ends = np.zeros(len(shards), np.int64)
        at = 0
        with tempfile.TemporaryFile(dir=scratch) as file:
            for number, path in enumerate(self._paths):
                starts = _text_starts(path)
                file.write(starts[alive[at : at + len(starts)]].tobytes())
                at += len(starts)
                self._ends[number] = file.tell() // starts.itemsize
            file.flush()
            self._start = np.memmap(file, np.uint64, "r")

    def read(self, places: Sequence[int]) -> list[str]:
        found = [""] * len(places)
        starts, shards = self._start[places], np.searchsorted(self._ends, places, side="right")
        for shard in np.unique(shards):
            with self._paths[shard].open("rb") as file:
                for at in np.flatnonzero(shards == shard):
                    file.seek(starts[at])
                    found[at] = file.read(int.from_bytes(file.read(8), "little")).decode()
        return found


def _text_starts(path: Path) -> Array:
    starts = array("Q")
    with path.open("rb") as file:
        while length := file.read(8):
            starts.append(file.tell() - 8)
            file.seek(int.from_bytes(length, "little"), os.SEEK_CUR)
    return np.array(starts, np.uint64)


def key(text: str) -> tuple[int, int]:
    """128 bits that stand for a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def short_key(text: str) -> int:
    """64 bits that stand for a text where a collision would do no harm."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def mapped(path: Path) -> Array:
    """An array of a file (.npy), whose pages all processes share."""
    return np.asarray(np.load(path, "r"))


def each(folders: Iterable[Path], name: str, array: str) -> Iterator[Array]:
    """One array of `name`.npz of each folder."""
    for folder in folders:
        with np.load(folder / f"{name}.npz") as file:
            yield file[array]
