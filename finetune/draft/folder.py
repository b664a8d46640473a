"""What lies in a folder: its documents and how they can be cut, its tables and their columns, and what nobody can read.

Nothing is read whole that may be large: of each kind so many files, of each table so many rows.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.config.data import Cut, Layout, Source, find_files, placeholders
from finetune.config.prepare import Redact
from finetune.corpus import read
from finetune.corpus.build import fill
from finetune.corpus.finding import kind_of
from finetune.corpus.personal.recognisers import find_personal
from finetune.corpus.read import SourceFile
from finetune.corpus.tables import Row
from finetune.errors import Problem, RecipeError

FILES = 40
ROWS = 5_000
_DOCUMENTS = ("pdf", "docx", "html", "md", "txt")
_CUTS = {
    "pdf": ("clause", "page"), "docx": ("heading", "clause", "paragraph"), "html": ("heading", "clause", "paragraph"),
    "md": ("heading", "clause", "paragraph"), "txt": ("clause", "paragraph"),
}  # fmt: skip
_LEAST = 3
TIDY = Layout(furniture=True, hyphens=True, lines=True)
"""What is undone of a PDF's pages."""
LINE = "{_file}:{_line}"
_IDS = (LINE, f"{LINE} {{number}}", f"{LINE} {{number}} {{heading}}")
"""Several clauses may begin on one page of a PDF."""
_CJK = re.compile(r"[\u3400-\u9fff]")
_TEXTS = ("csv", "tsv", "jsonl", "json", "txt", "md")
_LOOKED = 1 << 16
"""Bytes that tell the encoding of a file."""
_OTHER = re.compile(r"[;\t|]")
"""What separates the columns of a CSV that is none."""


@dataclass(frozen=True)
class Found:
    """Files that become one source."""

    name: str
    kind: str
    path: str
    """File or glob below the folder."""
    files: Sequence[Path]
    cut: str | None
    """How the documents are cut; None for tables."""
    rows: Sequence[Row]
    """Of at most FILES files and ROWS rows."""
    id: str = LINE
    """Template that names each row."""
    encoding: str = "utf-8"

    @property
    def columns(self) -> list[str]:
        """The columns that a template can name."""
        named = self.rows[0] if self.rows else {}
        return [name for name in named if not name.startswith("_") and not set(name) & set("{}:![]")]


@dataclass
class Folder:
    root: Path
    sources: list[Found] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    """Suffix -> files that no reader belongs to."""
    problems: list[Problem] = field(default_factory=list)
    """Files that could not be read, each left out of the recipe by what `Source.bad_rows` counts."""

    @property
    def chinese(self) -> bool:
        """Whether a fifth of the characters are Chinese."""
        text = "".join(value for found in self.sources for row in found.rows[:200] for value in row.values())
        return len(_CJK.findall(text)) > 0.2 * len(text)


def look(root: Path) -> Folder:
    """Raises RecipeError where there is no folder or nothing in it that can be read."""
    if not root.is_dir():
        rule = "is a file, not a folder" if root.exists() else "is not there"
        raise RecipeError.one("folder", str(root), rule, "name the folder that holds the documents")
    folder = Folder(root)
    kinds: dict[tuple[str, str], list[Path]] = {}
    for file in find_files(root, "."):
        kind = kind_of(_source_file(root, file), Source(path=file.name))
        if kind is None:
            suffix = file.suffix or file.name
            folder.unknown[suffix] = folder.unknown.get(suffix, 0) + 1
        else:
            kinds.setdefault((kind, _ending(file)), []).append(file)
    for (kind, suffix), listed in sorted(kinds.items()):
        encoding, files = _of_one_encoding(folder, kind, listed)
        found = _documents if kind in _DOCUMENTS else _tables
        folder.sources += found(folder, kind, suffix, files, encoding)
    if not folder.sources:
        known = ", ".join((*_DOCUMENTS, "csv", "tsv", "jsonl", "json", "parquet"))
        rule = "holds no document that can be read"
        nothing = Problem("folder", str(root), rule, f"put files of these kinds there: {known}")
        raise RecipeError([*folder.problems, nothing])
    return folder


def _ending(file: Path) -> str:
    """`.csv`, and of a packed file `.csv.gz`."""
    packed = file.suffix.lower() in (".gz", ".zst") and len(file.suffixes) > 1
    return "".join(file.suffixes[-2:]) if packed else file.suffix


def _of_one_encoding(folder: Folder, kind: str, files: Sequence[Path]) -> tuple[str, Sequence[Path]]:
    """The encoding of a source, and its files that are in it: one source has one."""
    known = {file: _encoding(file) if kind in _TEXTS else "utf-8" for file in files}
    if len(set(known.values())) == 1:
        return known[files[0]], files
    for file in (file for file in files if known[file] != "utf-8"):
        rule = f"is written in {known[file]}, and others of its kind in UTF-8"
        fix = f"iconv -f {known[file]} -t utf-8, or take it into a source with encoding: {known[file]}"
        folder.problems.append(Problem(_source_file(folder.root, file).name, None, rule, fix))
    return "utf-8", [file for file in files if known[file] == "utf-8"]


