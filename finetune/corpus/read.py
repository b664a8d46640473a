"""From a recipe's sources to rows. Every problem of every file is collected before the run stops."""

import codecs
import difflib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from finetune import wheels
from finetune.artifacts import Artifact, canonical_json, hash_file
from finetune.config.data import Format, Source, find_files
from finetune.corpus import documents
from finetune.corpus.tables import TABLES, Row
from finetune.errors import Problem, RecipeError

_SUFFIXES = {name: name for name in get_args(Format)} | {
    "htm": "html",
    "xhtml": "html",
    "markdown": "md",
    "text": "txt",
    "ndjson": "jsonl",
    "log": "txt",
}
_MAGIC = {
    b"%PDF": "pdf",
    b"PK\x03\x04": "a zip or an Office document",
    b"\x1f\x8b": "gzip",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "Parquet",
}
_MOST_SHOWN = 20


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `name` is what rows and messages call it: relative to data_root, or the wheel's member."""

    name: str
    path: Path | None
    wheel: wheels.Wheel | None = None

    def load(self) -> bytes:
        if self.path is not None:
            return self.path.read_bytes()
        assert self.wheel is not None
        return wheels.member(self.wheel, self.name)

    def digest(self) -> str:
        if self.path is not None:
            return hash_file(self.path)
        assert self.wheel is not None
        return self.wheel.sha256


def read_sources(
    sources: Mapping[str, Source], data_root: Path, needed: Mapping[str, Iterable[str]], workers: int = 0
) -> dict[str, list[Row]]:
    """The rows of every source, in the order of files and lines, with `_file` and `_line`.

    `needed` names, for each source, the columns that the recipe uses. RecipeError holds all problems of all files.
    """
    problems: list[Problem] = []
    files = [(name, file) for name, source in sources.items() for file in _find(name, source, data_root, problems)]
    rows: dict[str, list[Row]] = {name: [] for name in sources}
    for (name, _), (found, wrong) in zip(files, _read_all(files, sources, workers), strict=True):
        rows[name] += found
        problems += wrong
    for name, found in rows.items():
        problems += _missing_columns(name, sources[name], found, sorted(set(needed.get(name, ()))))
    if problems:
        raise capped(problems)
    return rows


def capped(problems: Sequence[Problem]) -> RecipeError:
    """A RecipeError that shows the first 20 problems and says how many more there are."""
    more = len(problems) - _MOST_SHOWN
    if more <= 0:
        return RecipeError(problems)
    last = Problem(f"and {more} more", None, "problems of the same run that are not shown", "mend these first")
    return RecipeError([*problems[:_MOST_SHOWN], last])


def find_documents(sources: Mapping[str, Source], data_root: Path) -> Artifact:
    """A pseudo artifact at data_root whose digest stands for every byte that PREPARE may read.

    Handed to the stage as an input, so that a changed document makes a new key. Raises RecipeError with every source
    that matches nothing.
    """
    problems: list[Problem] = []
    found = {name: _find(name, source, data_root, problems) for name, source in sources.items()}
    if problems:
        raise capped(problems)
    held = {name: {file.name: file.digest() for file in files} for name, files in found.items()}
    files = {file: digest for source in held.values() for file, digest in source.items()}
    digest = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    return Artifact(data_root, {"stage": "documents", "digest": digest, "facts": {"files": files, "sources": held}})


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


Read = tuple[list[Row], list[Problem]]


def _read_all(files: Sequence[tuple[str, SourceFile]], sources: Mapping[str, Source], workers: int) -> Iterable[Read]:
    arguments = ([file for _, file in files], [sources[name] for name, _ in files], [name for name, _ in files])
    if workers < 2 or len(files) < 2:
        return map(read_file, *arguments)
    with ProcessPoolExecutor(min(workers, len(files))) as pool:
        return list(pool.map(read_file, *arguments))


