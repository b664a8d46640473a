"""A sign of life of the first rank in the work folder, for the ranks that wait for what it makes.

On one machine the launcher ends the others when the first rank fails. Over several machines nobody does, and they would
wait for ever. No collective is used: preparing may take hours, and a collective gives up after some minutes.
"""

import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune import artifacts
from finetune.errors import Preempted

FILE = ".first_rank.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 120.0
"""A failure without a sign of life before it may be an earlier run's: the first rank has so long to replace it."""
SILENT_SECONDS = 600.0
"""Without a new sign for so long the first rank is gone: killed with its machine. Network folders lag for a minute."""


class Pulse:
    """While it is entered, `work` shows that the first rank lives; afterwards, how it failed, or nothing."""

    def __init__(self, work: Path) -> None:
        self._file = work / FILE
        self._launch = secrets.token_hex(4)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._write(0, None)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self._file.unlink(missing_ok=True)
        else:
            self._write(-1, _failure(error))

    def _beat(self) -> None:
        number = 0
        while not self._over.wait(BEAT_SECONDS):
            number += 1
            self._write(number, None)

    def _write(self, number: int, failed: dict[str, Any] | None) -> None:
        note = {"launch": self._launch, "beat": number, "failed": failed}
        try:
            artifacts.write_whole(self._file, json.dumps(note))
        except OSError:
            return  # a full disk: the run itself says so where it matters, and the others take the silence for an end


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Preempted):
        return {"code": Preempted.EXIT_CODE, "message": error.message}
    if isinstance(error, SystemExit):
        return {"code": error.code if isinstance(error.code, int) else 1, "message": "see what it said itself"}
    return {"code": 2, "message": str(error) or type(error).__name__}


@dataclass
class Listener:
    """What another rank knows of the first; ask `failure()` now and then, and call `begin()` before a new wait."""

    work: Path
    _lives: set[str] = field(default_factory=set)
    """Launches of which a sign of life was seen."""
    _last: Any = None
    _since: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        self._since = time.monotonic()

    def failure(self) -> tuple[int, str] | None:
        """(exit code, message) when the first rank has failed or is silent for too long; else None."""
        try:
            note = json.loads((self.work / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            note = None
        if note != self._last:
            self._last, self._since = note, time.monotonic()
        quiet = time.monotonic() - self._since
        if note is not None and note["failed"] is None:
            self._lives.add(note["launch"])
        elif note is not None and (note["launch"] in self._lives or quiet > STALE_SECONDS):
            return note["failed"]["code"], f"the first rank failed: {note['failed']['message']}"
        if quiet > SILENT_SECONDS:
            return 1, f"no sign of life from the first rank for {quiet / 60:.0f} minutes in {self.work}"
        return None
