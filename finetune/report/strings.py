"""The words of the report in its languages, read from strings.yaml."""

import functools
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
