"""Checkpoints to resume from: complete or not there. No torch; the trainer writes and reads the tensors.

A checkpoint counts only when its COMPLETE marker is there and every file has the size and hash written in it. The
marker is written last, after everything else has been synced to disk, so a kill at any instant leaves the checkpoint
before. It names the stage and key, the step and the layout, so that a checkpoint of another run, copied or renamed, is
not taken for ours. Only what passed this check is ever unpickled.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune import artifacts

COMPLETE = "COMPLETE"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Layout:
    """How the rows of a step are spread. Optimiser state and random numbers only fit the layout they were saved in."""

    world: int
    per_device: int
    accumulation: int
    kind: str
    """single, ddp or zero3"""
    sequence: int = 1
    """Processes that share the tokens of the same rows."""

    def __str__(self) -> str:
        shared = f" ({self.sequence} share a row)" if self.sequence > 1 else ""
        return f"{self.kind}, {self.world} processes{shared} x {self.per_device} rows x {self.accumulation}"


def seal(checkpoint: Path, layout: Layout, *, owner: str) -> None:
    """Sync every file, then write the marker. Call it once all ranks have written. `owner`: stage and key."""
    files: dict[str, list[Any]] = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(checkpoint))] = [path.stat().st_size, artifacts.hash_file(path)]
    for directory in {checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())}:
        artifacts.sync_directory(directory)
    marker = {"owner": owner, "layout": asdict(layout), "step": step_of(checkpoint), "files": files}
    artifacts.write_whole(checkpoint / COMPLETE, json.dumps(marker, indent=1, sort_keys=True))
    artifacts.sync_directory(checkpoint)
    artifacts.sync_directory(checkpoint.parent)


def newest(directory: Path, layout: Layout, say: Callable[[str], None], *, owner: str) -> Path | None:
    """The last complete checkpoint of this stage, key and layout. What is torn or foreign is removed, and said."""
    if not directory.is_dir():
        return None
    chosen: Path | None = None
    for checkpoint in sorted(_all(directory), key=step_of, reverse=True):
        fault = _fault_of(checkpoint, layout, owner)
        if fault is not None:
            say(f"checkpoint of step {step_of(checkpoint)} is not used: {fault}")
            shutil.rmtree(checkpoint)
        elif chosen is None:
            chosen = checkpoint
    return chosen


def keep_last(directory: Path, count: int = 2) -> None:
    """Delete all but the newest complete checkpoints; call it after a new one was sealed."""
    for checkpoint in sorted(_all(directory), key=step_of, reverse=True)[count:]:
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def _all(directory: Path) -> list[Path]:
    return [path for path in directory.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]


def _fault_of(checkpoint: Path, layout: Layout, owner: str) -> str | None:
    try:
        marker = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        files, saved = dict(marker["files"]), Layout(**marker["layout"])
        whose, step = marker["owner"], marker["step"]
    except FileNotFoundError:
        return "it was never finished (the run was stopped while it was being written)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its marker cannot be read ({error})"
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size or artifacts.hash_file(path) != digest:
            return f"{name} is not the file that was saved"
    extra = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file()} - {*files, COMPLETE}
    if extra:
        return f"{sorted(extra)[0]} was put there by somebody else"
    if (whose, step) != (owner, step_of(checkpoint)):
        return f"it is step {step} of {whose}, put there by somebody else"
    if saved != layout:
        return f"it was saved by another layout ({saved}; now {layout}), so this stage starts again"
    return None
