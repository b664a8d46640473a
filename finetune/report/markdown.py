"""REPORT.md: the facts for a terminal, a pull request or a mail, without pictures and without evaluation texts."""

from collections.abc import Mapping
from typing import Any

from finetune.report.layout import OTHERS, environment, honest_notes
from finetune.report.strings import words
from finetune.report.verdict import metric_name


def render(facts: Mapping[str, Any]) -> str:
    """The same numbers as the page, in the same spelling; every one of them stands in report.json."""
    language = facts["language"]
    made = environment()
    made.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return made.get_template("report.md.jinja").render(
        f=facts,
        t=words(language),
        metric=lambda name: metric_name(name, language),
        systems=(*OTHERS, "tuned"),
        notes=honest_notes(facts),
    )
