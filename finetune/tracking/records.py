"""What stands in a .wandb file: W&B's own record of a run, read without W&B's service.

Offline each launch leaves such a file; those of one id are one run.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _PIECE = 7, 32768, struct.Struct("<IHB")


@dataclass
class Decoded:
    """One run, of all files that were given; names that begin with `_` are W&B's own and left out."""

    id: str = ""
    project: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """As the last launch had it: what is not trained on may have changed between two."""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """W&B's step -> numbers of that step."""
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> {type, metadata, files: {path: reference}}; the last one logged under a name."""

    @property
    def last_step(self) -> int:
        """0 where no step was logged."""
        return max(self.history, default=0)


def decode(files: Iterable[Path]) -> Decoded:
    """The records of a run's .wandb files in the order in which they were written."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = Decoded()
    for file in files:
        for raw in read_records(file):
            record = Record.FromString(raw)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run.id, run.project, run.group = record.run.run_id, record.run.project, record.run.run_group
                run.config = _items(record.run.config.update)
            elif kind == "config":
                run.config |= _items(record.config.update)
            elif kind == "summary":
                _merge(run.summary, _items(record.summary.update))
            elif kind == "history":
                run.history.setdefault(record.history.step.num, _items(record.history.item))
            elif kind == "artifact":
                logged = record.artifact
                run.artifacts[logged.name] = {
                    "type": logged.type,
                    "metadata": json.loads(logged.metadata) if logged.metadata else {},
                    "files": {entry.path: entry.ref for entry in logged.manifest.contents},
                }
    return run


def files_of(folder: Path, run_id: str) -> list[Path]:
    """The .wandb files of one run in W&B's `folder`, oldest first: named by date, and `-1` within the same second."""
    return sorted(folder.glob(f"*run-*-{run_id}*/run-{run_id}.wandb"))


def read_records(file: Path) -> Iterator[bytes]:
    """The whole records of a .wandb file: LevelDB's log format behind 7 bytes; a torn tail ends it.

    Blocks of 32 KiB hold pieces of (checksum, length, kind): kind 1 is a whole record, 2 its first, 3 a middle and 4
    its last piece. https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    raw, at, record = file.read_bytes(), _HEADER, b""
    while at + _PIECE.size <= len(raw):
        if (left := _BLOCK - at % _BLOCK) < _PIECE.size:
            at += left
            continue
        _, length, kind = _PIECE.unpack_from(raw, at)
        at += _PIECE.size
        if not 1 <= kind <= 4 or at + length > len(raw):
            return
        record = raw[at : at + length] if kind <= 2 else record + raw[at : at + length]
        at += length
        if kind in (1, 4):
            yield record


def _items(found: Iterable[Any]) -> dict[str, Any]:
    """{name: value} of a record's items: their names come as `key` or, from Python dicts, as a path `nested_key`."""
    items: dict[str, Any] = {}
    for item in found:
        names = list(item.nested_key) or [item.key]
        if names[0].startswith("_"):
            continue
        place = items
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = json.loads(item.value_json)
    return items


def _merge(into: dict[str, Any], update: Mapping[str, Any]) -> None:
    for name, value in update.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
