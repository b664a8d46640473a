"""Text that says the same again and again, measured as Gopher did (Rae et al. 2021, arXiv 2112.11446, table A1).

Chinese has no spaces between words, and a word of it is about two characters: there an n-gram of n words is one of 2n
characters. Counted as one word each, characters would repeat themselves in any text about something: of 1,767 articles
of Chinese law with 50 characters or more 762 were over a limit then, 248 are now.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

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


def find_repetition(text: str, slack: float = 1.0) -> str | None:
    """The first measure that is over `slack` times its limit, in words with its value, or None."""
    words = _WORDS.findall(text.lower())
    factor = _CHARACTERS_A_WORD if 2 * sum(map(bool, map(_HAN.match, words))) > len(words) else 1
    if len(words) < FEWEST_WORDS * factor:
        return None
    for name, pattern in (("lines", r"\n+"), ("paragraphs", r"\n\s*\n+")):
        pieces = [piece for found in re.split(pattern, text) if (piece := found.strip())]
        for what, share, limit in zip(("", "characters in "), _duplicates(pieces), DUPLICATES[name], strict=True):
            if share > slack * limit:
                return _said(f"{what}duplicate {name}", share, slack * limit)
    starts = [0, *itertools.accumulate(len(word) + 1 for word in words)]
    joined, total = " ".join(words) + " ", starts[-1] - len(words)
    for n, limit in MOST_FREQUENT.items():
        span = n * factor
        gram, count = Counter(_grams(joined, starts, span)).most_common(1)[0]
        share = count * (len(gram) - span) / total
        if count > 1 and share > slack * limit:
            return _said(f"characters in the most frequent {n}-gram", share, slack * limit)
    for n, limit in REPEATED.items():
        share = _repeated(_grams(joined, starts, n * factor), n * factor) / total
        if share > slack * limit:
            return _said(f"characters in repeated {n}-grams", share, slack * limit)
    return None


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
