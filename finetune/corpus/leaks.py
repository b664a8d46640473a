"""What evaluation rows say, looked for in training rows: word by word, and through other dress and small edits.

Two rules. A training row that shares so many words in a row with an evaluation row is a leak: 13 of them, as GPT-3 was
cleaned (Brown et al. 2020, appendix C). And one that repeats an evaluation row's prompt, or a passage of twice as many
words of it, with up to a tenth of it edited: such copies keep the scores up and pass under every check for equal words
(Yang et al. 2023, arXiv:2311.04850). For the second rule texts are compared without their spaces: rare n-grams of
characters propose, the edit distance of the best place (Sellers 1980, in bits: Myers 1999) and the words decide.

`score/contamination.py` looks the other way and stays apart: here one evaluation row is enough to drop a training row,
and what matters is that none gets through in disguise; there every test row is told how much of it training gave away.
Both cut texts by `words`.
"""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import accumulate, chain, repeat
from math import ceil
from typing import NamedTuple

from finetune.corpus.dedup import normalise

_CJK = re.compile(r"([\u3400-\u9fff\uf900-\ufaff])")
_GRAM, _CJK_GRAM = 5, 3
"""Characters of an anchor; fewer where a character says as much as a syllable or a word."""
_ANCHORS = 24
"""Rarest n-grams of a passage that are looked for. With a tenth edited, half of them stand as they were."""
_HITS = 0.25
"""Share of a passage's anchors that a text must hold to be compared with it."""
_EDITED, _EDITED_LETTERS = 0.12, 0.13
"""Share of words and of letters that may differ: a tenth, and what rounding and edited spaces add to it."""
_MISSPELT = 0.5
"""Share of a word's letters up to which an unknown word in its place is taken for its misspelling."""
_START = 4
"""Words by which it is told, quickly, that no passage begins here."""
_LONG = 20
"""Words from which an allowed share of them is rounded up."""
_STRANGE = 3
"""Unknown words from which a text is misspelt all over, whatever else the words say that its letters became."""
_NEAR, _NEAR_ANCHORS, _NEAR_SHORTEST = 0.85, 16, 40
"""Jaccard similarity of n-grams from which two rows are the same; n-grams by which it is proposed, of the rarer half of
a row's (of what is not shared, a fifth lies there at most); letters below which the rule above is enough."""
_SHORTEST = 10
"""Characters below which one edit is more than a tenth: such prompts leak only as they are."""


def words(text: str) -> list[str]:
    """Normalised words; each Chinese character counts as one, since no spaces stand between them."""
    clean = normalise(text, signs=False)
    return clean.split() if clean.isascii() else _CJK.sub(r" \1 ", clean).split()


@dataclass(frozen=True)
class _Passage:
    """A prompt, or a part of a value, of evaluation row `row`; `whole` ones are compared with whole prompts only."""

    row: str
    words: tuple[str, ...]
    whole: bool
    letters: str
    gram: int

    @classmethod
    def of(cls, row: str, found: Sequence[str], whole: bool) -> "_Passage":
        letters = "".join(found)
        return cls(row, tuple(found), whole, letters, _CJK_GRAM if len(letters) < 2 * len(found) else _GRAM)


