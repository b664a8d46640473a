"""Split by time: when the latest row of each group was, and how many groups lay on both sides of a date."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config.prepare import TimeSplit
from finetune.corpus.boilerplate import key
from finetune.corpus.times import bounds

AT = np.dtype([("group", np.uint64), ("at", np.float64)])
"""Hash of a row's group, and when the row was."""


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

    def save(self, path: Path) -> None:
        counts = np.array([self.straddling, self.moved])
        np.savez(path, groups=self.groups, latest=self.latest, counts=counts)

    def of(self, group: str) -> float | None:
        """Seconds of the group's latest row; None for a group whose source has no time."""
        wanted = key(group)
        at = int(np.searchsorted(self.groups, np.uint64(wanted)))
        found = at < len(self.groups) and int(self.groups[at]) == wanted
        return float(self.latest[at]) if found else None


@functools.lru_cache(maxsize=2)
def read_times(path: Path) -> Times:
    """Times as `save` wrote them, read once in a process."""
    with np.load(path) as arrays:
        straddling, moved = arrays["counts"].tolist()
        return Times(arrays["groups"], arrays["latest"], straddling, moved)


def gather(rows: Iterable[tuple[str, float]], settings: TimeSplit) -> Times:
    """From (group, seconds) of every row to the latest of each group."""
    return join(np.fromiter(((key(group), seconds) for group, seconds in rows), dtype=AT), settings)


def join(pairs: NDArray[np.void], settings: TimeSplit) -> Times:
    """The same from an array of AT."""
    pairs = pairs.copy()
    pairs.sort(order=["group", "at"])
    groups, firsts, inverse = np.unique(pairs["group"], return_index=True, return_inverse=True)
    lasts = np.append(firsts[1:], len(pairs)) - 1 if len(pairs) else firsts
    latest = pairs["at"][lasts]
    sides = np.searchsorted(np.array(bounds(settings)), pairs["at"], side="right")
    final = sides[lasts][inverse] if len(pairs) else sides
    straddling = int((sides[firsts] != sides[lasts]).sum())
    return Times(groups.astype(np.uint64), latest.astype(np.float64), straddling, int((sides != final).sum()))
