"""From a recipe's sources to rows, piece by piece. What is wrong is collected, and says where and what to type.

A piece is what one worker reads at a time: a range of a file of JSON lines, a row group of a Parquet file, any other
file as a whole. The rows of a source are those of its pieces, one after the other; nothing depends on their size.
"""

import codecs
import difflib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, get_args

from finetune import wheels
from finetune.artifacts import Artifact, canonical_json, hash_file
from finetune.config.data import Format, Source, find_files
from finetune.corpus import blocks, documents, office, parquet, tables
from finetune.corpus.obo import read_obo
from finetune.corpus.streams import (
    GZIP,
    LONGEST,
    ZSTD,
    BadInput,
    SourceFile,
    bad,
    expanded,
    read_lines,
    read_text,
    scan,
    splits_at_bytes,
)
from finetune.corpus.tables import Found, Row
from finetune.errors import Problem, RecipeError

__all__ = ["BadInput", "Piece", "SourceFile", "find_documents", "lacking", "list_files", "pieces", "rows"]

PIECE_BYTES = 1 << 24
"""About so many bytes of a file of JSON lines are one piece: 16 MiB."""
_SUFFIXES = {name: name for name in get_args(Format) if name != "auto"} | {
    "htm": "html",
    "xhtml": "html",
    "markdown": "md",
    "text": "txt",
    "ndjson": "jsonl",
    "log": "txt",
    "pq": "parquet",
}
_PACKED = {"gz": GZIP, "zst": ZSTD, "zstd": ZSTD}
_TEXTUAL = ("csv", "tsv", "jsonl", "json", "obo", "txt", "md", "html")
_MOST_SHOWN = 20


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


def find_documents(sources: Mapping[str, Source], data_root: Path) -> Artifact:
    """A pseudo artifact at data_root whose digest stands for every byte that PREPARE may read.

    Handed to the stage as an input, so that a changed document makes a new key. Its facts hold `files` (name ->
    sha256), `sources` (source -> files) and `marks`: where large files may be divided, found in the same reading.
    Raises RecipeError with every source that matches nothing.
    """
    problems: list[Problem] = []
    found = {name: _find(name, source, data_root, problems) for name, source in sources.items()}
    if problems:
        raise capped(problems)
    divisible = {file.name for name, held in found.items() for file in held if _in_lines(file, sources[name])}
    files: dict[str, str] = {}
    marks: dict[str, list[tuple[int, int]]] = {}
    for file in itertools.chain.from_iterable(found.values()):
        if file.name not in files:
            files[file.name], places = _digest(file, file.name in divisible)
            marks |= {file.name: places} if places else {}
    held = {name: {file.name: files[file.name] for file in listed} for name, listed in found.items()}
    digest = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    facts = {"files": files, "sources": held, "marks": marks}
    return Artifact(data_root, {"stage": "documents", "digest": digest, "facts": facts})


def _in_lines(file: SourceFile, source: Source) -> bool:
    return (
        file.path is not None
        and _kind(file, source) == "jsonl"
        and splits_at_bytes(source.encoding)
        and file.path.stat().st_size > PIECE_BYTES
    )


def _digest(file: SourceFile, divisible: bool) -> tuple[str, list[tuple[int, int]]]:
    if file.path is None:
        assert file.wheel is not None
        return file.wheel.sha256, []
    if not divisible:
        return hash_file(file.path), []
    digest = hashlib.sha256()
    marks: list[tuple[int, int]] = []
    with file.path.open("rb") as stream:
        if stream.read(4).startswith((GZIP, ZSTD)):
            return hash_file(file.path), []
        stream.seek(0)
        for chunk, found in scan(stream, PIECE_BYTES):
            digest.update(chunk)
            marks += found
        return digest.hexdigest(), [mark for mark in marks if mark[0] < stream.tell()]


