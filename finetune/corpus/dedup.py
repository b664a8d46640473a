"""Exact and near duplicates: sketches of fixed width propose, the real Jaccard similarity of character 5-grams decides.

A sketch is a 128-bit key of the normalised text, its length and a MinHash signature (Broder 1997) of 128 values of 16
bits: 276 bytes a row, made piece by piece. Finding needs the sketches of all rows (an array, or a file mapped as one)
and reads again only texts that a band of LSH and the signatures call alike.
"""

import hashlib
import re
import tempfile
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.corpus.keys import distinct, repeated

_SHINGLE = 5
_PERMUTATIONS = 128
_RECALL = 0.9995
_MISSED = 0.0008
"""Chance of a pair at the threshold to share no two bands, up to which two are asked for in crowded buckets."""
_SIGMAS = 4.0
"""Standard deviations below the threshold at which a similarity estimated from signatures is still looked into."""
_SMALL = 16
"""Rows in a bucket up to which all its pairs are estimated at once; in larger ones only kept rows are compared with."""
_WINDOWS = 1 << 17
"""Windows that are hashed at a time: their arrays stay within a core's cache."""
_READ = 1 << 20
"""Characters of rows that are compared at a time; the texts that they resemble come on top."""
_MULTIPLIERS = np.random.Generator(np.random.PCG64(42)).integers(0, 2**32, _PERMUTATIONS, np.uint32) | np.uint32(1)
_PRIME, _MIX = 0x100000001B3, 0x9E3779B97F4A7C15
_WORDS = re.compile(r"[^\W_]+")
_KEPT = re.compile(r"[<>=≤≥]+(?=\s?[-+±]?\.?\d)|(?<![\w+-])[-+±](?=\.?\d)|[^\W_]+(?:(?<=\d)\.(?=\d)[^\W_]+)*")
_MAY_KEEP = re.compile(r"[-+<>=.](?=\s?[-+]?\.?[0-9])")
_ASCII = bytes(ord(chr(i).lower()) if chr(i).isalnum() else 32 for i in range(128)) + bytes(range(128, 256))

KEY = np.dtype([("key", "<u8", (2,)), ("length", "<u4")])
SKETCH = np.dtype([*KEY.descr, ("signature", "<u2", (_PERMUTATIONS,))])
Array = NDArray[Any]
Sketch = np.void
"""One row of an array of SKETCH."""
ReadTexts = Callable[[Sequence[int]], Sequence[str]]
"""Positions -> the texts that were sketched, in that order."""


class Found(NamedTuple):
    """Row `dropped[i]` repeats row `kept[i]` (positions, `dropped` ascending); similarity 1.0 for exact ones."""

    dropped: Array
    kept: Array
    similarity: Array


def normalise(text: str, *, signs: bool = True) -> str:
    """What does not make a difference is taken out: case, width, punctuation, white space. With `signs` what makes of a
    number another one stays (-5, < 5, 0.5), and a text of nothing but signs is itself."""
    if text.isascii() and not (signs and _MAY_KEEP.search(text)):
        clean = b" ".join(text.encode().translate(_ASCII).split()).decode()
    else:
        text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
        clean = " ".join((_KEPT if signs else _WORDS).findall(text))
    return clean or (" ".join(text.split()) if signs else "")


