"""From a recipe's sources to rows, piece by piece. What is wrong is collected, and says where and what to type.

A piece is what one worker reads at a time: a range of a file of JSON lines, a row group of a Parquet file, any other
file as a whole. The rows of a source are those of its pieces, one after the other; nothing depends on their size.
"""

import difflib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, get_args

from finetune.config.data import Form, Format, Source
from finetune.corpus import blocks, documents, forms, html, layout, logs, office, parquet, tables
from finetune.corpus.finding import PACKED, capped, find_documents, kind_of, list_files
from finetune.corpus.obo import read_obo
from finetune.corpus.personal.recognisers import KINDS
from finetune.corpus.redact import redact_texts
from finetune.corpus.streams import LINE_COST, LONGEST, BadInput, Line, SourceFile, bad, expanded, read_lines, read_text
from finetune.corpus.tables import OURS, Found, Row
from finetune.errors import Problem, RecipeError

__all__ = [
    "BadInput", "Piece", "SourceFile", "capped", "find_documents", "lacking", "list_files", "pieces", "rows",
]  # fmt: skip

_MOST_NAMES = 20
"""Of columns, in a message."""


@dataclass(frozen=True)
class Piece:
    """A part of a file: bytes from `first` to before `last` (JSON lines), row groups (Parquet), else all of it.

    `line` is the number of the first line or row; `kind` is None where no reader belongs to the file.
    """

    file: SourceFile
    kind: str | None
    first: int = 0
    last: int | None = None
    line: int = 1

    @property
    def whole(self) -> bool:
        return self.last is None


def pieces(file: SourceFile, source: Source, source_name: str) -> list[Piece]:
    """The pieces of a file, in order. Never fails: what is wrong with the file is said when its rows are read."""
    kind = kind_of(file, source)
    if kind == "jsonl" and file.marks and file.path is not None:
        starts = [(0, 1), *file.marks]
        ends = [offset for offset, _ in file.marks] + [file.path.stat().st_size]
        return [Piece(file, kind, first, last, line) for (first, line), last in zip(starts, ends, strict=True)]
    if kind == "parquet" and len(counts := _row_groups(file)) > 1:
        lines = itertools.accumulate(counts[:-1], initial=1)
        return [Piece(file, kind, index, index + 1, line) for index, line in enumerate(lines)]
    return [Piece(file, kind)]


def _row_groups(file: SourceFile) -> list[int]:
    try:
        with file.open() as stream:
            return parquet.count_groups(stream)
    except (OSError, ValueError, RecipeError, KeyError):
        return []


def rows(
    piece: Piece,
    source: Source,
    source_name: str,
    problems: list[BadInput],
    tidied: list[layout.Tidied] | None = None,
) -> Iterator[Row]:
    """The rows of a piece, one at a time; each row or file that cannot be read is added to `problems` instead.

    The caller may empty `problems` as it goes. `tidied` takes what `source.layout` changed in each document. Raises
    RecipeError where the recipe is at fault, not the data.
    """
    count = 0
    for found in _read(piece, source, source_name, [] if tidied is None else tidied):
        count += 1
        if source.form is not None and not isinstance(found, BadInput):
            found = _converted(found, source.form, source_name)
        if isinstance(found, BadInput):
            problems.append(found)
        else:
            yield found
    if not count and piece.whole:
        fix = "put rows into it, or take it out"
        problems.append(bad(piece.file.name, 0, "no rows", "this file holds no row", fix))


def _converted(row: Row, form: Form, source_name: str) -> Found:
    try:
        return forms.converted(row, form, source_name)
    except forms.UncertainFormError as wrong:
        return bad(row["_file"], int(row["_line"]), "uncertain form", wrong.rule, wrong.fix)


def _read(piece: Piece, source: Source, source_name: str, tidied: list[layout.Tidied]) -> Iterator[Found]:
    name = piece.file.name
    if piece.kind is None:
        yield _no_reader(piece.file, source_name)
        return
    try:
        raw = piece.file.open()
    except KeyError:
        raise RecipeError.one(
            f"sources.{source_name}.wheel.member",
            name,
            "the wheel holds no such file",
            "list the wheel with `python -m zipfile -l` and correct the member",
        ) from None
    except OSError as error:
        rule = f"this file cannot be read ({error.strerror})"
        yield bad(name, 0, "unreadable file", rule, "check its permissions")
        return
    with raw:
        if not raw.read(1):
            yield bad(name, 0, "no rows", "this file is empty", "put data into it, or take it out of the source")
            return
        raw.seek(0)
        if piece.kind == "parquet":
            groups = None if piece.last is None else (piece.first, piece.last)
            yield from parquet.read_parquet(name, raw, groups, piece.line)
        elif piece.kind in ("pdf", "docx"):
            found = office.read_pdf(name, raw) if piece.kind == "pdf" else office.read_docx(name, raw)
            if piece.kind == "pdf" and source.layout.any and not isinstance(found, BadInput):
                found, changed = layout.tidy_blocks(found, source.layout, over_pages=source.cut.by != "page")
                tidied.append(changed)
            yield from _cut(name, piece.kind, found, source)
        else:
            yield from _read_text(piece, raw, source, source_name, tidied)


