"""Which of many numbers are the lowest, without holding them."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from finetune.corpus.store import Array, Mask

_BINS = 1 << 16


def lowest(parts: Callable[[], Iterable[Array]], most: int) -> Iterator[Mask]:
    """For each part which of its draws, numbers in [0, 1], are among the `most` lowest of all; of equal ones the first.

    `parts` gives them anew, three times. Of the draws only those that lie beside the limit are held.
    """
    counts = np.zeros(_BINS, np.int64)
    for part in parts():
        counts += np.bincount(_bin(part), minlength=_BINS)
    below = np.cumsum(counts)
    if below[-1] <= most or most <= 0:
        yield from (np.full(len(part), most > 0) for part in parts())
        return
    bin_ = int(np.searchsorted(below, most))
    beside = np.sort(np.concatenate([part[_bin(part) == bin_] for part in parts()]))
    first = most - int(below[bin_] - counts[bin_])
    limit = beside[first - 1]
    equal = first - int(np.searchsorted(beside, limit))
    for part in parts():
        mask: Mask = part < limit
        ties = np.flatnonzero(part == limit)[:equal]
        mask[ties] = True
        equal -= len(ties)
        yield mask


def _bin(draws: Array) -> Array:
    found: Array = np.minimum((draws * _BINS).astype(np.int64), _BINS - 1)
    return found
