"""In which language a text is written: by its script where that decides, else by py3langid (97 languages, numpy)."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection

_SHORT = 40
"""Letters below which no recogniser is asked: a work order of four words is English, Dutch or neither to it."""
_SHORT_HAN = 8
"""The same for Chinese, where a character is about a syllable."""
_OWN_SCRIPT = 0.3
"""Share of the letters from which a script that one language uses decides."""

_LETTER = re.compile(r"[^\W\d_]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_SCRIPTS = {
    "ja": re.compile("[\u3041-\u3096\u30a1-\u30fa\u30fd-\u30ff\uff66-\uff9d]"),
    "ko": re.compile("[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]"),
    "el": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
    "th": re.compile("[\u0e01-\u0e3a\u0e40-\u0e4e]"),
    "he": re.compile("[\u05d0-\u05ea]"),
}
_SHARED = {
    "Cyrillic": (re.compile("[\u0400-\u052f]"), "ab ba be bg ce cv kk kv ky mk mn os ru sr tg tt uk"),
    "Arabic": (re.compile("[\u0600-\u06ff\u0750-\u077f]"), "ar az dv fa ku ps sd ug ur"),
    "Indic": (re.compile("[\u0900-\u0dff]"), "as bh bn gu hi kn ml mr ne or pa pi sa si sd ta te"),
}
"""Scripts that several languages share and neither English nor Chinese uses, with the languages that do."""
CODES = (  # noqa: SIM905
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo "
    "fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km "
    "kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt "
    "qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa "
    "wuu xh yo yue zh zu"
).split()
"""What a recipe may name: py3langid's languages, but for the one that means no language at all (zxx)."""

_WRITINGS = {
    "LATIN": "Latin", "CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "HANGUL": "Hangul", "CYRILLIC": "Cyrillic",
    "GREEK": "Greek", "ARABIC": "Arabic", "HEBREW": "Hebrew", "DEVANAGARI": "Devanagari", "THAI": "Thai",
}  # fmt: skip
"""First word of a character's Unicode name -> the writing."""
_BEGINNING = 64
WRITINGS, LANGUAGES = "writings of ", "languages of "
"""Before a source's name: the counts of its rows by writing and by language, in the ledger of a run."""
_LONGEST = 2000
"""Characters that are looked at: more of a text does not change its language, and costs time."""


def name_language(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, certainty from 0 to 1). `?` for a text too short to tell or without letters.

    A script of one language decides for texts of any length; so does Chinese writing without kana. What is left is
    recognised from 40 letters on; below that only a script that neither English nor Chinese uses is named, for example
    `("Cyrillic", 1.0)`.
    """
    text = text[:_LONGEST]
    letters = len(_LETTER.findall(text))
    if not letters:
        return "?", 1.0
    for code, script in _SCRIPTS.items():
        # A few kana among many Chinese characters are a quotation; Japanese has at least one in three of its own.
        if len(script.findall(text)) >= _OWN_SCRIPT * letters:
            return code, 1.0
    han = len(_HAN.findall(text))
    if han >= _OWN_SCRIPT * letters:
        kana = len(_SCRIPTS["ja"].findall(text))
        if kana > 0.1 * letters:
            return "ja", 0.8
        return ("zh", 1.0) if han >= _SHORT_HAN else ("?", 1.0)
    if letters < _SHORT:
        shared = (name for name, (script, _) in _SHARED.items() if 2 * len(script.findall(text)) > letters)
        return next(shared, "?"), 1.0
    # Capitals are rare in what the recogniser was made from: `BUCKET WON'T OPEN` is lower-cased for it.
    code, certainty = _recogniser()(text.lower())
    return code if code != "zxx" else "?", float(certainty)


def name_script(text: str) -> str:
    """The writing that most letters of a text's beginning belong to: `Latin`, `Han`, ..., `other`, or `none`."""
    text = text[:_BEGINNING]
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    counts = Counter(unicodedata.name(char, "other").partition(" ")[0] for char in text if char.isalpha())
    return _WRITINGS.get(counts.most_common(1)[0][0], "other") if counts else "none"


def is_unwanted(code: str, certainty: float, wanted: Collection[str], confidence: float) -> bool:
    """Whether a text of this language is surely none of the `wanted` ones. What is too short to tell passes."""
    users = _SHARED[code][1].split() if code in _SHARED else [code]
    return code != "?" and certainty >= confidence and not set(users) & set(wanted)


@functools.cache
def _recogniser() -> Callable[[str], tuple[str, float]]:
    # Read when the first text asks: 0.8 s and 100 MB that a recipe without this filter does not pay.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify
