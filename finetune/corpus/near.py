"""Near duplicates: sketches propose, the real Jaccard similarity of character 5-grams decides.

Finding needs the sketches of all rows (an array, or a file mapped as one) and reads again only texts that a band of LSH
and the signatures call alike.
"""

import tempfile
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from finetune.corpus.dedup import MIX, PERMUTATIONS, WINDOWS, Array, Found, batches, find_exact, normalise, windows
from finetune.corpus.keys import distinct

_RECALL = 0.9995
_MISSED = 0.0008
"""Chance of a pair at the threshold to share no two bands, up to which two are asked for in crowded buckets."""
_SIGMAS = 4.0
"""Standard deviations below the threshold at which a similarity estimated from signatures is still looked into."""
_SMALL = 16
"""Rows in a bucket up to which all its pairs are estimated at once; in larger ones only kept rows are compared with."""
_TOGETHER = 1 << 10
"""Signatures that are looked at at a time, so that they stay within a core's cache."""
_READ = 1 << 20
"""Characters of rows that are compared at a time; the texts that they resemble come on top."""

ReadTexts = Callable[[Sequence[int]], Sequence[str]]
"""Positions -> the texts that were sketched, in that order."""


def find_near(rows: Array, threshold: float, read_texts: ReadTexts, scratch: Path | None = None) -> Found:
    """Rows of SKETCH with Jaccard similarity >= threshold to a kept, better row.

    Better rows are seen first and only kept rows are compared with, so there are no chains: each dropped row resembles
    the row that stands for it, of several the most similar one. Two kept rows at or above the threshold are missed with
    a chance below 0.001. Rows whose normalised texts are equal are compared as one. Memory: about 40 bytes a row; 8
    more for each band of LSH (21 of them at 0.85), or a file for them in the folder `scratch`.
    """
    same = find_exact(rows)
    alone = np.ones(len(rows), bool)
    alone[same.dropped] = False
    order = np.lexsort((-rows["length"].astype(np.int64),))
    order = order[alone[order]]
    stands, similarity = _Search(rows, order, threshold, read_texts, scratch).run()
    # Positions in `order` become positions in `rows`; a twin goes where its equal goes.
    worse = np.flatnonzero(stands != np.arange(len(stands)))
    worse = worse[np.argsort(order[worse])]
    dropped, kept, alike = order[worse], order[stands[worse]], similarity[worse]
    at = np.searchsorted(dropped, same.kept)
    gone = np.flatnonzero(at < len(dropped))
    gone = gone[dropped[at[gone]] == same.kept[gone]]
    twins, twins_alike = same.kept.copy(), np.ones(len(same.kept))
    twins[gone], twins_alike[gone] = kept[at[gone]], alike[at[gone]]
    dropped, kept = np.concatenate([dropped, same.dropped]), np.concatenate([kept, twins])
    by_place = np.argsort(dropped)
    alike = np.concatenate([alike, twins_alike])[by_place]
    return Found(dropped[by_place], kept[by_place], np.round(alike, 4))


