"""REPORT.md: the facts for a terminal, a pull request or a mail, without pictures and without evaluation texts."""

from collections.abc import Mapping
from typing import Any

from finetune.report.layout import environment


def render(facts: Mapping[str, Any]) -> str:
    """The same numbers as the page, in the same spelling; every one of them stands in report.json."""
    return environment(facts).get_template("report.md.jinja").render()