class EvaluationIndex:
    """What the evaluation rows say, to be looked for in training rows; it may be pickled.

    Built from the values that fill the templates, never from the templates, whose words all rows share.
    """

    def __init__(self, n: int, edited: bool = True) -> None:
        self.n, self.edited = n, edited
        self._start = min(_START, n)
        self._ngrams: dict[tuple[str, ...], str] = {}
        self._starts: set[tuple[str, ...]] = set()
        self._prompts: dict[str, str] = {}
        self._passages: list[_Passage] = []
        self._known: set[str] = set()
        self._anchors: dict[str, list[int]] = {}
        self._needed: list[int] = []
        self._window = 0
        self._rows: list[tuple[str, str]] = []
        self._row_anchors: dict[str, list[int]] = {}
        self._longest = 0

    def add(self, name: str, values: Iterable[str], prompt_values: Sequence[str] = ()) -> None:
        """`values`: prompt and answer columns of the evaluation row `name`; `prompt_values`: those of its prompt."""
        self._window = 0
        said = ""
        for value in values:
            found = words(value)
            said += "".join(found)
            self._known.update(found)
            for i in range(len(found) - self.n + 1):
                if gram := _gram_at(found, i, self.n):
                    self._ngrams.setdefault(gram, name)
                    self._starts.add(tuple(found[i : i + self._start]))
            if self.edited and len(found) >= self.n:
                size = min(2 * self.n, len(found))
                begins = [*range(0, len(found) - size, size), len(found) - size]
                self._passages += [_Passage.of(name, found[i : i + size], False) for i in begins]
        if self.edited and len(said) >= _NEAR_SHORTEST:
            self._rows.append((name, said))
        asked = [word for value in prompt_values for word in words(value)]
        letters = "".join(asked)
        if letters and letters not in self._prompts:
            self._prompts[letters] = name
            if self.edited and len(letters) >= _SHORTEST and len(asked) < 2 * self.n:
                self._passages.append(_Passage.of(name, asked, True))

    def find(self, values: Iterable[str], prompt_values: Sequence[str] = ()) -> tuple[str, str] | None:
        """(evaluation row, shared passage) for a training row that says the same, or None."""
        if not (self._prompts or self._ngrams or self._passages):
            return None
        values = list(values)
        cut = {value: words(value) for value in {*values, *prompt_values}}
        asked = [word for value in prompt_values for word in cut[value]]
        if row := self._prompts.get("".join(asked)):
            return row, "the whole prompt"
        texts = [cut[value] for value in values]
        for found in texts:
            if self._starts.isdisjoint(zip(*(found[i:] for i in range(self._start)), strict=False)):
                continue
            for i in range(len(found) - self.n + 1):
                if tuple(found[i : i + self._start]) not in self._starts:
                    continue
                if (gram := _gram_at(found, i, self.n)) in self._ngrams:
                    return self._ngrams[gram], " ".join(gram)
        if not self._passages:
            return None
        self.settle()
        if near := self._find_near("".join(word for found in texts for word in found)):
            return near
        parts = [(found[begin:end], False) for found in texts for begin, end in _windows(found, self._window)]
        if sum(map(len, asked)) <= self._window:
            parts = [(asked, True), *parts]
        close: dict[str, list[int]] = {}  # most prompts are a value
        for found, whole in parts:
            letters = "".join(found)
            if letters not in close:
                close[letters] = self._close(letters)
            for number in close[letters]:
                passage = self._passages[number]
                if passage.whole == whole and (shown := _repeats(passage, found, letters, self._known)):
                    return passage.row, shown
        return None

    def settle(self) -> None:
        """Choose each passage's rarest n-grams. Done before the index goes to workers, it is done once."""
        if self._window or not self._passages:
            return
        grams = [_grams(passage.letters, passage.gram) for passage in self._passages]
        counts = Counter(gram for found in grams for gram in found)
        anchors: dict[str, list[int]] = defaultdict(list)
        self._needed = []
        for number, found in enumerate(grams):
            chosen = sorted(found, key=lambda gram: (counts[gram], gram))[:_ANCHORS]
            self._needed.append(max(1, int(_HITS * len(chosen))))
            for gram in chosen:
                anchors[gram].append(number)
        self._anchors = dict(anchors)
        said = [_grams(letters, _GRAM) for _, letters in self._rows]
        counts = Counter(gram for found in said for gram in found)
        near: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(said):
            rarer = sorted(found, key=lambda gram: (counts[gram], gram))[: max(_NEAR_ANCHORS, len(found) // 2)]
            for place in range(_NEAR_ANCHORS):
                near[rarer[place * len(rarer) // _NEAR_ANCHORS]].append(number)
        self._row_anchors = dict(near)
        self._longest = max((len(letters) for _, letters in self._rows), default=0)
        self._window = 2 * max(len(passage.letters) for passage in self._passages)

    def _find_near(self, said: str) -> tuple[str, str] | None:
        """An evaluation row all of which is nearly the same."""
        if not _NEAR_SHORTEST * _NEAR <= len(said) <= self._longest / _NEAR + _GRAM:
            return None
        grams = _grams(said, _GRAM)
        hits = _hits(grams, self._row_anchors)
        for _, number in sorted((-count, number) for number, count in hits.items() if count >= _NEAR_ANCHORS // 2):
            theirs = _grams(self._rows[number][1], _GRAM)
            if len(grams & theirs) >= _NEAR * len(grams | theirs):
                return self._rows[number][0], "nearly the whole row"
        return None

    def _close(self, letters: str) -> list[int]:
        """The passages that a text may hold, edited: the likeliest first."""
        grams = _grams(letters, _GRAM)
        if not letters.isascii():
            grams = grams | _grams(letters, _CJK_GRAM)
        hits = _hits(grams, self._anchors)
        return [n for _, n in sorted((-count, n) for n, count in hits.items() if count >= self._needed[n])]


def _hits(grams: frozenset[str], anchors: dict[str, list[int]]) -> Counter[int]:
    return Counter(chain.from_iterable(map(anchors.__getitem__, grams & anchors.keys())))


def _gram_at(found: Sequence[str], at: int, n: int) -> tuple[str, ...]:
    """`n` words in a row; twice as many where most are Chinese characters, two of which make a word. () at the end."""
    gram = tuple(found[at : at + n])
    if 2 * sum(_CJK.fullmatch(word) is not None for word in gram if not word.isascii()) <= n:
        return gram
    gram = tuple(found[at : at + 2 * n])
    return gram if len(gram) == 2 * n else ()


def _windows(found: Sequence[str], size: int) -> Iterator[tuple[int, int]]:
    """Runs of words of about `size` letters and half of it more, each beginning `size` letters after the last."""
    ends = list(accumulate(map(len, found)))
    begin = 0
    while begin < len(found):
        at = ends[begin - 1] if begin else 0
        yield begin, bisect_left(ends, at + size + size // 2) + 1
        begin = bisect_left(ends, at + size) + 1


def _repeats(passage: _Passage, found: Sequence[str], letters: str, known: set[str]) -> str | None:
    """What of a text repeats the passage with few edits, or None."""
    pattern = passage.letters
    if passage.whole:
        if abs(len(pattern) - len(letters)) > 0.4 * len(pattern):
            return None
        # Most are told by what is asked of a part anyway.
        if _best_place(pattern, letters, anywhere=True)[0] > 0.4 * len(pattern):
            return None
        begin, end = 0, len(letters)
        distance = _best_place(pattern, letters, anywhere=False)[0]
    else:
        most = int(0.4 * len(pattern))
        distance, end = _best_place(pattern, letters, anywhere=True)
        if distance > most:
            return None
        begin = end - _best_place(pattern[::-1], letters[:end][::-1][: len(pattern) + most + 1], anywhere=True)[1]
    if distance > 0.4 * len(pattern):
        return None
    part = _words_at(found, begin, end)
    if distance == 0:
        return " ".join(part)
    found_swaps = _swaps(passage.words, part, known)
    most = ceil(_EDITED_LETTERS * len(pattern))
    if found_swaps.strange >= _STRANGE and distance <= most:
        return " ".join(part)
    # What differs in one place only, or in few words, may be another statement in the same form.
    limit = _EDITED * len(passage.words)
    limit = ceil(limit) if found_swaps.places > 1 and len(passage.words) >= _LONG else int(limit)
    if found_swaps.words <= limit and distance - found_swaps.letters <= most:
        return " ".join(part)
    return None


def _words_at(found: Sequence[str], begin: int, end: int) -> list[str]:
    """The words of which more than half lies between two places of the letters."""
    part, at = [], 0
    for word in found:
        if (at + at + len(word)) / 2 >= begin and (at + at + len(word)) / 2 <= end:
            part.append(word)
        at += len(word)
    return part


class _Swaps(NamedTuple):
    words: int
    letters: int
    places: int
    strange: int


def _swaps(wanted: Sequence[str], part: Sequence[str], known: set[str]) -> _Swaps:
    """Words that make another statement of it, their letters, in how many places; and how many words are unknown.

    Another statement: known and quite other words in place of its own, words left out or put in, other numbers. A
    misspelt word makes none: it is counted by its letters. Nor does a known word as near to the one it stands for,
    where as many unknown ones show that the text was misspelt.
    """
    swaps = letters = places = strange = 0
    near: list[int] = []
    numbers = True
    for kind, i, j, k, m in SequenceMatcher(None, wanted, part, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        places += 1
        paired = j - i == m - k
        blocks = [(wanted[x : x + 1], part[x + k - i : x + k - i + 1]) for x in range(i, j)] if paired else []
        for ours, theirs in blocks or [(wanted[i:j], part[k:m])]:
            before, after = "".join(ours), "".join(theirs)
            if before == after:
                continue
            number = any(map(str.isdigit, before)) and any(map(str.isdigit, after))
            numbers = numbers and number
            named = [len(word) for word in theirs if word in known]
            strange += len(theirs) - len(named)
            if before and after and not number and _alike(before, after):
                near += named
            else:
                swaps += max(len(ours), len(theirs))
                letters += max(len(before), len(after))
    if numbers:
        return _Swaps(len(wanted), letters, places, 0)
    if len(near) > strange:
        swaps, letters = swaps + len(near), letters + sum(near)
    return _Swaps(swaps, letters, places, strange)


def _alike(word: str, other: str) -> bool:
    return _best_place(word, other, anywhere=False)[0] <= max(2, _MISSPELT * len(word))


@lru_cache(256)
def _best_place(pattern: str, text: str, anywhere: bool) -> tuple[int, int]:
    """(least edit distance between the pattern and a part of the text, or all of it; where the part ends)."""
    size = len(pattern)
    last, everything = 1 << (size - 1), (1 << size) - 1
    masks: dict[str, int] = {}
    for i, letter in enumerate(pattern):
        masks[letter] = masks.get(letter, 0) | 1 << i
    plus, minus, distance, first = everything, 0, size, 0 if anywhere else 1
    best = (size, 0)
    for at, equal in enumerate(map(masks.get, text, repeat(0)), 1):
        across = equal | minus
        diagonal = ((equal & plus) + plus ^ plus) | across
        up = minus | everything & ~(diagonal | plus)
        down = plus & diagonal
        if up & last:
            distance += 1
        elif down & last:
            distance -= 1
            if distance < best[0]:
                best = (distance, at)
        up = up << 1 | first
        plus = (down << 1 | ~(across | up)) & everything
        minus = up & across
    return best if anywhere else (distance, len(text))


@lru_cache(4)
def _grams(letters: str, size: int) -> frozenset[str]:
    return frozenset({letters[i : i + size] for i in range(len(letters) - size + 1)})
