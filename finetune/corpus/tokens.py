"""From examples and texts to token rows, the length policy, and the parquet files that training reads."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.chat import IGNORED, ChatFormat
from finetune.corpus.build import Example
from finetune.corpus.records import Chat
from finetune.corpus.store import Mask, Table, batches
from finetune.errors import Problem, RecipeError


@dataclass(frozen=True)
class TokenRow:
    """One training example: a supervised turn, or a piece of general text with every token supervised."""

    id: str
    task: str
    input_ids: list[int]
    labels: list[int]
    mode: str

    @property
    def supervised(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)


def tokenise(chat: ChatFormat, example: Example) -> list[TokenRow]:
    """One row for each assistant turn. Raises RecipeError, naming the row, where the template cannot render it."""
    record = example.chat
    try:
        turns = list(chat.supervise_turns(record.messages, record.tools))
        if record.messages[-1].get("tool_calls"):
            _check_gold(chat, record)
    except RecipeError as error:
        where = f"{record.source}:{record.line}"
        raise RecipeError(
            Problem(where, None, f"{problem.path}: {problem.rule}", problem.fix) for problem in error.problems
        ) from error
    rows = []
    for number, turn in enumerate(turns, start=1):
        name = record.id if len(turns) == 1 else f"{record.id}#{number}"
        rows.append(TokenRow(name, record.task, turn.input_ids, turn.labels, turn.mode))
    if not all(row.supervised for row in rows):
        raise RecipeError.one(
            f"{record.source}:{record.line}",
            None,
            "no token of this row would be trained on",
            "give it an answer, or leave it out with `where`",
        )
    return rows


def _check_gold(chat: ChatFormat, record: Chat) -> None:
    if record.answer not in chat.answer_text(record.messages, record.mode, record.tools):
        raise RecipeError.one(
            "messages[-1].tool_calls",
            None,
            "the chat template writes calls unlike Qwen3's, so an answer could not be compared with this one",
            "end such conversations with the answer that follows the call's result, or choose another model",
        )


def cut(name: str, ids: list[int], length: int, *, whole: bool = False) -> list[tuple[str, list[int]]]:
    """Tokens of a text in pieces of at most `length`, nothing lost; with `whole` only those of just that length."""
    starts = range(0, len(ids) - length + 1 if whole else len(ids), length)
    alone = len(starts) == 1 and not whole
    return [(name if alone else f"{name}#{i}", ids[at : at + length]) for i, at in enumerate(starts, start=1)]


ROWS = "tokens.parquet"
_IDS = pa.list_(pa.int32())
ROW = pa.schema([
    ("id", pa.string()), ("task", pa.string()), ("input_ids", _IDS), ("labels", _IDS), ("mode", pa.string()),
    ("example", pa.int64()), ("length", pa.int64()), ("supervised", pa.int64()),
])  # fmt: skip
"""`example`: the position, in its folder, of the example or text that the row is of."""
_SFT = pa.schema([ROW.field(name) for name in ("id", "task", "input_ids", "labels", "mode")])
_GROUP = 1024
"""Rows of a group: at 4,096 tokens each it is 32 MB."""
_TEXT = pa.schema([ROW.field(name) for name in ("id", "input_ids")])


def add_row(table: Table, row: TokenRow, example: int) -> None:
    ids, labels = np.array(row.input_ids, np.int32), np.array(row.labels, np.int32)
    table.add(
        {**vars(row), "input_ids": ids, "labels": labels, "example": example, "length": len(ids),
         "supervised": row.supervised},
        8 * len(ids),
    )  # fmt: skip


@dataclass
class Written:
    """What a file of token rows holds."""

    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    supervised: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    replay: Counter[str] = field(default_factory=Counter)
    """`rows` and `tokens` of replay."""

    def add(self, batch: pa.RecordBatch) -> None:
        lengths = batch["length"].to_pylist()
        self.lengths.extend(lengths)
        self.supervised += sum(batch["supervised"].to_pylist())
        self.modes.update(batch["mode"].to_pylist())
        replay = [n for n, task in zip(lengths, batch["task"].to_pylist(), strict=True) if task == "replay"]
        self.replay.update(rows=len(replay), tokens=sum(replay))


def write_sft(path: Path, parts: Iterable[tuple[Path, Mask]]) -> Written:
    """The token rows of each folder for which its mask holds."""
    written = Written()
    with _Groups(path, _SFT) as groups:
        for folder, mask in parts:
            for batch in batches(folder / ROWS, mask):
                written.add(batch)
                groups.add(batch)
    _whole(path, len(written.lengths))
    return written


def count(parts: Iterable[tuple[Path, Mask]]) -> Written:
    """What `write_sft` would write."""
    written = Written()
    for folder, mask in parts:
        for batch in batches(folder / ROWS, mask, ["mode", "task", "length", "supervised"]):
            written.add(batch)
    return written


def write_text(path: Path, parts: Iterable[tuple[Path, Mask]]) -> tuple[int, int]:
    """The pieces of running text of each folder; (rows, tokens)."""
    rows = tokens = 0
    with _Groups(path, _TEXT) as groups:
        for folder, mask in parts:
            for batch in batches(folder / ROWS, mask):
                rows += len(batch)
                tokens += sum(batch["length"].to_pylist())
                groups.add(batch)
    _whole(path, rows)
    return rows, tokens


def _whole(path: Path, rows: int) -> None:
    assert pq.read_metadata(path).num_rows == rows, f"{path.name}: a row was not written"


class _Groups:
    """A Parquet file in groups of as many rows each, whatever the batches that they come in."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        # Fixed options: equal rows give equal bytes under one version of pyarrow, which the lock pins.
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3, version="2.6")
        self._held = schema.empty_table()

    def add(self, batch: pa.RecordBatch) -> None:
        held = pa.concat_tables([self._held, pa.Table.from_batches([batch.select(self._held.schema.names)])])
        while len(held) >= _GROUP:
            self._writer.write_table(held.slice(0, _GROUP).combine_chunks())
            held = held.slice(_GROUP)
        self._held = held

    def __enter__(self) -> "_Groups":
        return self

    def __exit__(self, *error: object) -> None:
        if len(self._held):
            self._writer.write_table(self._held.combine_chunks())
        self._writer.close()