def _read_text(
    piece: Piece, raw: BinaryIO, source: Source, source_name: str, tidied: list[layout.Tidied]
) -> Iterator[Found]:
    name, kind = piece.file.name, str(piece.kind)
    _check_encoding(source, source_name)
    suffix = Path(name).suffix.lower().lstrip(".")
    if suffix in PACKED:
        packed = raw.read(4).startswith(PACKED[suffix])
        raw.seek(0)
        if not packed:
            rule = f"this file is called .{suffix} and is not packed so"
            yield bad(name, 0, "unreadable file", rule, "pack it again, or give it the name of what it is")
            return
    stream = expanded(raw)
    if kind == "json":
        yield from tables.read_json(name, read_text(name, stream, source, source_name))
        return
    if piece.last is not None:
        stream.seek(piece.first)
    size = None if piece.last is None else piece.last - piece.first
    lines = read_lines(name, stream, source, source_name, number=piece.line, size=size)
    if kind in ("csv", "tsv", "jsonl", "obo"):
        reader = {"csv": tables.read_csv, "tsv": tables.read_tsv, "jsonl": tables.read_jsonl, "obo": read_obo}[kind]
        yield from reader(name, lines)
        return
    if kind == "txt" and source.cut.by == "log" and not source.layout.any:
        yield from logs.cut_log(name, lines)
    elif kind == "txt" and source.cut.by == "paragraph" and not source.layout.any:
        for found in blocks.read_txt(name, lines):
            yield documents.cut_paragraph(name, found) if isinstance(found, blocks.Block) else found
    else:
        yield from _read_document(name, kind, lines, source, tidied)


def _read_document(
    name: str, kind: str, lines: Iterator[Line], source: Source, tidied: list[layout.Tidied]
) -> Iterator[Found]:
    """The rows of a document that must be held as a whole."""
    made: blocks.Blocks | BadInput
    held: list[Line] = []
    size = 0
    for line in lines:
        if line.wrong is not None:
            yield line.wrong
            return
        held.append(line)
        size += len(line.text) + LINE_COST
        if size > LONGEST:
            rule = f"this document is longer than {LONGEST >> 20} MiB or a million lines"
            yield bad(name, line.number, "document too long", rule, "divide it into several files")
            return
    if kind == "txt" and source.layout.any:
        made, changed = layout.tidy_text("\n".join(line.text for line in held), source.layout)
        tidied.append(changed)
    elif kind == "txt":
        made = [block for block in blocks.read_txt(name, held) if isinstance(block, blocks.Block)]
    else:
        text = "\n".join(line.text for line in held)
        made = blocks.read_md(text) if kind == "md" else html.read_html(name, text)
    yield from _cut(name, kind, made, source)


def _cut(name: str, kind: str, found: blocks.Blocks | BadInput, source: Source) -> Iterable[Found]:
    return [found] if isinstance(found, BadInput) else documents.cut_document(name, kind, found, source.cut)


def read_file(file: SourceFile, source: Source, source_name: str) -> tuple[list[Row], list[Problem]]:
    """The rows of one file and its problems."""
    wrong: list[BadInput] = []
    found = [row for piece in pieces(file, source, source_name) for row in rows(piece, source, source_name, wrong)]
    return found, [each.problem for each in wrong]


def _check_encoding(source: Source, source_name: str) -> None:
    try:
        "a".encode(source.encoding)  # which says of hex and the like that they are no text
    except LookupError:
        path = f"sources.{source_name}.encoding"
        raise RecipeError.one(path, source.encoding, "Python knows no such encoding", "use utf-8") from None


def _no_reader(file: SourceFile, source_name: str) -> BadInput:
    known = ", ".join(name for name in get_args(Format) if name != "auto")
    fix = f"set sources.{source_name}.format to one of {known}, or leave the file out with a glob"
    suffix = Path(file.name).suffix.lower().lstrip(".")
    return bad(file.name, 0, "no reader", "no reader belongs to this file's suffix", fix, suffix or None)


def lacking(row: Row, needed: Iterable[str], source_name: str) -> BadInput | None:
    """What is wrong with a row that has not every column that the recipe uses, or None."""
    column = next((name for name in needed if name not in row), None)
    if column is None:
        return None
    there = sorted(key for key in row if key not in OURS)
    close = difflib.get_close_matches(column, there, n=1)
    # Rows may be keyed by persons: addresses and numbers are names of columns then.
    (*shown, hint), _ = redact_texts([*there[:_MOST_NAMES], f"did you mean {close[0]}? " if close else ""], KINDS)
    more = f", and {len(there) - _MOST_NAMES} more" if len(there) > _MOST_NAMES else ""
    rule = f"the recipe uses this column of source {source_name}, and it is not here"
    fix = f"{hint}the columns are {', '.join(shown)}{more}"
    return bad(row["_file"], int(row["_line"]), "missing column", rule, fix, column)