def band_rows(threshold: float) -> int:
    """The most rows an LSH band may have so that a pair at the threshold shares a band with a chance >= 0.9995."""
    found = 1
    for count in range(1, PERMUTATIONS + 1):
        if 1 - (1 - threshold**count) ** (PERMUTATIONS // count) >= _RECALL:
            found = count
    return found


class _Search:
    """The rows of `order`, best first, are numbered 0, 1, ...: these numbers are what everything here is about."""

    def __init__(
        self, rows: Array, order: Array, threshold: float, read_texts: ReadTexts, scratch: Path | None
    ) -> None:
        # As one value each: numpy takes those out of their places in half the time.
        self.whole = np.asarray(rows["signature"]).view(f"V{2 * PERMUTATIONS}")[:, 0]
        self.lengths, self.order = rows["length"], order
        self.threshold, self.read_texts = threshold, read_texts
        spread = (PERMUTATIONS * threshold * (1 - threshold)) ** 0.5
        self.least = int(PERMUTATIONS * threshold - _SIGMAS * spread)
        # Rows that share a crowded bucket by chance share one, rows that are alike several.
        height = band_rows(threshold)
        bands, chance = PERMUTATIONS // height, threshold**height
        missed = (1 - chance) ** bands + bands * chance * (1 - chance) ** (bands - 1)
        self.shared = 2 if missed <= _MISSED else 1
        self.number_bits = np.uint64((1 << max(1, len(order).bit_length())) - 1)
        self.bands = self._bands(scratch)
        self.stands: Array = np.empty(0, np.int64)
        self.similarity: Array = np.empty(0)

    def run(self) -> tuple[Array, Array]:
        """(number of the row that stands for each, itself where it is kept; its similarity)."""
        pairs, crowded, often = self._candidates()
        self.stands, self.similarity = np.arange(len(self.order)), np.ones(len(self.order))
        worse, better = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        asked = np.union1d(worse, often)
        kept_in: dict[int, array[int]] = defaultdict(lambda: array("q"))
        texts = _Sets(self.order, self.read_texts)
        for begin, end in batches(self.lengths[self.order[asked]].tolist(), _READ):
            here = slice(*np.searchsorted(worse, (asked[begin], asked[end - 1] + 1)).tolist())
            left = self.stands[better[here]] == better[here]
            likely: dict[int, set[int]] = {number: set() for number in asked[begin:end].tolist()}
            for number, other in zip(worse[here][left].tolist(), better[here][left].tolist(), strict=True):
                likely[number].add(other)
            numbers = often[slice(*np.searchsorted(often, (asked[begin], asked[end - 1] + 1)).tolist())]
            texts.turn()
            self._decide(likely, self._buckets_of(numbers, crowded), kept_in, texts)
        return self.stands, self.similarity

    def _buckets_of(self, numbers: Array, crowded: Array) -> dict[int, list[int]]:
        """The crowded buckets that each of these rows lies in, as places in `crowded`."""
        values = self.bands[:, numbers]
        places = np.searchsorted(crowded, values)
        places[places == len(crowded)] = 0
        found: dict[int, list[int]] = {number: [] for number in numbers.tolist()}
        rows, bands = np.nonzero((crowded[places] == values).T) if len(crowded) else ((), ())
        for number, place in zip(numbers[rows].tolist(), places[bands, rows].tolist(), strict=True):
            found[number].append(place)
        return found

    def _decide(
        self,
        likely: dict[int, set[int]],
        buckets: dict[int, list[int]],
        kept_in: dict[int, "array[int]"],
        texts: "_Sets",
    ) -> None:
        for number, crowds in buckets.items():
            likely[number] |= self._in_crowds(number, crowds, kept_in)
        # Measured together what most likely is needed; what stays of it is decided one by one.
        told = texts.jaccard([(number, other) for number, others in likely.items() for other in others])
        similarities = iter(told)
        fresh: dict[int, array[int]] = defaultdict(lambda: array("q"))
        for number, others in likely.items():
            found = [(next(similarities), -self.order[i], i) for i in others]
            best = max((one for one in found if self.stands[one[2]] == one[2]), default=(0.0, 0, 0))
            crowds = buckets.get(number, [])
            if more := sorted(self._in_crowds(number, crowds, fresh) - others):
                alike = texts.jaccard([(number, other) for other in more])
                best = max(best, *((one, -self.order[i], i) for one, i in zip(alike, more, strict=True)))
            if best[0] >= self.threshold:
                self.stands[number], self.similarity[number] = best[2], best[0]
            else:
                for place in crowds:
                    fresh[place].append(number)
        for place, kept in fresh.items():
            kept_in[place].extend(kept)

    def _in_crowds(self, number: int, places: list[int], kept_in: dict[int, "array[int]"]) -> set[int]:
        """The kept rows of crowded buckets whose signatures call them alike."""
        crowds = [np.frombuffer(kept_in[place], np.int64) for place in places if place in kept_in]
        if len(crowds) < self.shared:
            return set()
        found = np.concatenate(crowds)
        if self.shared > 1:
            found.sort()
            found = found[1:][found[1:] == found[:-1]]
        if not found.size:
            return set()
        found = np.array([*set(found.tolist())])
        return set(found[self._alike(found, np.full(len(found), number))].tolist())

    def _bands(self, scratch: Path | None) -> Array:
        """(bands, rows) 64-bit values, the low bits left free for a row's number; equal ones are a band's bucket."""
        height = band_rows(self.threshold)
        shape = (PERMUTATIONS // height, len(self.order))
        if scratch is None or not len(self.order):
            made: Array = np.empty(shape, np.uint64)
        else:
            with tempfile.TemporaryFile(dir=scratch) as file:
                made = np.memmap(file, np.uint64, "w+", shape=shape)
        words = -(-height // 4)
        for begin in range(0, len(self.order), _TOGETHER):
            part = self._signatures(self.order[begin : begin + _TOGETHER])
            columns = np.zeros((len(part), len(made), 4 * words), np.uint16)
            columns[:, :, :height] = part[:, : len(made) * height].reshape(len(part), len(made), height)
            values = np.arange(1, len(made) + 1, dtype=np.uint64)
            for word in np.moveaxis(columns.view(np.uint64), 2, 0):
                values = (values ^ word) * np.uint64(MIX)
                values ^= values >> np.uint64(29)
            made[:, begin : begin + _TOGETHER] = (values & ~self.number_bits).T
        return made

    def _candidates(self) -> tuple[Array, Array, Array]:
        """(pairs `worse << 32 | better` that signatures call alike, crowded buckets, rows in enough of these to be
        alike by them), ascending."""
        pairs, crowded, often = np.empty(0, np.uint64), [], np.zeros(len(self.order), np.uint8)
        for band in self.bands:
            # Sorting values that hold their row's number costs a fraction of sorting numbers by values.
            values = np.array(band)
            for begin in range(0, len(values), WINDOWS):
                part = values[begin : begin + WINDOWS]
                part |= np.arange(begin, begin + len(part), dtype=np.uint64)
            values.sort()
            begins, sizes = self._buckets(values)
            crowds = begins[sizes > _SMALL]
            crowded.append(values[crowds] & ~self.number_bits)
            for begin, size in zip(crowds.tolist(), sizes[sizes > _SMALL].tolist(), strict=True):
                often[self._numbers(values[begin : begin + size])] += 1
            fresh = [pairs]
            for size in range(2, min(_SMALL, sizes.max(initial=0)) + 1):
                of_size, (first, second) = begins[sizes == size], np.triu_indices(size, 1)
                for begin in range(0, len(of_size), WINDOWS // len(first)):
                    members = self._numbers(
                        values[of_size[begin : begin + WINDOWS // len(first), None] + np.arange(size)]
                    )
                    better, worse = members[:, first].ravel(), members[:, second].ravel()
                    alike = self._alike(better, worse)
                    fresh.append(worse[alike].astype(np.uint64) << np.uint64(32) | better[alike].astype(np.uint64))
            pairs = distinct(np.concatenate(fresh)).values
        return pairs, np.sort(np.concatenate(crowded)), np.flatnonzero(often >= self.shared)

    def _signatures(self, rows: Array) -> Array:
        return self.whole[rows].view(np.uint16).reshape(-1, PERMUTATIONS)

    def _numbers(self, values: Array) -> Array:
        return (values & self.number_bits).astype(np.int64)

    def _buckets(self, values: Array) -> tuple[Array, Array]:
        """(where they begin in the sorted `values`, their sizes) of the buckets of several rows."""
        again = np.empty(max(0, len(values) - 1), bool)
        for begin in range(0, len(again), WINDOWS):
            part = values[begin : begin + WINDOWS + 1]
            again[begin : begin + WINDOWS] = (part[1:] ^ part[:-1]) <= self.number_bits
        first, last = again.copy(), again.copy()
        first[1:] &= ~again[:-1]
        last[:-1] &= ~again[1:]
        begins = np.flatnonzero(first)
        return begins, np.flatnonzero(last) + 2 - begins

    def _alike(self, some: Array, others: Array) -> Array:
        """Which pairs agree in so many values of their signatures that they may reach the threshold."""
        alike = np.empty(len(some), bool)
        for begin in range(0, len(some), _TOGETHER):
            part = slice(begin, begin + _TOGETHER)
            a, b = (self._signatures(self.order[numbers[part]]) for numbers in (some, others))
            alike[part] = np.count_nonzero(a == b, axis=1) >= self.least
        return alike


class _Sets:
    """Sorted 64-bit hashes of the shingles of texts, read once."""

    def __init__(self, order: Array, read_texts: ReadTexts) -> None:
        self.order, self.read_texts = order, read_texts
        self.sets: dict[int, Array] = {}
        self.before: dict[int, Array] = {}

    def turn(self) -> None:
        """Forget what was not asked for since the last turn: rows are alike in length, so they come close together."""
        self.before, self.sets = self.sets, {}

    def jaccard(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        self._read({number for pair in pairs for number in pair})
        sizes = np.array([len(self.sets[a]) + len(self.sets[b]) for a, b in pairs], np.int64)
        found: list[float] = []
        for begin, end in batches(sizes.tolist(), WINDOWS):
            joined = np.concatenate([self.sets[number] for pair in pairs[begin:end] for number in pair])
            starts = np.cumsum(sizes[begin:end]) - sizes[begin:end]
            again = _again(joined, starts)
            shared = np.add.reduceat(again, starts, dtype=np.int64)
            found += (shared / (sizes[begin:end] - shared)).tolist()
        return found

    def _read(self, numbers: set[int]) -> None:
        missing = []
        for number in sorted(numbers - self.sets.keys()):
            if number in self.before:
                self.sets[number] = self.before[number].copy()  # or all that was read with it would stay
            else:
                missing.append(number)
        texts = [normalise(text) for text in self.read_texts([int(self.order[number]) for number in missing])]
        for begin, end in batches([len(text) for text in texts], WINDOWS):
            hashes, starts = windows(texts[begin:end], np.uint64)
            new = ~_again(hashes, starts)
            ends = np.cumsum(np.add.reduceat(new, starts, dtype=np.int64)).tolist()
            once = hashes[new]
            parts = zip(missing[begin:end], [0, *ends], ends, strict=False)
            self.sets |= {number: once[first:last] for number, first, last in parts}


def _again(parts: Array, starts: Array) -> Array:
    """Sorts each part, which begin at `starts`, in place; which values of a part stand there before."""
    ends = [*starts[1:].tolist(), len(parts)]
    for begin, end in zip(starts.tolist(), ends, strict=True):
        parts[begin:end].sort()
    again = np.zeros(len(parts), bool)
    np.equal(parts[1:], parts[:-1], out=again[1:])
    again[starts] = False
    return again
