"""Text that says the same again and again, measured as Gopher did (Rae et al. 2021, arXiv 2112.11446, table A1).

Chinese has no spaces between words, and a word of it is about two characters: there an n-gram of n words is one of 2n
characters. Counted as one word each, characters would repeat themselves in any text about something: of 1,767 articles
of Chinese law with 50 characters or more 762 were over a limit then, 248 are now.
"""

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

FEWEST_WORDS = 50
"""Gopher's documents have at least 50 words: below that, every text repeats something."""
DUPLICATES = {"lines": (0.30, 0.20), "paragraphs": (0.30, 0.20)}
"""Limits on duplicate lines and paragraphs: share of their number, share of the characters."""
MOST_FREQUENT = {2: 0.20, 3: 0.18, 4: 0.16}
"""n -> limit on the share of characters that the most frequent n-gram makes up."""
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""n -> limit on the share of characters that lie in an n-gram which stands more than once."""
_CHARACTERS_A_WORD = 2

_HAN = re.compile("[\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WORDS = re.compile(f"{_HAN.pattern}|(?:(?!{_HAN.pattern})\\w)+")


class Repetition(NamedTuple):
    said: str
    """The measure that is over its limit, in words with its value."""
    start: int
    end: int
    """The first characters that say again what that measure counts."""


def find_repetition(text: str, slack: float = 1.0) -> Repetition | None:
    """The first measure that is over `slack` times its limit, or None."""
    words = _WORDS.findall(text.lower())
    factor = _CHARACTERS_A_WORD if 2 * sum(map(bool, map(_HAN.match, words))) > len(words) else 1
    if len(words) < FEWEST_WORDS * factor:
        return None
    for name, pattern in (("lines", r"\n+"), ("paragraphs", r"\n\s*\n+")):
        pieces = [piece for found in re.split(pattern, text) if (piece := found.strip())]
        for what, share, limit in zip(("", "characters in "), _duplicates(pieces), DUPLICATES[name], strict=True):
            if share > slack * limit:
                said = _said(f"{what}duplicate {name}", share, slack * limit)
                return Repetition(said, *_second(text, pieces, _first_again(pieces)))
    starts = [0, *itertools.accumulate(len(word) + 1 for word in words)]
    joined, total = " ".join(words) + " ", starts[-1] - len(words)
    for n, limit in MOST_FREQUENT.items():
        span = n * factor
        grams = _grams(joined, starts, span)
        gram, count = Counter(grams).most_common(1)[0]
        share = count * (len(gram) - span) / total
        if count > 1 and share > slack * limit:
            said = _said(f"characters in the most frequent {n}-gram", share, slack * limit)
            return Repetition(said, *_words_at(text, grams.index(gram, grams.index(gram) + 1), span))
    for n, limit in REPEATED.items():
        grams = _grams(joined, starts, n * factor)
        share = _repeated(grams, n * factor) / total
        if share > slack * limit:
            said = _said(f"characters in repeated {n}-grams", share, slack * limit)
            return Repetition(said, *_words_at(text, _first_again(grams), n * factor))
    return None


def _first_again(pieces: Sequence[str]) -> int:
    """Which of them is the first that stood before."""
    first: dict[str, int] = {}
    return next(at for at, piece in enumerate(pieces) if first.setdefault(piece, at) != at)


def _second(text: str, pieces: Sequence[str], which: int) -> tuple[int, int]:
    """Where this one of the pieces of a text stands, which follow each other in it."""
    end = 0
    for piece in pieces[: which + 1]:
        start = text.index(piece, end)
        end = start + len(piece)
    return start, end


def _words_at(text: str, first: int, count: int) -> tuple[int, int]:
    """Where so many words stand, from this one on. They are those of the text in small letters, which may be more."""
    found = list(itertools.islice(_WORDS.finditer(text.lower()), first, first + count))
    ends = list(itertools.accumulate(len(letter.lower()) for letter in text))
    return bisect_right(ends, found[0].start()), bisect_right(ends, found[-1].end() - 1) + 1


def _said(what: str, share: float, limit: float) -> str:
    return f"{what}: {share:.3f}, at most {limit:.3f}"


def _duplicates(pieces: Sequence[str]) -> tuple[float, float]:
    """Shares of pieces, and of their characters, that stood before."""
    again = list(itertools.chain.from_iterable([piece] * (n - 1) for piece, n in Counter(pieces).items()))
    return len(again) / len(pieces), sum(map(len, again)) / sum(map(len, pieces))


def _grams(joined: str, starts: Sequence[int], n: int) -> list[str]:
    """Every n words in a row as one string with a space after each word: `starts` says where the words begin."""
    return [joined[a:b] for a, b in zip(starts, starts[n:], strict=False)]


def _repeated(grams: Sequence[str], n: int) -> int:
    """Characters of the words that lie in an n-gram which stood before, each word once."""
    seen: set[str] = set()
    characters = at = 0
    while at < len(grams):
        if grams[at] in seen:
            characters += len(grams[at]) - n
            at += n
        else:
            seen.add(grams[at])
            at += 1
    return characters
