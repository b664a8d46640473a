"""Paragraphs that stand in many groups of a source: disclaimers, signatures, licence headers. They are taken out.

The text of a row stays without them; a row that was nothing else is dropped by its caller. Only hashes are held for the
whole source: 16 bytes for each paragraph.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST_CHARS = 20
"""Shorter paragraphs are headings, labels and answers, which may well repeat; a Chinese character counts as two."""
_BETWEEN = re.compile(r"(\n[^\S\n]*\n\s*)")
_WIDE = re.compile("[\u2e80-\u9fff\uf900-\uffef]")

Keys = NDArray[np.uint64]


def key(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hash_paragraphs(texts: Iterable[str]) -> list[int]:
    """One key for each paragraph of these texts that is long enough, however its white space and case are written."""
    return sorted({key(said) for text in texts for part in _BETWEEN.split(text) if (said := _said(part))})


def find_common(paragraphs: Sequence[int] | Keys, groups: Sequence[int] | Keys, most: int) -> Keys:
    """The paragraphs, sorted, that stand in more than `most` groups; `groups[i]` is where `paragraphs[i]` stands."""
    pairs = np.empty(len(paragraphs), dtype=[("paragraph", np.uint64), ("group", np.uint64)])
    pairs["paragraph"], pairs["group"] = paragraphs, groups
    found, counts = np.unique(np.unique(pairs)["paragraph"], return_counts=True)
    return found[counts > most].astype(np.uint64)


def without(text: str, common: Keys) -> tuple[str, list[str]]:
    """The text without its common paragraphs, and those: `text == ""` where nothing else is left.

    What stays keeps its order, its words and the blank lines between.
    """
    parts = _BETWEEN.split(text)
    kept: list[str] = []
    taken: list[str] = []
    for part, gap in zip(parts[::2], [*parts[1::2], ""], strict=True):
        said = _said(part)
        if said and _holds(common, key(said)):
            taken.append(part)
        else:
            kept += [part, gap]
    return ("".join(kept).strip() if taken else text), taken


def _said(paragraph: str) -> str:
    said = " ".join(paragraph.casefold().split())
    return said if len(said) + len(_WIDE.findall(said)) >= FEWEST_CHARS else ""


def _holds(common: Keys, wanted: int) -> bool:
    at = int(np.searchsorted(common, np.uint64(wanted)))
    return at < len(common) and int(common[at]) == wanted
