"""What lies in a folder: its documents and how they can be cut, its tables and their columns, and what nobody can read.

Nothing is read whole that may be large: of each kind so many files, of each table so many rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.config.data import Cut, Layout, Source, find_files, placeholders
from finetune.corpus import read
from finetune.corpus.build import fill
from finetune.corpus.finding import kind_of
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
    for (kind, suffix), files in sorted(kinds.items()):
        found = _documents(folder, kind, suffix, files) if kind in _DOCUMENTS else _tables(folder, kind, suffix, files)
        folder.sources += found
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


def _source_file(root: Path, file: Path) -> SourceFile:
    return SourceFile(file.relative_to(root).as_posix(), file)


def _documents(folder: Folder, kind: str, suffix: str, files: Sequence[Path]) -> list[Found]:
    """One source for all documents of a suffix, cut by the finest structure that every one of them has."""
    for by in (*_CUTS[kind], "document"):
        cut = [_cut(folder.root, file, by) for file in files[:FILES]]
        rows = [row for found in cut for row in found]
        named = next((name for name in _IDS if _names_each(name, rows)), None)
        if rows and named and (by == "document" or all(len(found) >= _LEAST for found in cut)):
            return [Found(_name(folder, kind), kind, f"**/*{suffix}", files, by, rows, named)]
    folder.problems += [_unreadable(folder.root, file) for file in files]
    return []


def _names_each(template: str, rows: Sequence[Row]) -> bool:
    """Whether an id of this template is another one for every row."""
    if not all(name in row for row in rows for name in placeholders(template)):
        return False
    return len({fill(template, row) for row in rows}) == len(rows)


def _cut(root: Path, file: Path, by: Any) -> list[Row]:
    layout = TIDY if file.suffix.lower() == ".pdf" else Layout()
    rows, _ = read.read_file(_source_file(root, file), Source(path=file.name, cut=Cut(by=by), layout=layout), "source")
    return rows


def _unreadable(root: Path, file: Path) -> Problem:
    _, problems = read.read_file(_source_file(root, file), Source(path=file.name), "source")
    return problems[0] if problems else Problem(file.name, None, "this file holds no row", "take it out")


def _tables(folder: Folder, kind: str, suffix: str, files: Sequence[Path]) -> list[Found]:
    """One source for tables of the same columns, if all of a suffix are; else one for each file."""
    rows_of: dict[Path, list[Row]] = {}
    for file in files:
        source, problems = Source(path=file.name), list[read.BadInput]()
        pieces = read.pieces(_source_file(folder.root, file), source, "source")
        streams = (row for piece in pieces for row in read.rows(piece, source, "source", problems))
        rows = list(islice(streams, ROWS))
        if rows:
            rows_of[file] = rows
        else:
            folder.problems.append(_unreadable(folder.root, file))
    if len(rows_of) > 1 and len({frozenset(rows[0]) for rows in rows_of.values()}) == 1 and len(rows_of) == len(files):
        together = [row for rows in rows_of.values() for row in rows][:ROWS]
        return [Found(_name(folder, kind), kind, f"**/*{suffix}", files, None, together)]
    found: list[Found] = []
    for file, rows in rows_of.items():
        path = file.relative_to(folder.root).as_posix()
        taken = [one.name for one in found]
        found.append(Found(_name(folder, file.name.partition(".")[0], taken), kind, path, [file], None, rows))
    return found


def _name(folder: Folder, wanted: str, taken: Sequence[str] = ()) -> str:
    """A name for a source that no other has: letters, digits and underscores."""
    slug = re.sub(r"[^a-z0-9]+", "_", wanted.lower()).strip("_") or "table"
    slug = slug if slug[0].isalpha() else f"table_{slug}"
    used = {*(found.name for found in folder.sources), *taken, "speeches", "countries", "replay"}
    return next(name for name in (slug, *(f"{slug}_{n}" for n in range(2, 10_000))) if name not in used)
