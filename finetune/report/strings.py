"""The words of the report in its languages, read from strings.yaml."""

import functools
import re
import string
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = ("en", "zh")


@functools.cache
def words(language: str) -> dict[str, Any]:
    """All strings of one language: nested dicts, leaves are `str.format` templates."""
    text = Path(__file__).with_name("strings.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text.replace(" %", "\u00a0%"))  # a percent sign never begins a line
    strings: dict[str, Any] = table[language]
    return strings


def translated(sentence: str, language: str) -> str:
    """A sentence that a stage or a gate wrote in English, in another language; one that is not known stays as it is."""
    for name, english in words("en")["said"].items():
        parts = string.Formatter().parse(english)
        pattern = "".join(re.escape(text) + (f"(?P<{key}>.+)" if key else "") for text, key, _, _ in parts)
        if found := re.fullmatch(pattern, sentence):
            return str(words(language)["said"][name].format(**found.groupdict()))
    return sentence
