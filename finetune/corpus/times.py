"""Split by time: when each row was, where its group's latest row goes, and how many groups lay on both sides."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from finetune.config.prepare import TimeSplit
from finetune.corpus.boilerplate import key
from finetune.errors import Problem


def read_time(text: str, pattern: str | None) -> float:
    """Seconds since 1970 in UTC. ISO 8601 without a pattern; a time without a zone is UTC. ValueError if it is none."""
    text = text.strip()
    read = datetime.fromisoformat(text) if pattern is None else datetime.strptime(text, pattern)  # noqa: DTZ007
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def time_problem(file: str, line: int, column: str, settings: TimeSplit) -> Problem:
    """What to say of a row whose time cannot be read. The value is not shown: it may be anything."""
    wanted = "ISO 8601, like 2024-05-31" if settings.format is None else f"the format {settings.format}"
    fix = "correct the row, leave it out with `where`, or set prepare.split.time.format"
    return Problem(f"{file}:{line}", column, f"prepare.split.time needs a time here, in {wanted}", fix)


@functools.cache
def _bound(text: str) -> float:
    return read_time(text, None)


def bounds(settings: TimeSplit) -> tuple[float, float]:
    """From when rows are for validation and for testing, in seconds."""
    return _bound(settings.valid_from), _bound(settings.test_from)


def side_at(seconds: float, settings: TimeSplit) -> int:
    """0 train, 1 valid, 2 test."""
    valid_from, test_from = bounds(settings)
    return 2 if seconds >= test_from else 1 if seconds >= valid_from else 0


@dataclass(frozen=True)
class Times:
    """When the latest row of each group was: 16 bytes a group."""

    groups: NDArray[np.uint64]
    """Hashes of the groups' names, sorted."""
    latest: NDArray[np.float64]
    straddling: int
    """Groups with rows on more than one side of valid_from and test_from."""
    moved: int
    """Rows that went to a later side than their own time says, with their group's latest row."""

    def of(self, group: str) -> float | None:
        """Seconds of the group's latest row; None for a group whose source has no time."""
        wanted = key(group)
        at = int(np.searchsorted(self.groups, np.uint64(wanted)))
        found = at < len(self.groups) and int(self.groups[at]) == wanted
        return float(self.latest[at]) if found else None


def gather(rows: Iterable[tuple[str, float]], settings: TimeSplit) -> Times:
    """From (group, seconds) of every row to the latest of each group."""
    pairs = np.fromiter(
        ((key(group), seconds) for group, seconds in rows), dtype=[("group", np.uint64), ("at", np.float64)]
    )
    pairs.sort(order=["group", "at"])
    groups, firsts, inverse = np.unique(pairs["group"], return_index=True, return_inverse=True)
    lasts = np.append(firsts[1:], len(pairs)) - 1 if len(pairs) else firsts
    latest = pairs["at"][lasts]
    sides = np.searchsorted(np.array(bounds(settings)), pairs["at"], side="right")
    final = sides[lasts][inverse] if len(pairs) else sides
    straddling = int((sides[firsts] != sides[lasts]).sum())
    return Times(groups.astype(np.uint64), latest.astype(np.float64), straddling, int((sides != final).sum()))