def _encoding(file: Path) -> str:
    """UTF-8, or GB18030 where the beginning is no UTF-8 and most of what is no ASCII are the 3,755 common characters
    of GB 2312: Western texts hold none of them."""
    with file.open("rb") as stream:
        raw = stream.read(_LOOKED)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(raw)
        return "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(raw)
    except UnicodeDecodeError:
        return "utf-8"
    codes = [char.encode("gb18030") for char in text if not char.isascii()]
    common = sum(len(code) == 2 and 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1 for code in codes)
    return "gb18030" if 2 * common > len(codes) else "utf-8"


def _source_file(root: Path, file: Path) -> SourceFile:
    return SourceFile(file.relative_to(root).as_posix(), file)


def _documents(folder: Folder, kind: str, suffix: str, files: Sequence[Path], encoding: str) -> list[Found]:
    """One source for all documents of a suffix, cut by the finest structure that every one of them has."""
    for by in (*_CUTS[kind], "document"):
        cut = [_cut(folder.root, file, by, encoding) for file in files[:FILES]]
        rows = [row for found in cut for row in found]
        named = next((name for name in _IDS if _names_each(name, rows)), None)
        if rows and named and (by == "document" or all(len(found) >= _LEAST for found in cut)):
            return [Found(_name(folder, kind), kind, f"**/*{suffix}", files, by, rows, named, encoding)]
    folder.problems += [_unreadable(folder.root, file, encoding) for file in files]
    return []


def _names_each(template: str, rows: Sequence[Row]) -> bool:
    """Whether an id of this template is another one for every row."""
    if not all(name in row for row in rows for name in placeholders(template)):
        return False
    return len({fill(template, row) for row in rows}) == len(rows)


def _cut(root: Path, file: Path, by: Any, encoding: str) -> list[Row]:
    layout = TIDY if file.suffix.lower() == ".pdf" else Layout()
    source = Source(path=file.name, cut=Cut(by=by), layout=layout, encoding=encoding)
    rows, _ = read.read_file(_source_file(root, file), source, "source")
    return rows


def _unreadable(root: Path, file: Path, encoding: str) -> Problem:
    _, problems = read.read_file(_source_file(root, file), Source(path=file.name, encoding=encoding), "source")
    return problems[0] if problems else Problem(file.name, None, "this file holds no row", "take it out")


def _tables(folder: Folder, kind: str, suffix: str, files: Sequence[Path], encoding: str) -> list[Found]:
    """One source for tables of the same columns, if all of a suffix are; else one for each file."""
    rows_of: dict[Path, list[Row]] = {}
    for file in files:
        source, problems = Source(path=file.name, encoding=encoding), list[read.BadInput]()
        pieces = read.pieces(_source_file(folder.root, file), source, "source")
        streams = (row for piece in pieces for row in read.rows(piece, source, "source", problems))
        rows = list(islice(streams, ROWS))
        if rows and not (kind == "csv" and _is_one_column(rows[0])):
            rows_of[file] = rows
        elif rows:
            rule = "its columns are separated by another sign than a comma"
            fix = "save it with commas, or with tabs under a name that ends in .tsv"
            folder.problems.append(Problem(_source_file(folder.root, file).name, None, rule, fix))
        else:
            folder.problems.append(_unreadable(folder.root, file, encoding))
    if len(rows_of) > 1 and len({frozenset(rows[0]) for rows in rows_of.values()}) == 1 and len(rows_of) == len(files):
        together = [row for rows in rows_of.values() for row in rows][:ROWS]
        return [Found(_name(folder, kind), kind, f"**/*{suffix}", files, None, together, encoding=encoding)]
    found: list[Found] = []
    for file, rows in rows_of.items():
        path = file.relative_to(folder.root).as_posix()
        taken = [one.name for one in found]
        # The name of a source stands on every page.
        wanted = kind if find_personal(path, Redact().kinds) else file.name.partition(".")[0]
        found.append(Found(_name(folder, wanted, taken), kind, path, [file], None, rows, encoding=encoding))
    return found


def _is_one_column(row: Row) -> bool:
    named = [name for name in row if not name.startswith("_")]
    return len(named) == 1 and _OTHER.search(named[0]) is not None


def _name(folder: Folder, wanted: str, taken: Sequence[str] = ()) -> str:
    """A name for a source that no other has: letters, digits and underscores."""
    slug = re.sub(r"[^a-z0-9]+", "_", wanted.lower()).strip("_") or "table"
    slug = slug if slug[0].isalpha() else f"table_{slug}"
    used = {*(found.name for found in folder.sources), *taken, "speeches", "countries", "replay"}
    return next(name for name in (slug, *(f"{slug}_{n}" for n in range(2, 10_000))) if name not in used)
