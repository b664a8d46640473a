"""What a killed merge leaves in its folder of unfinished work: its note of finished shards, and who may clear it."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.artifacts import clear, hash_file, write_whole
from finetune.errors import RecipeError

NOTE = ".merge.json"


@contextmanager
def alone(partial: Path) -> Iterator[None]:
    """Make the folder of unfinished work and lock it: two merges into one output would clear each other's files.

    Raises RecipeError where it holds something that no merge left: what is in it will be cleared.
    """
    if partial.exists() and not partial.is_dir():
        raise RecipeError.one(
            "--out", str(partial), "unfinished work is kept in a folder of this name, and a file has it",
            f"move it away (mv {partial} ELSEWHERE) or name another --out",
        )  # fmt: skip
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        foreign = [path.name for path in partial.iterdir() if not path.name.startswith(f".{NOTE}.")]
        if foreign and not (partial / NOTE).is_file():
            raise RecipeError.one(
                "--out", str(partial), f"it would be cleared, and no merge left {foreign[0]!r} there",
                f"move the folder away (mv {partial} ELSEWHERE) or name another --out",
            )  # fmt: skip
        yield
    except BlockingIOError as error:
        raise RecipeError.one(
            "--out", str(partial), "another merge is writing there", "wait for it or name another folder"
        ) from error
    finally:
        os.close(descriptor)


def start(out: Path, identity: str, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Shards of an earlier attempt that are whole and belong to the same merge; everything else is removed.

    The note stands before anything else does, so that a folder without one is known to be somebody else's.
    """
    model, done = out / "model", {}
    found = _read(out / NOTE)
    if found.get("identity") == identity and found["shards"]:
        say(f"merge: an earlier attempt finished {len(found['shards'])} files; reading them again")
        done = {
            shard: entry
            for shard, entry in found["shards"].items()
            if (model / shard).is_file() and hash_file(model / shard) == entry["sha256"]
        }
    clear(out, but=(NOTE, model.name) if done else (NOTE,))
    note(out, identity, done)
    model.mkdir(exist_ok=True)
    clear(model, but=done)
    return done


def note(out: Path, identity: str, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Record the shards that are finished, each with its sha256."""
    write_whole(out / NOTE, json.dumps({"identity": identity, "shards": done}))


def _read(file: Path) -> dict[str, Any]:
    """What an earlier attempt noted; nothing when there was none, or when the note is torn."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("shards"), dict) else {}
