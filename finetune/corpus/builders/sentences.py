"""Sentences of English and Chinese text as offsets, and whether one text is about what another says."""

import re
import unicodedata
from collections.abc import Iterator

Extent = tuple[int, int]
"""Start and end of a part of a text, in characters; the end is not in it."""

ENUMERATOR = re.compile(
    r"\s*(?:[(（]\s*(?:[0-9]{1,3}[A-Za-z]?|[A-Za-z]|[ivxlIVXL]{1,5}|[一二三四五六七八九十]{1,3})\s*[)）]"
    r"|[0-9]{1,3}[.)](?![0-9])|[0-9]{1,2}(?:\.[0-9]{1,2}){1,3}\.?(?=\s)|[一二三四五六七八九十]{1,3}、|[-*•·–](?=\s))\s*"
)
"""`(1) `, `(a)`, `2. `, `4.2 `, `（一）`, `- ` at the start of a text."""
_CJK = re.compile(r"[㐀-鿿豈-﫿]")
_BREAK = re.compile(
    r"(?P<cjk>[。！？]+[”’」』）)]*)|(?P<latin>[.?!][\"”’')\]]*(?=\s|$))|(?P<gap>\n[^\S\n]*\n\s*)"
    r"|(?P<line>\n(?=[^\S\n]*(?:[(（][0-9A-Za-z一二三四五六七八九十]{1,5}[)）]|[0-9]{1,3}[.)]\s|[-*•·]\s|第[零〇一二三四五六七八九十百千两0-9]+[条章节])))"
)
_ABBREVIATED = re.compile(
    r"(?:^|[\s(\[\"“])(?:(?:[A-Za-z]\.)*[A-Za-z]|No|Nos|Art|Arts|Sec|Secs|Cl|Sch|Reg|Inc|Ltd|Co|Corp|Mr|Mrs|Ms|Dr|St|"
    r"vs?|cf|etc|e\.g|i\.e|approx|incl|pp?|U\.S\.?C?|Fig|Vol|Ed|al)$"
)
_FEWEST_WORDS = 5
_CONTINUES = re.compile(r"(?:[—–:：;；,，、-]|\b(?:and|or))$")
_GOES_ON = re.compile(r"[^\S\n]+(?:[a-z]|\((?!(?:[0-9]{1,3}[A-Z]?|[a-z]{1,4})\)))")
_COMMON = frozenset({
    "about", "above", "after", "against", "among", "before", "being", "below", "between", "both", "cannot", "certain",
    "could", "does", "done", "each", "every", "from", "have", "having", "hereby", "herein", "into", "itself", "made",
    "make", "other", "otherwise", "over", "provided", "respect", "same", "shall", "should", "some", "such", "than",
    "that", "their", "them", "then", "there", "thereof", "these", "they", "this", "those", "under", "unless", "until",
    "upon", "what", "when", "where", "whether", "which", "while", "whom", "whose", "will", "with", "within",
    "without", "would", "your",
})  # fmt: skip


def is_chinese(text: str) -> bool:
    """Whether more than a fifth of the letters are Chinese characters."""
    letters = sum(letter.isalpha() for letter in text)
    return len(_CJK.findall(text)) * 5 > letters


def sentences(text: str) -> list[Extent]:
    """The sentences of a text in order, white space around them left out. An item of a list is one of its own."""
    found: list[Extent] = []
    start = 0
    for match in _BREAK.finditer(text):
        if match["latin"] and not _ends(text, start, match):
            continue
        _add(text, start, match.end(), found)
        start = match.end()
    _add(text, start, len(text), found)
    return found


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """A full stop is no end after an abbreviation, after the number of a list item and before a small letter."""
    if not match["latin"].startswith("."):
        return True
    if _GOES_ON.match(text, match.end()):
        return False
    before = text[max(start, match.start() - 12) : match.start()]
    return not _ABBREVIATED.search(before) and not ENUMERATOR.fullmatch(text[start : match.end()] + " ")


def _add(text: str, start: int, end: int, found: list[Extent]) -> None:
    part = text[start:end]
    inner = part.strip()
    if inner:
        first = start + len(part) - len(part.lstrip())
        found.append((first, first + len(inner)))


def without_enumerator(text: str, extent: Extent) -> Extent:
    """The extent after `(1) `, `(a)`, `2. `, `（一）`, where the text has one there."""
    match = ENUMERATOR.match(text, extent[0], extent[1])
    return (match.end(), extent[1]) if match and match.end() < extent[1] else extent


def opening(text: str, most: int) -> Extent | None:
    """Whole sentences from the start, at most `most` characters; a sentence that ends with a dash, a colon or `and`
    takes what it announces with it. None where the first does not fit."""
    taken: Extent | None = None
    found = sentences(text)
    if not found:
        return None
    for _, end in found:
        if end - found[0][0] > most:
            break
        if not _CONTINUES.search(text[found[0][0] : end]):
            taken = (found[0][0], end)
    return taken


def first_whole(text: str, most: int) -> Extent | None:
    """The first sentence with what it announces, without its enumerator; None where that is over `most` characters."""
    found = sentences(text)
    for _, end in found:
        start = without_enumerator(text, found[0])[0]
        if end - start > most:
            return None
        said = text[start:end]
        # "Progress policy. An institution must ...": a few words with a full stop are a heading within the text.
        if not _CONTINUES.search(said) and (is_chinese(said) or len(said.split()) >= _FEWEST_WORDS):
            return (start, end)
    return None


def around(text: str, extent: Extent, most: int) -> Extent | None:
    """Whole sentences with `extent` among them, at most `most` characters; None where those it lies in are longer."""
    if len(text) <= most:
        return (0, len(text))
    found = sentences(text)
    inside = [i for i, (start, end) in enumerate(found) if start < extent[1] and end > extent[0]]
    if not inside or found[inside[-1]][1] - found[inside[0]][0] > most:
        return None
    first, last = inside[0], inside[-1]
    while True:
        if last + 1 < len(found) and found[last + 1][1] - found[first][0] <= most:
            last += 1
        elif first > 0 and found[last][1] - found[first - 1][0] <= most:
            first -= 1
        else:
            return (found[first][0], found[last][1])


def squeeze(text: str) -> str:
    """Letters and digits alone, case and width unified: what is compared when a text is looked for in another."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())


def content_words(text: str) -> frozenset[str]:
    """Words that carry the subject: English ones of at least four letters without common ones, stems of five letters;
    pairs of neighbours for Chinese."""
    return frozenset(_words(text))


def _words(text: str) -> Iterator[str]:
    for word in re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold()):
        if _CJK.search(word):
            yield from (word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif len(word) >= 4 and word not in _COMMON:
            yield word[:5]


def touches(subject: frozenset[str], words: frozenset[str]) -> bool:
    """Whether a text with `words` may be about `subject`: it has more than half of it."""
    return bool(subject) and 2 * len(subject & words) > len(subject)
