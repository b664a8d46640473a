"""docs/tasks.md says what is so: its table has every metric, and its examples score what it says."""

import re
from typing import Any

import pytest
import yaml
from real_rows import ROOT, row, task

from finetune.metrics import METRICS, gold_problem, score

PAGE = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
PASSAGES = {"Article 5": "The fee is due within thirty days.", "第六条": "申请人应当如实提交材料。"}


def examples() -> list[Any]:
    """Each line of each table, with the settings in the YAML above it."""
    found = []
    for table in re.finditer(r"\| gold \| answer \| score \|\n\| - \| - \| - \|\n((?:\|.*\n)+)", PAGE):
        above = PAGE[: table.start()]
        settings = yaml.safe_load(above[above.rindex("```yaml") + 7 : above.rindex("```")])
        for line in table.group(1).splitlines():
            cells = re.fullmatch(r"\| `(.*)` \| `(.*)` \| ([0-9.]+) \|", line)
            assert cells, line
            found.append(pytest.param(settings, *cells.groups(), id=f"{settings['metric']}: {cells[2]}"))
    return found


@pytest.mark.parametrize(("settings", "gold", "answer", "expected"), examples())
def test_an_example_of_the_page_scores_what_it_says(
    settings: dict[str, Any], gold: str, answer: str, expected: str
) -> None:
    one = row(gold, PASSAGES, ("A", "B"))
    asked = task(settings["metric"], **settings.get("metric_options", {}))
    assert gold_problem(one, asked) is None
    assert score(answer, one, asked) == pytest.approx(float(expected), abs=5e-4)


def test_the_table_has_every_metric_and_each_has_an_example() -> None:
    table = PAGE[PAGE.index("| metric | what") : PAGE.index('"Held against"')]
    assert set(METRICS) <= set(re.findall(r"`(\w+)`", table))
    shown = {example.values[0]["metric"] for example in examples()}
    assert set(METRICS) - shown == {"json_exact"}, "the one that the page explains beside json_f1"


def test_the_passages_of_the_page_are_those_of_this_test() -> None:
    for name, text in PASSAGES.items():
        assert f"`{name}` ({text})" in PAGE
