"""The length policy `split`: a row that is too long becomes several, cut where its text has paragraphs of its own."""

import re
from collections.abc import Callable, Iterator

_BOUNDARIES = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"\n"),
    re.compile(r"(?<=[。！？；])|(?<=[.!?;])\s+"),
)
"""Where a text may be cut, the best places first: between paragraphs, lines, sentences (also where none is spaced)."""


def split_text(text: str, fits: Callable[[str], bool]) -> list[str] | None:
    """The text in as few parts as its own boundaries allow, each of which `fits`; None where a sentence alone does not.

    Parts follow each other and lose nothing but the white space between them. A part ends between paragraphs where one
    end lies within reach, else between lines, else between sentences.
    """
    parts: list[str] = []
    while not fits(text):
        cut = _last_fitting(text, fits)
        if cut is None:
            return None
        parts.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*parts, text]


def _last_fitting(text: str, fits: Callable[[str], bool]) -> int | None:
    for boundary in _BOUNDARIES:
        cuts = [at for at in _cuts(text, boundary) if text[:at].strip() and text[at:].strip()]
        # What fits shrinks with the text, so that the last cut that fits is found by halving.
        low, high = 0, len(cuts)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if fits(text[: cuts[middle]].rstrip()) else (low, middle)
        if low:
            return cuts[low - 1]
    return None


def _cuts(text: str, boundary: re.Pattern[str]) -> Iterator[int]:
    return (match.end() for match in boundary.finditer(text))
