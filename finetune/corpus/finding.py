"""Which files a source stands for, what kind each is, and the digest that stands for all their bytes."""

import difflib
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from finetune import wheels
from finetune.artifacts import Artifact, canonical_json, hash_file
from finetune.config.data import HERE, TOOLKIT, Format, Source, find_files, place
from finetune.corpus.hub import find_hub_files
from finetune.corpus.streams import GZIP, ZSTD, SourceFile, scan, splits_at_bytes
from finetune.errors import Problem, RecipeError

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
PACKED = {"gz": GZIP, "zst": ZSTD, "zstd": ZSTD}
_TEXTUAL = ("csv", "tsv", "jsonl", "json", "obo", "txt", "md", "html")
MOST_SHOWN = 20
_CHANGED = "this file changed, came or went away since its digest was taken"
_CALM = "run again when nothing writes to it, or prepare a copy"
Stamp = tuple[int, int, int]
"""Size, time of the last change in nanoseconds, inode."""


def find_documents(
    sources: Mapping[str, Source], data_root: Path, extra: Mapping[str, str] | None = None, *, fetch: bool = True
) -> Artifact:
    """A pseudo artifact at data_root whose digest stands for every byte that PREPARE may read.

    Handed to the stage as an input, so that a changed document makes a new key. Its facts hold `files` (name ->
    sha256), `sources` (source -> files), `marks`: where large files may be divided, found in the same reading, and
    `stamps`: what tells whether a file is still the one that was hashed.
    `extra` are further files (config path -> file below data_root), such as a glossary; without `fetch` nothing is
    downloaded. Raises RecipeError with every source that matches nothing.
    """
    problems: list[Problem] = []
    found = {name: find_files_of(name, source, data_root, problems, fetch=fetch) for name, source in sources.items()}
    beside = {file: data_root / file for file in (extra or {}).values()}
    for path, other in (extra or {}).items():
        if not beside[other].is_file():
            fix = _nearby(beside[other]) or "correct the path, or set data_root"
            problems.append(Problem(path, other, f"there is no such file below {data_root}", fix))
    if problems:
        raise capped(problems)
    before = stamps(paths_of(found) | beside)
    divisible = {file.name for name, held in found.items() for file in held if _in_lines(file, sources[name])}
    files: dict[str, str] = {}
    marks: dict[str, list[tuple[int, int]]] = {}
    for file in itertools.chain.from_iterable(found.values()):
        if file.name not in files:
            files[file.name], places = _digest(file, file.name in divisible)
            marks |= {file.name: places} if places else {}
    files |= {name: hash_file(path) for name, path in beside.items()}
    held = {name: {file.name: files[file.name] for file in listed} for name, listed in found.items()}
    digest = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    facts = {"files": files, "sources": held, "marks": marks, "stamps": before}
    return Artifact(data_root, {"stage": "documents", "digest": digest, "facts": facts})


def _in_lines(file: SourceFile, source: Source) -> bool:
    return (
        file.path is not None
        and kind_of(file, source) == "jsonl"
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


def find_files_of(
    name: str, source: Source, data_root: Path, problems: list[Problem], *, fetch: bool = True
) -> list[SourceFile]:
    """The files of one source, sorted; `fetch` lets those of a hub be downloaded."""
    where = f"sources.{name}.path"
    if source.hub is not None:
        try:
            return find_hub_files(name, source.hub, fetch=fetch)
        except RecipeError as error:
            problems += error.problems
            return []
    if source.wheel is not None:
        return [SourceFile(source.wheel.member, None, _pinned(source))]
    assert source.path is not None, "checks ask for path, hub or wheel"
    paths = find_files(data_root, source.path)
    root, wanted = place(data_root, source.path)
    if not paths:
        rule = f"there is no such file, folder or match below {root}"
        fix = _nearby(root / wanted) or "correct the path, or set data_root"
        problems.append(Problem(where, source.path, rule, fix))
    # The same name on every machine, wherever the documents lie and wherever the toolkit does.
    begun = TOOLKIT if root is HERE else ""
    found = [SourceFile(f"{begun}{Path(os.path.relpath(path, root)).as_posix()}", path) for path in paths]
    for file in found:
        shown = os.fsencode(file.name).decode("utf-8", "backslashreplace")
        if shown != file.name:
            problems.append(Problem(where, shown, "the name of this file is not UTF-8", "rename it"))
    return found


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
    """The files of every source, sorted, with the marks that `find_documents` made. RecipeError where there is none,
    and where a file came or went since then: the digest does not stand for it."""
    problems: list[Problem] = []
    found = {name: find_files_of(name, source, documents.path, problems) for name, source in sources.items()}
    held = documents.facts.get("sources")
    if held is not None and not problems:
        differing = (name for source in sources for name in {file.name for file in found[source]} ^ held[source].keys())
        problems += [Problem(name, None, _CHANGED, _CALM) for name in sorted(set(differing))]
    if problems:
        raise capped(problems)
    marks = documents.facts.get("marks", {})
    return {
        name: [replace(file, marks=tuple(map(tuple, marks.get(file.name, ())))) for file in files]
        for name, files in found.items()
    }


def paths_of(files: Mapping[str, Sequence[SourceFile]]) -> dict[str, Path]:
    """File -> where it lies. Members of wheels are known by their hash."""
    return {file.name: file.path for file in itertools.chain.from_iterable(files.values()) if file.path is not None}


def stamps(paths: Mapping[str, Path]) -> dict[str, Stamp | None]:
    return {name: _stamp(path) for name, path in paths.items()}


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def changed(
    paths: Mapping[str, Path], before: Mapping[str, Stamp | None], digests: Mapping[str, str]
) -> list[Problem]:
    """Files no longer as they were: what is read of them is not what the digest of the documents stands for.

    A file that only lies in another inode is hashed again: some network file systems number theirs anew.
    """
    problems = []
    for name, path in paths.items():
        now, then = _stamp(path), before.get(name)
        if now == then and now is not None:
            continue
        if now is None or then is None or now[:2] != then[:2] or hash_file(path) != digests.get(name):
            problems.append(Problem(name, None, _CHANGED, _CALM))
    return problems


def kind_of(file: SourceFile, source: Source) -> str | None:
    """The format of a file: what the source says, else what its suffix says (the one before .gz or .zst)."""
    if source.format != "auto":
        return source.format
    path = Path(file.name.lower())
    packed = path.suffix.lstrip(".") in PACKED
    kind = _SUFFIXES.get(path.with_suffix("").suffix.lstrip(".") if packed else path.suffix.lstrip("."))
    return None if packed and kind not in _TEXTUAL else kind


def capped(problems: Sequence[Problem]) -> RecipeError:
    """A RecipeError that shows the first 20 problems and says how many more there are."""
    more = len(problems) - MOST_SHOWN
    if more <= 0:
        return RecipeError(problems)
    last = Problem(f"and {more} more", None, "problems of the same run that are not shown", "mend these first")
    return RecipeError([*problems[:MOST_SHOWN], last])