def shingles(text: str) -> frozenset[str]:
    """Character 5-grams of the normalised text; a shorter text is one shingle. Works without word boundaries."""
    clean = normalise(text)
    return frozenset(clean[i : i + _SHINGLE] for i in range(max(1, len(clean) - _SHINGLE + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def keys(texts: Sequence[str]) -> Array:
    """KEY of each text: all that exact duplicates need."""
    made = np.empty(len(texts), KEY)
    made["key"], made["length"] = _keys([normalise(text) for text in texts]), [len(text) for text in texts]
    return made


def sketch(text: str) -> Sketch:
    return sketches([text])[0]


def sketches(texts: Sequence[str]) -> Array:
    """SKETCH of each text. What it is depends on the text alone, not on those beside it."""
    made = np.empty(len(texts), SKETCH)
    clean = [normalise(text) for text in texts]
    made["key"], made["length"] = _keys(clean), [len(text) for text in texts]
    for begin, end in _batches([len(text) for text in clean], _WINDOWS):
        hashes, starts = _windows(clean[begin:end], np.uint32)
        signatures = np.empty((_PERMUTATIONS, end - begin), np.uint32)
        for row, multiplier in zip(signatures, _MULTIPLIERS, strict=True):
            np.minimum.reduceat(hashes * multiplier, starts, out=row)
        # The least of many numbers is small: what tells it from others are its low bits.
        made["signature"][begin:end] = signatures.T.astype(np.uint16)
    return made


def _keys(clean: Sequence[str]) -> Array:
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in clean
    )
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def _windows(clean: Sequence[str], kind: type[np.unsignedinteger[Any]]) -> tuple[Array, Array]:
    """(hashes of all 5-grams, where each text's begin). A text below five characters is one window, filled up."""
    gap = "\0" * _SHINGLE
    joined = (gap.join(clean) + gap).encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(joined, "<u4").astype(kind)
    lengths = np.fromiter(map(len, clean), np.int64, len(clean))
    counts = np.maximum(1, lengths - _SHINGLE + 1)
    starts = np.cumsum(counts) - counts
    begins = np.cumsum(lengths + _SHINGLE) - (lengths + _SHINGLE)
    total = len(letters) - _SHINGLE + 1
    hashes = letters[:total].copy()
    for place in range(1, _SHINGLE):
        hashes *= kind(_PRIME & np.iinfo(kind).max)
        hashes += letters[place : place + total]
    half = kind(np.iinfo(kind).bits // 2 - 1)
    for _ in range(2):
        hashes ^= hashes >> half
        hashes *= kind(_MIX & np.iinfo(kind).max)
    hashes ^= hashes >> half
    return hashes[np.arange(counts.sum()) + np.repeat(begins - starts, counts)], starts


def find_exact(rows: Array) -> Found:
    """Every row of KEY or SKETCH whose normalised text a better one has: the longest as written, then the first."""
    # Half of a key tells nearly all rows apart: only those where it does not are sorted by all of it.
    halves: Array = rows["key"][:, 0]
    left = np.flatnonzero(repeated(np.array(halves)).hold(halves))
    some = rows[left]
    first, second = some["key"][:, 0], some["key"][:, 1]
    order = np.lexsort((-some["length"].astype(np.int64), second, first))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)
    kept = order[new][np.cumsum(new) - 1]
    dropped, stands = order[~new], kept[~new]
    by_place = np.argsort(dropped)
    return Found(left[dropped[by_place]], left[stands[by_place]], np.ones(len(dropped)))


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
    for count in range(1, _PERMUTATIONS + 1):
        if 1 - (1 - threshold**count) ** (_PERMUTATIONS // count) >= _RECALL:
            found = count
    return found


def clusters(found: Found) -> dict[str, Any]:
    """{rows, clusters, sizes}: dropped rows, rows that stand for some, and how many clusters have how many rows."""
    sizes = Counter((np.unique(found.kept, return_counts=True)[1] + 1).tolist())
    return {
        "rows": len(found.dropped),
        "clusters": sizes.total(),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
    }


class _Search:
    """The rows of `order`, best first, are numbered 0, 1, ...: these numbers are what everything here is about."""

    def __init__(
        self, rows: Array, order: Array, threshold: float, read_texts: ReadTexts, scratch: Path | None
    ) -> None:
        self.signatures, self.lengths, self.order = rows["signature"], rows["length"], order
        self.threshold, self.read_texts = threshold, read_texts
        spread = (_PERMUTATIONS * threshold * (1 - threshold)) ** 0.5
        self.least = int(_PERMUTATIONS * threshold - _SIGMAS * spread)
        # Rows that share a crowded bucket by chance share one, rows that are alike several.
        height = band_rows(threshold)
        bands, chance = _PERMUTATIONS // height, threshold**height
        missed = (1 - chance) ** bands + bands * chance * (1 - chance) ** (bands - 1)
        self.shared = 2 if missed <= _MISSED else 1
        self.number_bits = np.uint64((1 << max(1, len(order).bit_length())) - 1)
        self.bands = self._bands(scratch)
        self.stands: Array = np.empty(0, np.int64)
        self.similarity: Array = np.empty(0)

    def run(self) -> tuple[Array, Array]:
        """(number of the row that stands for each, itself where it is kept; its similarity)."""
        pairs, crowded, asked = self._candidates()
        self.stands, self.similarity = np.arange(len(self.order)), np.ones(len(self.order))
        begins = np.searchsorted(pairs >> np.uint64(32), asked)
        ends = np.searchsorted(pairs >> np.uint64(32), asked, side="right")
        better = (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        kept_in: dict[int, array[int]] = defaultdict(lambda: array("q"))
        texts = _Sets(self.order, self.read_texts)
        for begin, end in _batches(self.lengths[self.order[asked]].tolist(), _READ):
            numbers = asked[begin:end]
            places = np.searchsorted(crowded, self.bands[:, numbers])
            places[places == len(crowded)] = 0
            inside = crowded[places] == self.bands[:, numbers] if len(crowded) else np.zeros(places.shape, bool)
            buckets = [places[inside[:, i], i].tolist() for i in range(len(numbers))]
            close = [better[begins[begin + i] : ends[begin + i]] for i in range(len(numbers))]
            texts.turn()
            self._decide(numbers.tolist(), close, buckets, kept_in, texts)
        return self.stands, self.similarity

    def _decide(
        self,
        numbers: list[int],
        close: list[Array],
        buckets: list[list[int]],
        kept_in: dict[int, "array[int]"],
        texts: "_Sets",
    ) -> None:
        likely = [
            {*self._kept(pairs).tolist(), *self._in_crowds(number, crowds, kept_in)}
            for number, pairs, crowds in zip(numbers, close, buckets, strict=True)
        ]
        # Read together what most likely is needed; what stays of it is decided one by one.
        texts.read({i for number, others in zip(numbers, likely, strict=True) if others for i in (number, *others)})
        fresh: dict[int, array[int]] = defaultdict(lambda: array("q"))
        for number, found, crowds in zip(numbers, likely, buckets, strict=True):
            others = {i for i in found if self.stands[i] == i} | self._in_crowds(number, crowds, fresh)
            if others:
                texts.read({number, *others})
            best = max(((texts.jaccard(number, i), -self.order[i], i) for i in others), default=(0.0, 0, 0))
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

    def _kept(self, numbers: Array) -> Array:
        return numbers[self.stands[numbers] == numbers]

    def _bands(self, scratch: Path | None) -> Array:
        """(bands, rows) 64-bit values, the low bits left free for a row's number; equal ones are a band's bucket."""
        height = band_rows(self.threshold)
        shape = (_PERMUTATIONS // height, len(self.order))
        if scratch is None or not len(self.order):
            made: Array = np.empty(shape, np.uint64)
        else:
            with tempfile.TemporaryFile(dir=scratch) as file:
                made = np.memmap(file, np.uint64, "w+", shape=shape)
        words = -(-height // 4)
        for begin in range(0, len(self.order), _WINDOWS):
            part = self.signatures[self.order[begin : begin + _WINDOWS]]
            columns = np.zeros((len(part), 4 * words), np.uint16)
            for band, row in enumerate(made):
                columns[:, :height] = part[:, band * height : (band + 1) * height]
                values = np.full(len(part), band + 1, np.uint64)
                for word in columns.view(np.uint64).T:
                    values = (values ^ word) * np.uint64(_MIX)
                    values ^= values >> np.uint64(29)
                row[begin : begin + _WINDOWS] = values & ~self.number_bits
        return made

    def _candidates(self) -> tuple[Array, Array, Array]:
        """(pairs `worse << 32 | better` that signatures call alike, crowded buckets, rows to look into), ascending."""
        pairs, crowded, asked = np.empty(0, np.uint64), [], np.zeros(len(self.order), bool)
        for band in self.bands:
            # Sorting values that hold their row's number costs a fraction of sorting numbers by values.
            values = np.array(band)
            for begin in range(0, len(values), _WINDOWS):
                part = values[begin : begin + _WINDOWS]
                part |= np.arange(begin, begin + len(part), dtype=np.uint64)
            values.sort()
            begins, sizes = self._buckets(values)
            crowds = begins[sizes > _SMALL]
            crowded.append(values[crowds] & ~self.number_bits)
            for begin, size in zip(crowds.tolist(), sizes[sizes > _SMALL].tolist(), strict=True):
                asked[self._numbers(values[begin : begin + size])] = True
            fresh = [pairs]
            for size in range(2, min(_SMALL, sizes.max(initial=0)) + 1):
                members = self._numbers(values[begins[sizes == size][:, None] + np.arange(size)])
                if not len(members):
                    continue
                for first in range(size):
                    for second in range(first + 1, size):
                        better, worse = members[:, first], members[:, second]
                        alike = self._alike(better, worse)
                        fresh.append(worse[alike].astype(np.uint64) << np.uint64(32) | better[alike].astype(np.uint64))
            pairs = distinct(np.concatenate(fresh)).values
        asked[(pairs >> np.uint64(32)).astype(np.int64)] = True
        return pairs, np.sort(np.concatenate(crowded)), np.flatnonzero(asked)

    def _numbers(self, values: Array) -> Array:
        return (values & self.number_bits).astype(np.int64)

    def _buckets(self, values: Array) -> tuple[Array, Array]:
        """(where they begin in the sorted `values`, their sizes) of the buckets of several rows."""
        again = np.empty(max(0, len(values) - 1), bool)
        for begin in range(0, len(again), _WINDOWS):
            part = values[begin : begin + _WINDOWS + 1]
            again[begin : begin + _WINDOWS] = (part[1:] ^ part[:-1]) <= self.number_bits
        first, last = again.copy(), again.copy()
        first[1:] &= ~again[:-1]
        last[:-1] &= ~again[1:]
        begins = np.flatnonzero(first)
        return begins, np.flatnonzero(last) + 2 - begins

    def _alike(self, some: Array, others: Array) -> Array:
        """Which pairs agree in so many values of their signatures that they may reach the threshold."""
        alike = np.empty(len(some), bool)
        for begin in range(0, len(some), _WINDOWS):
            part = slice(begin, begin + _WINDOWS)
            a, b = (self.signatures[self.order[numbers[part]]] for numbers in (some, others))
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

    def read(self, numbers: set[int]) -> None:
        numbers = {number for number in numbers if number not in self.sets}
        self.sets |= {number: self.before[number] for number in numbers if number in self.before}
        missing = sorted(number for number in numbers if number not in self.before)
        if missing:
            texts = self.read_texts([int(self.order[number]) for number in missing])
            hashes, starts = _windows([normalise(text) for text in texts], np.uint64)
            for number, part in zip(missing, np.split(hashes, starts[1:]), strict=True):
                self.sets[number] = distinct(part).values

    def jaccard(self, a: int, b: int) -> float:
        some, others = self.sets[a], self.sets[b]
        merged = np.sort(np.concatenate((some, others)))
        shared = int(np.count_nonzero(merged[1:] == merged[:-1]))
        return shared / (len(merged) - shared)


def _batches(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of runs whose sizes add up to at most `most`, or of one larger one."""
    begin = total = 0
    for end, size in enumerate(sizes):
        if end > begin and total + size > most:
            yield begin, end
            begin, total = end, 0
        total += size
    if begin < len(sizes):
        yield begin, len(sizes)
