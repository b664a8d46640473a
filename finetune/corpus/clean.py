"""Repair of broken text, and filters that drop a row."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import ftfy

from finetune.config.prepare import Filters, Repair
from finetune.corpus import languages
from finetune.corpus.conversations import texts_in, with_texts
from finetune.corpus.places import Named, Place
from finetune.corpus.repetition import find_repetition
from finetune.corpus.tables import OURS, Row

# Full-width forms are ordinary Chinese punctuation, and curly quotes are how the author wrote them: both stay.
_FIX = ftfy.TextFixerConfig(
    unescape_html=False, uncurl_quotes=False, fix_character_width=False, normalization="NFC", explain=False
)
_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\t]")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_RUNS = re.compile(r"(?<=\S)  +")
_TRAILING = re.compile(r"(?<! ) +$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_AS_EVER = Repair()
_TIDY_ASCII = re.compile(r"[ -~]*\Z")


def repair_text(text: str) -> str:
    """Mojibake undone, NFC, one kind of space and line end, no invisible characters. repair(repair(x)) == repair(x)."""
    if _TIDY_ASCII.match(text) and "  " not in text and "&" not in text:
        return text.strip()
    for _ in range(4):  # one repair can uncover another; real text settles after one or two
        better = _repair_once(text)
        if better == text:
            break
        text = better
    return text


def _repair_once(text: str) -> str:
    text = ftfy.fix_text(text, _FIX)
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", _SPACES.sub(" ", text)))
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = _TRAILING.sub("", _RUNS.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


def repair_row(row: Row, nested: Collection[str] = (), settings: Repair = _AS_EVER) -> Row:
    """Every column but our own repaired; of the `nested` ones, which hold JSON, the texts inside."""
    if not settings.enabled:
        return row
    return {
        name: value if name in OURS else _repair_nested(value) if name in nested else repair_text(value)
        for name, value in row.items()
    }


def _repair_nested(value: str) -> str:
    return with_texts(value, (repair_text(text) for text in texts_in(json.loads(value))))


def filter_reason(
    texts: Sequence[str], filters: Filters, languages_of: Counter[str] | None = None
) -> tuple[str, str] | None:
    """Why a row with these texts (the values that end up in records) is dropped, and what was measured; or None.

    Where languages are looked at, `languages_of` counts the row by its own: `?` where that is not certain.
    """
    length = sum(map(len, texts))
    if length < filters.min_chars:
        return "under min_chars", f"{length} characters"
    if length > filters.max_chars:
        return "over max_chars", f"{length} characters"
    if filters.languages is not None:
        code, certainty = languages.name_language("\n".join(texts))
        if languages_of is not None:
            languages_of[code if certainty >= filters.confidence else "?"] += 1
        if languages.is_unwanted(code, certainty, filters.languages, filters.confidence):
            return "language", f"{code}, certainty {certainty:.2f}"
    if filters.repetition is not None:
        # Each text for itself: a label that stands in the prompt and in the answer repeats nothing.
        for text in texts:
            if measured := find_repetition(text, filters.repetition):
                return "repetition", measured.said
    return None


def place_of(reason: str, texts: Iterable[Named], filters: Filters) -> Place | None:
    """Where a row is over the limit of this filter: what max_chars has no room for, what was said before; or None."""
    if reason == "over max_chars":
        room = filters.max_chars
        for name, text in texts:
            if len(text) > room:
                return Place(name, room, len(text))
            room -= len(text)
    if reason == "repetition" and filters.repetition is not None:
        for name, text in texts:
            if measured := find_repetition(text, filters.repetition):
                return Place(name, measured.start, measured.end)
    return None
