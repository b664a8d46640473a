"""Exact and near duplicates: MinHash proposes (rensa), the real Jaccard similarity of character 5-grams decides."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rensa import RMinHash, RMinHashLSH

_SHINGLE = 5
_PERMUTATIONS = 128
_RECALL = 0.999
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Duplicate:
    """Row `dropped` repeats row `kept` (positions); similarity 1.0 for exact ones."""

    dropped: int
    kept: int
    similarity: float


def normalise(text: str) -> str:
    """What does not make a difference is taken out: case, width, punctuation, white space."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def shingles(text: str) -> frozenset[str]:
    """Character 5-grams of the normalised text; a shorter text is one shingle. Works without word boundaries."""
    clean = normalise(text)
    return frozenset(clean[i : i + _SHINGLE] for i in range(max(1, len(clean) - _SHINGLE + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def find_exact(texts: Sequence[str]) -> list[Duplicate]:
    """Every row whose normalised text a better one has. The best is the longest as written, then the first."""
    kept: dict[str, int] = {}
    duplicates = []
    for index in _best_first(texts):
        key = normalise(texts[index])
        if key in kept:
            duplicates.append(Duplicate(index, kept[key], 1.0))
        else:
            kept[key] = index
    return sorted(duplicates, key=lambda duplicate: duplicate.dropped)


def find_near(texts: Sequence[str], threshold: float) -> list[Duplicate]:
    """Rows with Jaccard similarity >= threshold to a kept, better row.

    Better rows are seen first and only kept rows are compared with, so there are no chains: each dropped row resembles
    the row that stands for it. Two kept rows at or above the threshold are missed with a chance below 0.001.
    """
    sets = [shingles(text) for text in texts]
    index_of_kept = RMinHashLSH(threshold, _PERMUTATIONS, bands(threshold))
    duplicates = []
    for index in _best_first(texts):
        sketch = RMinHash(_PERMUTATIONS, 42)
        sketch.update(sorted(sets[index]))
        candidates = sorted(set(index_of_kept.query(sketch)))
        similar = [(jaccard(sets[index], sets[other]), -other) for other in candidates]
        best = max(similar, default=(0.0, 0))
        if best[0] >= threshold:
            duplicates.append(Duplicate(index, -best[1], round(best[0], 4)))
        else:
            index_of_kept.insert(index, sketch)
    return sorted(duplicates, key=lambda duplicate: duplicate.dropped)


def bands(threshold: float) -> int:
    """The fewest LSH bands (divisors of 128) that find a pair at the threshold with a chance of at least 0.999."""
    for rows in (64, 32, 16, 8, 4, 2):
        count = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= _RECALL:
            return count
    return _PERMUTATIONS


def _best_first(texts: Sequence[str]) -> list[int]:
    return sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