def _find(name: str, source: Source, data_root: Path, problems: list[Problem]) -> list[SourceFile]:
    where = f"sources.{name}.path"
    if source.wheel is not None:
        return [SourceFile(source.wheel.member, None, _pinned(source))]
    assert source.path is not None, "checks ask for path or wheel"
    paths = find_files(data_root, source.path)
    if not paths:
        problems.append(
            Problem(
                where,
                source.path,
                f"there is no such file, folder or match below {data_root}",
                _nearby(data_root / source.path) or "correct the path, or set data_root",
            )
        )
    return [SourceFile(Path(os.path.relpath(path, data_root)).as_posix(), path) for path in paths]


def _nearby(wanted: Path) -> str | None:
    if not wanted.parent.is_dir():
        return None
    close = difflib.get_close_matches(wanted.name, sorted(path.name for path in wanted.parent.iterdir()), n=1)
    return f"did you mean {close[0]}?" if close else None


def _pinned(source: Source) -> wheels.Wheel:
    wanted = source.wheel
    assert wanted is not None
    for wheel in wheels.PINNED_WHEELS:
        if (wheel.distribution, wheel.version) == (wanted.distribution, wanted.version):
            return wheels.Wheel(wheel.distribution, wheel.version, wheel.filename, wanted.sha256, source.licence)
    filename = f"{wanted.distribution.replace('-', '_')}-{wanted.version}-py3-none-any.whl"
    return wheels.Wheel(wanted.distribution, wanted.version, filename, wanted.sha256, source.licence)


def list_files(sources: Mapping[str, Source], documents: Artifact) -> dict[str, list[SourceFile]]:
    """The files of every source, sorted, with the marks that `find_documents` made. RecipeError where there is none."""
    problems: list[Problem] = []
    found = {name: _find(name, source, documents.path, problems) for name, source in sources.items()}
    if problems:
        raise capped(problems)
    marks = documents.facts.get("marks", {})
    return {
        name: [replace(file, marks=tuple(map(tuple, marks.get(file.name, ())))) for file in files]
        for name, files in found.items()
    }


def pieces(file: SourceFile, source: Source, source_name: str) -> list[Piece]:
    """The pieces of a file, in order. Never fails: what is wrong with the file is said when its rows are read."""
    kind = _kind(file, source)
    if kind == "jsonl" and file.marks:
        starts = [(0, 1), *file.marks]
        ends: list[int | None] = [offset for offset, _ in file.marks]
        return [
            Piece(file, kind, first, last, line) for (first, line), last in zip(starts, [*ends, _END], strict=True)
        ]
    if kind == "parquet" and len(counts := _row_groups(file)) > 1:
        lines = itertools.accumulate(counts[:-1], initial=1)
        return [Piece(file, kind, index, index + 1, line) for index, line in enumerate(lines)]
    return [Piece(file, kind)]


_END = 1 << 62


def _row_groups(file: SourceFile) -> list[int]:
    try:
        with file.open() as stream:
            return parquet.count_groups(stream)
    except (OSError, ValueError, RecipeError, KeyError):
        return []


def rows(piece: Piece, source: Source, source_name: str, problems: list[BadInput]) -> Iterator[Row]:
    """The rows of a piece, one at a time; each row or file that cannot be read is added to `problems` instead.

    The caller may empty `problems` as it goes. Raises RecipeError where the recipe is at fault, not the data.
    """
    count = 0
    for found in _read(piece, source, source_name):
        count += 1
        if isinstance(found, BadInput):
            problems.append(found)
        else:
            yield found
    if not count and piece.whole:
        fix = "put rows into it, or take it out"
        problems.append(bad(piece.file.name, 0, "no rows", "this file holds no row", fix))


def _read(piece: Piece, source: Source, source_name: str) -> Iterator[Found]:
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
            read_blocks = office.read_pdf if piece.kind == "pdf" else office.read_docx
            yield from _cut(name, piece.kind, read_blocks(name, raw), source)
        else:
            yield from _read_text(piece, raw, source, source_name)