def read_file(file: SourceFile, source: Source, source_name: str) -> Read:
    """The rows of one file and its problems; nothing else is raised for a bad file."""
    problems: list[Problem] = []
    kind = _kind(file, source, source_name, problems)
    data = b"" if problems else _load(file, source_name, problems)
    if problems or kind is None:
        return [], problems
    empty = Problem(file.name, None, "this file is empty", "put data into it, or take it out of the source")
    if not data.strip():
        return [], [empty]
    if kind == "pdf":
        blocks = documents.read_pdf(file.name, data, problems)
    elif kind == "docx":
        blocks = documents.read_docx(file.name, data, problems)
    else:
        text = _decode(file.name, data, source, source_name, problems)
        if problems or not text.strip():
            return [], problems or [empty]
        if kind in TABLES:
            rows = list(TABLES[kind](file.name, text, problems))
            if not rows and not problems:
                problems.append(Problem(file.name, None, "this file holds no row", "put rows into it, or take it out"))
            return rows, problems
        reader = {"txt": documents.read_txt, "md": documents.read_md, "html": documents.read_html}[kind]
        blocks = reader(text)
    if problems:
        return [], problems
    return documents.cut_document(file.name, kind, blocks, source.cut, problems), problems


def _kind(file: SourceFile, source: Source, source_name: str, problems: list[Problem]) -> str | None:
    if source.format != "auto":
        return source.format
    suffix = Path(file.name).suffix.lower().lstrip(".")
    if suffix in _SUFFIXES and suffix != "auto":
        return _SUFFIXES[suffix]
    known = ", ".join(name for name in get_args(Format) if name != "auto")
    problems.append(
        Problem(
            file.name,
            suffix or None,
            "no reader belongs to this file's suffix",
            f"set sources.{source_name}.format to one of {known}, or leave the file out with a glob",
        )
    )
    return None


def _load(file: SourceFile, source_name: str, problems: list[Problem]) -> bytes:
    try:
        return file.load()
    except RecipeError as error:  # a wheel that is not there, or not the pinned one
        problems += error.problems
    except KeyError:
        problems.append(
            Problem(
                f"sources.{source_name}.wheel.member",
                file.name,
                "the wheel holds no such file",
                "list the wheel with `python -m zipfile -l` and correct the member",
            )
        )
    except OSError as error:
        problems.append(
            Problem(file.name, None, f"this file cannot be read ({error.strerror})", "check its permissions")
        )
    return b""


def _decode(name: str, data: bytes, source: Source, source_name: str, problems: list[Problem]) -> str:
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            problems.append(
                Problem(
                    name,
                    None,
                    f"this file is not text, it is {what}",
                    f"set sources.{source_name}.format, unpack it, or leave it out with a glob",
                )
            )
            return ""
    encoding = "utf-8-sig" if source.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else source.encoding
    try:
        text = data.decode(encoding)
    except LookupError:
        problems.append(
            Problem(f"sources.{source_name}.encoding", source.encoding, "Python knows no such encoding", "use utf-8")
        )
        return ""
    except UnicodeDecodeError as error:
        problems.append(_wrong_encoding(name, data, error, source, source_name))
        return ""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    control = next((i for i, char in enumerate(text) if char < " " and char not in "\n\t\f\x0b\x1c\x1d\x1e\x1f"), None)
    if control is not None:
        problems.append(
            Problem(
                f"{name}:{text.count(chr(10), 0, control) + 1}",
                f"U+{ord(text[control]):04X}",
                "this file is not text, it holds a control character",
                "leave it out with a glob, or export it as text",
            )
        )
    return text


def _wrong_encoding(name: str, data: bytes, error: UnicodeDecodeError, source: Source, source_name: str) -> Problem:
    line = data.count(b"\n", 0, error.start) + 1
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        guess = "utf-16"
    else:
        guess = next(
            (candidate for candidate in ("utf-8", "gb18030", "cp1252") if _decodes(data, candidate)), "latin-1"
        )
    return Problem(
        f"{name}:{line}",
        f"byte 0x{data[error.start]:02x}",
        f"this file is not {source.encoding} text",
        f"set sources.{source_name}.encoding to what it was written in ({guess} would decode), or save it as UTF-8",
    )


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _missing_columns(name: str, source: Source, rows: Sequence[Row], needed: Sequence[str]) -> Iterable[Problem]:
    """A column missing in a whole file is one problem; missing in some rows, one for each row."""
    for column in needed:
        lacking = [row for row in rows if column not in row]
        by_file = {row["_file"]: row for row in reversed(lacking)}
        full = {row["_file"] for row in rows if column in row}
        for row in by_file.values() if not full else lacking:
            there = sorted(key for key in row if not key.startswith("_"))
            close = difflib.get_close_matches(column, there, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            yield Problem(
                f"{row['_file']}:{row['_line']}",
                column,
                f"the recipe uses this column of source {name}, and it is not here",
                f"{hint}the columns are {', '.join(there)}",
            )
