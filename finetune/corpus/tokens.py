"""From examples and texts to token rows, the length policy, and the parquet files that training reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.chat import IGNORED, ChatFormat
from finetune.corpus.build import Example
from finetune.corpus.records import Chat
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
        return sum(label != IGNORED for label in self.labels)


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


def too_long(example: Example, rows: Sequence[TokenRow], max_length: int) -> Problem | None:
    longest = max(len(row.input_ids) for row in rows)
    if longest <= max_length:
        return None
    return Problem(
        f"{example.item.file}:{example.item.line}",
        f"{longest} tokens",
        f"a row has at most sft.max_length={max_length}",
        f"set sft.max_length={longest}, or prepare.length.policy=drop to leave such rows out (they are counted)",
    )


def cut_text(chat: ChatFormat, name: str, text: str, length: int) -> list[tuple[str, list[int]]]:
    """The tokens of a document and its end, in pieces of at most `length`, nothing lost: (id, token ids)."""
    ids = [*chat.encode(text), chat.eos_id]
    starts = range(0, len(ids), length)
    return [(f"{name}#{i}" if len(starts) > 1 else name, ids[at : at + length]) for i, at in enumerate(starts, start=1)]


def write_sft(path: Path, rows: Iterable[TokenRow]) -> None:
    _write(path, [vars(row) for row in rows], ("id", "task", "input_ids", "labels", "mode"))


def write_text(path: Path, rows: Iterable[tuple[str, list[int]]]) -> None:
    _write(path, [{"id": name, "input_ids": ids} for name, ids in rows], ("id", "input_ids"))


def _write(path: Path, rows: list[dict[str, object]], columns: Sequence[str]) -> None:
    # Imported here: a plan reads this stage's name and has less than a second for everything.
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.list_(pa.int32()) if name in ("input_ids", "labels") else pa.string()) for name in columns]
    )
    # Fixed options: equal rows give equal bytes under one version of pyarrow, which the lock pins.
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=65_536, version="2.6")