def _read_text(piece: Piece, raw: BinaryIO, source: Source, source_name: str) -> Iterator[Found]:
    name, kind = piece.file.name, piece.kind
    _check_encoding(source, source_name)
    suffix = Path(name).suffix.lower().lstrip(".")
    if suffix in _PACKED:
        packed = raw.read(4).startswith(_PACKED[suffix])
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
    held: list[str] = []
    size = 0
    for line in lines:
        if line.wrong is not None:
            yield line.wrong
            return
        held.append(line.text)
        size += len(line.text) + 1
        if size > LONGEST:
            rule = f"this document is longer than {LONGEST >> 20} MiB"
            yield bad(name, line.number, "document too long", rule, "divide it into several files")
            return
    reader_of = {"txt": blocks.read_txt, "md": blocks.read_md, "html": blocks.read_html}
    yield from _cut(name, str(kind), reader_of[str(kind)]("\n".join(held)), source)


def read_sources(
    sources: Mapping[str, Source], data_root: Path, needed: Mapping[str, Iterable[str]], workers: int = 0
) -> dict[str, list[Row]]:
    """The rows of every source, in the order of files and lines. RecipeError holds all problems of all files.

    `needed` names, for each source, the columns that the recipe uses.
    """
    problems: list[Problem] = []
    read: dict[str, list[Row]] = {name: [] for name in sources}
    for name, source in sources.items():
        for file in _find(name, source, data_root, problems):
            found, wrong = read_file(file, source, name)
            read[name] += found
            problems += wrong
        problems += _missing_columns(name, read[name], sorted(set(needed.get(name, ()))))
    if problems:
        raise capped(problems)
    return read


def read_file(file: SourceFile, source: Source, source_name: str) -> tuple[list[Row], list[Problem]]:
    """The rows of one file and its problems."""
    wrong: list[BadInput] = []
    found = [row for piece in pieces(file, source, source_name) for row in rows(piece, source, source_name, wrong)]
    return found, [each.problem for each in wrong]


def capped(problems: Sequence[Problem]) -> RecipeError:
    """A RecipeError that shows the first 20 problems and says how many more there are."""
    more = len(problems) - _MOST_SHOWN
    if more <= 0:
        return RecipeError(problems)
    last = Problem(f"and {more} more", None, "problems of the same run that are not shown", "mend these first")
    return RecipeError([*problems[:_MOST_SHOWN], last])


def _check_encoding(source: Source, source_name: str) -> None:
    try:
        codecs.lookup(source.encoding)
    except LookupError:
        path = f"sources.{source_name}.encoding"
        raise RecipeError.one(path, source.encoding, "Python knows no such encoding", "use utf-8") from None


def _cut(name: str, kind: str, found: documents.Blocks | BadInput, source: Source) -> Iterable[Found]:
    return [found] if isinstance(found, BadInput) else documents.cut_document(name, kind, found, source.cut)


def _kind(file: SourceFile, source: Source) -> str | None:
    """The format of a file: what the source says, else what its suffix says (the one before .gz or .zst)."""
    if source.format != "auto":
        return source.format
    path = Path(file.name.lower())
    packed = path.suffix.lstrip(".") in _PACKED
    kind = _SUFFIXES.get(path.with_suffix("").suffix.lstrip(".") if packed else path.suffix.lstrip("."))
    return None if packed and kind not in _TEXTUAL else kind


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
    there = sorted(key for key in row if not key.startswith("_"))
    close = difflib.get_close_matches(column, there, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    rule = f"the recipe uses this column of source {source_name}, and it is not here"
    fix = f"{hint}the columns are {', '.join(there)}"
    return bad(row["_file"], int(row["_line"]), "missing column", rule, fix, column)


def _missing_columns(name: str, rows: Sequence[Row], needed: Sequence[str]) -> Iterable[Problem]:
    """A column missing in a whole file is one problem; missing in some rows, one for each row."""
    for column in needed:
        without = [row for row in rows if column not in row]
        by_file = {row["_file"]: row for row in reversed(without)}
        full = {row["_file"] for row in rows if column in row}
        for row in by_file.values() if not full else without:
            if (wrong := lacking(row, [column], name)) is not None:
                yield wrong.problem
