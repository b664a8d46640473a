"""Sorted arrays of 64-bit keys, where sets of Python numbers would take ten times their memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_TOGETHER = 1 << 17
"""Keys that are looked up at a time: what is found of them takes eight bytes each."""
_SORTED = 1 << 21
"""Keys that are sorted at a time where there are more than memory should hold."""


@dataclass(frozen=True)
class Keys:
    """A set of keys: `values` are sorted, each stands once."""

    values: Array

    def __contains__(self, key: object) -> bool:
        at = int(np.searchsorted(self.values, np.uint64(key))) if isinstance(key, int) else len(self.values)
        return at < len(self.values) and int(self.values[at]) == key

    def __len__(self) -> int:
        return len(self.values)

    def hold(self, keys: Array) -> npt.NDArray[np.bool_]:
        """Which of these keys are in the set."""
        found = np.zeros(len(keys), bool)
        for begin in range(0, len(keys) if len(self) else 0, _TOGETHER):
            part = keys[begin : begin + _TOGETHER]
            at = np.minimum(np.searchsorted(self.values, part), len(self.values) - 1)
            found[begin : begin + _TOGETHER] = self.values[at] == part
        return found


def join(size: int, parts: Iterable[Array]) -> Array:
    """These keys, `size` in all, in one array; the parts are not held together."""
    joined = np.empty(size, np.uint64)
    at = 0
    for part in parts:
        joined[at : at + len(part)] = part
        at += len(part)
    assert at == size, f"{at} keys, not {size}"
    return joined


def distinct(keys: Array) -> Keys:
    """Each key once. `keys` themselves are sorted in place."""
    keys.sort()
    new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return Keys(keys[new])


def repeated(keys: Array) -> Keys:
    """The keys that stand more than once. `keys` themselves are sorted in place."""
    keys.sort()
    return distinct(keys[1:][keys[1:] == keys[:-1]])


def runs(parts: Callable[[], Iterable[Array]]) -> Iterator[Array]:
    """Each key of these parts once, sorted, some millions at a time; `parts` gives them anew for each run."""
    for low, high in _ranges(sum(map(len, parts()))):
        found = [distinct(part[(part >= low) & (part <= high)]).values for part in parts()]
        yield distinct(np.concatenate([np.empty(0, np.uint64), *found])).values


def mixed(parts: Callable[[], Iterable[Array]]) -> Keys:
    """The keys that stand beside more than one number; parts of (rows, 2) are given anew for each run of keys."""
    found = [np.empty(0, np.uint64)]
    for low, high in _ranges(sum(map(len, parts()))):
        held = [_ends(part[(part[:, 0] >= low) & (part[:, 0] <= high)]) for part in parts()]
        pairs = np.concatenate([np.empty((0, 2), np.uint64), *held])
        pairs = pairs[np.argsort(pairs[:, 0])]
        same, alike = (pairs[1:] == pairs[:-1]).T
        found.append(distinct(pairs[1:, 0][same & ~alike]).values)
    return Keys(np.concatenate(found))


def in_runs(parts: Callable[[], Iterable[Array]], key: Callable[[Array], Array]) -> Iterator[Array]:
    """The rows of these parts, all that have one key together, some millions at a time."""
    for low, high in _ranges(sum(map(len, parts()))):
        if held := [part[(key(part) >= low) & (key(part) <= high)] for part in parts()]:
            yield np.concatenate(held)


def _ranges(size: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """(lowest, highest) key of each run: keys are hashes, so about as many lie in each."""
    count = max(1, -(-size // _SORTED))
    for low, high in pairwise((1 << 64) * run // count for run in range(count + 1)):
        yield np.uint64(low), np.uint64(high - 1)


def _ends(pairs: Array) -> Array:
    """Of each key the pair with the lowest number and, if it is another, that with the highest."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    new = np.ones(len(pairs) + 1, bool)
    new[1:-1] = pairs[1:, 0] != pairs[:-1, 0]
    ends = pairs[new[:-1] | new[1:]]
    other = np.ones(len(ends), bool)
    other[1:] = (ends[1:] != ends[:-1]).any(axis=1)
    return ends[other]


def firsts(keys: Array) -> Array:
    """For each row of (rows, 2) keys the position of the first row that equals it."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal ones the first comes first
    new = np.ones(len(order), bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return found
