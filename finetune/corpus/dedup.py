"""What texts are compared by: their normal form, keys for exact duplicates and sketches for near ones (see near.py).

A sketch is a 128-bit key of the normalised text, its length and a MinHash signature (Broder 1997) of 128 values of 16
bits: 276 bytes a row, made piece by piece.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.corpus.keys import repeated

_SHINGLE = 5
PERMUTATIONS = 128
WINDOWS = 1 << 17
"""Windows that are hashed at a time: their arrays stay within a core's cache."""
_MULTIPLIERS = np.random.Generator(np.random.PCG64(42)).integers(0, 2**32, PERMUTATIONS, np.uint32) | np.uint32(1)
_PRIME, MIX = 0x100000001B3, 0x9E3779B97F4A7C15
_WORDS = re.compile(r"[^\W_]+")
_KEPT = re.compile(r"[<>=≤≥]+(?=\s?[-+±]?\.?\d)|(?<![\w+-])[-+±](?=\.?\d)|[^\W_]+(?:(?<=\d)\.(?=\d)[^\W_]+)*")
_MAY_KEEP = re.compile(rb"[-+<>=.](?=[\s\x1c-\x1f]?[-+]?\.?[0-9])")
_KEPT_ASCII = re.compile(r"([<>=]+(?=\s?[-+]?\.?\d)|(?<![\w+-])[-+](?=\.?\d))|(?<=\d)\.(?=\d)")
_ASCII = bytes(ord(chr(i).lower()) if chr(i).isalnum() else 32 for i in range(128)) + bytes(range(128))
_LIFTED = {sign: sign + 128 for sign in b"<>=+-"}

KEY = np.dtype([("key", "<u8", (2,)), ("length", "<u4")])
SKETCH = np.dtype([*KEY.descr, ("signature", "<u2", (PERMUTATIONS,))])
Array = NDArray[Any]
Sketch = np.void
"""One row of an array of SKETCH."""


class Found(NamedTuple):
    """Row `dropped[i]` repeats row `kept[i]` (positions, `dropped` ascending); similarity 1.0 for exact ones."""

    dropped: Array
    kept: Array
    similarity: Array


def normalise(text: str, *, signs: bool = True) -> str:
    """What does not make a difference is taken out: case, width, punctuation, white space. With `signs` what makes of a
    number another one stays (-5, < 5, 0.5), and a text of nothing but signs is itself."""
    if text.isascii():
        plain = text.encode()
        if signs and _MAY_KEEP.search(plain):
            plain = _KEPT_ASCII.sub(_lift, text).encode("latin-1")
        clean = b" ".join(plain.translate(_ASCII).split()).decode()
    else:
        text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
        clean = " ".join((_KEPT if signs else _WORDS).findall(text))
    return clean or (" ".join(text.split()) if signs else "")


def _lift(sign: re.Match[str]) -> str:
    """A sign that stays, as a letter of which the table for ASCII makes it again."""
    return f" {sign[1].translate(_LIFTED)} " if sign[1] else "\xae"


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
    for begin, end in batches([len(text) for text in clean], WINDOWS):
        hashes, starts = windows(clean[begin:end], np.uint32)
        signatures = np.empty((PERMUTATIONS, end - begin), np.uint32)
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


def windows(clean: Sequence[str], kind: type[np.unsignedinteger[Any]]) -> tuple[Array, Array]:
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
        hashes *= kind(MIX & np.iinfo(kind).max)
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


def clusters(found: Found) -> dict[str, Any]:
    """{rows, clusters, sizes}: dropped rows, rows that stand for some, and how many clusters have how many rows."""
    sizes = Counter((np.unique(found.kept, return_counts=True)[1] + 1).tolist())
    return {
        "rows": len(found.dropped),
        "clusters": sizes.total(),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
    }


def batches(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of runs whose sizes add up to at most `most`, or of one larger one."""
    begin = total = 0
    for end, size in enumerate(sizes):
        if end > begin and total + size > most:
            yield begin, end
            begin, total = end, 0
        total += size
    if begin < len(sizes):
        yield begin, len(sizes)
