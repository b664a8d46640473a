"""Append-only files of JSON lines that a kill may tear: what was kept is read, and what follows is no part of it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_lines(file: Path, lines: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> None:
    """Add lines, on disk when this returns; `first` begins a new file. Several processes may append at once: what is
    added is one write, and lines are never changed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        told = [first, *lines] if stream.tell() == 0 else lines
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)
        # After a kill the last line may be torn: whatever is written next must not become part of it.
        stream.write((text if _ends_whole(file) else "\n" + text).encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may not be there; a torn one is left out."""
    return read_on(file, 0)[0]


def read_on(file: Path, begin: int) -> tuple[list[dict[str, Any]], int]:
    """Those from the byte `begin` on, and where to read on: behind the last line end, as a torn line may be mended."""
    if not file.exists():
        return [], 0
    found = []
    with file.open("rb") as stream:
        stream.seek(begin)
        told = stream.read()
    for line in told.split(b"\n"):
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, dict):
            found.append(read)
    return found, begin + told.rfind(b"\n") + 1


def _ends_whole(file: Path) -> bool:
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return size == 0 or stream.read(1) == b"\n"
