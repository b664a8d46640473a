"""The words of the report in its languages, read from strings.yaml."""

import functools
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = ("en", "zh")


@functools.cache
def words(language: str) -> dict[str, Any]:
    """All strings of one language: nested dicts, leaves are `str.format` templates."""
    table = yaml.safe_load(Path(__file__).with_name("strings.yaml").read_text(encoding="utf-8"))
    strings: dict[str, Any] = table[language]
    return strings
