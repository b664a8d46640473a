"""Split by time: when the latest row of each group was, and how many groups lay on both sides of a date."""

import functools
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.config.prepare import TimeSplit
from finetune.corpus.boilerplate import key
from finetune.corpus.keys import in_runs
from finetune.corpus.times import bounds

AT = np.dtype([("group", np.uint64), ("at", np.float64)])
"""Hash of a row's group, and when the row was."""


@dataclass(frozen=True)
class Times:
    """When the latest row of each group was: 16 bytes a group, mapped where they were read from a file."""

    groups: NDArray[np.uint64]
    """Hashes of the groups' names, sorted."""
    latest: NDArray[np.float64]

    def save(self, path: Path) -> None:
        both = np.lib.format.open_memmap(path, "w+", np.uint64, (2, len(self.groups)))
        both[:] = self.groups, self.latest.view(np.uint64)

    def of(self, group: str) -> float | None:
        """Seconds of the group's latest row; None for a group whose source has no time."""
        wanted = key(group)
        at = int(np.searchsorted(self.groups, np.uint64(wanted)))
        found = at < len(self.groups) and int(self.groups[at]) == wanted
        return float(self.latest[at]) if found else None


class Joined(NamedTuple):
    times: Times
    straddling: int
    """Groups with rows on more than one side of valid_from and test_from."""
    moved: int
    """Rows that went to a later side than their own time says, with their group's latest row."""


@functools.lru_cache(maxsize=2)
def read_times(path: Path) -> Times:
    """Times as `save` wrote them, opened once in a process."""
    groups, latest = np.asarray(np.load(path, "r"))
    return Times(groups, latest.view(np.float64))


def gather(rows: Iterable[tuple[str, float]], settings: TimeSplit) -> Joined:
    """From (group, seconds) of every row to the latest of each group."""
    pairs = np.fromiter(((key(group), seconds) for group, seconds in rows), dtype=AT)
    return join(lambda: [pairs], settings)


def join(parts: Callable[[], Iterable[NDArray[np.void]]], settings: TimeSplit) -> Joined:
    """The same from arrays of AT, given anew for each run of groups."""
    groups, latest, straddling, moved = array("Q"), array("d"), 0, 0
    for pairs in in_runs(parts, lambda part: part["group"]):
        pairs = pairs[np.lexsort((pairs["at"], pairs["group"]))]
        firsts = np.flatnonzero(np.append(True, pairs["group"][1:] != pairs["group"][:-1])[: len(pairs)])
        sizes = np.diff(np.append(firsts, len(pairs)))
        lasts = firsts + sizes - 1
        sides = np.searchsorted(np.array(bounds(settings)), pairs["at"], side="right")
        straddling += int((sides[firsts] != sides[lasts]).sum())
        moved += int((sides != np.repeat(sides[lasts], sizes)).sum())
        groups.frombytes(pairs["group"][lasts].tobytes())
        latest.frombytes(pairs["at"][lasts].tobytes())
    return Joined(Times(np.frombuffer(groups, np.uint64), np.frombuffer(latest)), straddling, moved)
