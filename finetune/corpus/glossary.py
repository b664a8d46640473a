"""Codes of a trade written out, so that a model reads words; what stood there is kept beside them."""

import csv
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from finetune.config.prepare import Glossary
from finetune.corpus.tables import Row
from finetune.errors import Problem, RecipeError

_PATH = "prepare.repair.glossary"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTER = f"[^\\W{_HAN}]"
"""A letter, digit or underscore that is no Chinese character: beside one of those a token may begin and end."""


@dataclass(frozen=True)
class Codes:
    """What each code means, and the expression that finds them: whole tokens, the longest code first."""

    words: dict[str, str]
    pattern: str
    match_case: bool


def original(column: str) -> str:
    """The column that keeps what a column said before its codes were written out."""
    return f"{column}_original"


def read_codes(path: Path, settings: Glossary) -> Codes:
    """The codes of a glossary. A code that means itself is none. RecipeError with every row that is wrong."""
    problems: list[Problem] = []
    words: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for name, column in (("code", settings.code), ("words", settings.words)):
                if column not in (reader.fieldnames or ()):
                    there = f"the header of {settings.file} names {', '.join(reader.fieldnames or ()) or 'nothing'}"
                    problems.append(Problem(f"{_PATH}.{name}", column, "is no column of the glossary", there))
            for row in reader if not problems else ():
                where = f"{settings.file}:{reader.line_num}"
                code, means = ((row[column] or "").strip() for column in (settings.code, settings.words))
                key = code if settings.match_case else code.lower()
                if not code or not means:
                    problems.append(Problem(where, None, "a code or its words are empty", "fill both, or drop the row"))
                elif words.setdefault(key, means) != means:
                    fix = "keep one of the two, or set match_case=true where they differ in it"
                    problems.append(Problem(where, code, "this code has other words further up", fix))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        rule = f"the glossary cannot be read ({type(error).__name__})"
        problems.append(Problem(f"{_PATH}.file", settings.file, rule, "name a CSV file in UTF-8 with a header line"))
    if problems:
        raise RecipeError(problems[:20])
    words = {code: means for code, means in words.items() if means != code}
    return make_codes(words, settings.match_case)


def make_codes(words: dict[str, str], match_case: bool = False) -> Codes:
    """`lh` is found in `LH boom` and `检查lh油缸`, but neither in `lhx` nor in `won't`, were the code `t`."""
    # Codes that are one token are looked up; only the others (`l/h`, `#2`, 油压) are tried at every place, and first,
    # since one that begins like a token is longer than it.
    several = [code for code in words if not re.fullmatch(f"{_LETTER}+", code)]
    tried = [_bounded(code) for code in sorted(several, key=lambda code: (-len(code), code))]
    token = f"(?<!{_LETTER})(?<!{_LETTER}['’]){_LETTER}+(?!['’]?{_LETTER})"
    return Codes(words, "|".join([*tried, token]), match_case)


def _bounded(code: str) -> str:
    begin = f"(?<!{_LETTER})(?<!{_LETTER}['’])" if re.match(_LETTER, code) else ""
    end = f"(?!['’]?{_LETTER})" if re.search(f"{_LETTER}$", code) else ""
    return f"{begin}{re.escape(code)}{end}"


def expand_text(text: str, codes: Codes) -> tuple[str, Counter[str]]:
    """The text with its codes written out, once, from left to right; and how often each code stood there."""
    counts: Counter[str] = Counter()
    if not codes.words:
        return text, counts

    def write_out(match: re.Match[str]) -> str:
        found = match.group() if codes.match_case else match.group().lower()
        if found not in codes.words:
            return match.group()
        counts[found] += 1
        return codes.words[found]

    return re.compile(codes.pattern, re.NOFLAG if codes.match_case else re.IGNORECASE).sub(write_out, text), counts


def expand_row(row: Row, columns: Collection[str], codes: Codes) -> tuple[Row, Counter[str]]:
    """The row with the codes of these columns written out, and each of them as it was in `<name>_original`.

    RecipeError where the row has such a column already.
    """
    expanded = dict(row)
    counts: Counter[str] = Counter()
    for name in columns:
        if original(name) in row:
            rule = f"writing out the codes of {name} would overwrite this column"
            raise RecipeError.one(f"{row['_file']}:{row['_line']}", original(name), rule, "rename it in the data")
        expanded[original(name)] = row[name]
        expanded[name], found = expand_text(row[name], codes)
        counts += found
    return expanded, counts
