"""The length policy `split`: a row that is too long becomes several, cut where its text has paragraphs of its own."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

_BOUNDARIES = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"\n"),
    re.compile(r"(?<=[。！？；])|(?<=[.!?;])\s+"),
)
"""Where a text may be cut, the best places first: between paragraphs, lines, sentences (also where none is spaced)."""
_INK = re.compile(r"\S")


def split_text(text: str, fits: Callable[[str], bool]) -> list[str] | None:
    """The text in as few parts as its own boundaries allow, each of which `fits`; None where a sentence alone does not.

    Parts follow each other and lose nothing but the white space between them. A part ends between paragraphs where one
    end lies within reach, else between lines, else between sentences. What is handed to `fits` is at most about twice
    as long as a part, whatever is left of the text.
    """
    inked = len(text.rstrip())
    cuts = [[at for match in cut.finditer(text) if (at := match.end()) < inked] for cut in _BOUNDARIES]
    ends = [*sorted({at for found in cuts for at in found}), len(text)]

    def holds(end: int) -> bool:
        return fits(text[start:end] if end == len(text) else text[start:end].rstrip())

    parts: list[str] = []
    start, ink = 0, len(text) - len(text.lstrip())
    while True:
        reach = _reach(ends, bisect_right(ends, ink, hi=len(ends) - 1), holds)
        if reach == len(text):
            return [*parts, text[start:]]
        within = (found[last] for found in cuts if (last := bisect_right(found, reach) - 1) >= 0 and found[last] > ink)
        cut = next(within, None)
        following = _INK.search(text, cut) if cut is not None else None
        if following is None:
            return None
        parts.append(text[start:cut].rstrip())
        start = ink = following.start()


def _reach(ends: Sequence[int], first: int, holds: Callable[[int], bool]) -> int:
    """The last of the `ends` from the index `first` on that holds, or 0: what lies before one that holds, holds too."""
    low, high, step = first, first, 1
    while high < len(ends) and holds(ends[high]):
        low, high, step = high + 1, high + step, 2 * step
    high = min(high, len(ends))
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if holds(ends[middle]) else (low, middle)
    return ends[low - 1] if low > first else 0
