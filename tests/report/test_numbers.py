"""Every number that a reader sees stands in report.json: on the page, in its plots, and in the rows of answers."""

import copy
import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page

from finetune.report import page as report
from finetune.report.layout import TERMS
from tests.report.looking import Visit
from tests.report.spelling import strangers
from tests.report.synthetic_facts import make_facts

# The text without evaluation rows (looked up one by one below), the configuration, and the ticks of axes.
_SEEN = """() => {
  document.querySelectorAll('details').forEach((one) => { one.open = true; });
  document.querySelectorAll('#browser, #again details, g[id*="tick"]').forEach((one) => one.remove());
  const words = [...document.querySelectorAll('header, main')].map((one) => one.innerText);
  const drawn = [...document.querySelectorAll('.plot.wide text')].map((one) => one.textContent);
  return [...words, ...drawn].join('\\n');
}"""


def seen(page: Page) -> str:
    text: str = page.evaluate(_SEEN)
    return text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_number_on_the_page_stands_in_the_facts(visit: Visit, language: str) -> None:
    facts = json.loads(json.dumps(make_facts(language)))
    unknown, looked_up = strangers(seen(visit(report.render(facts))), facts)
    assert looked_up > 500
    assert unknown == []


@pytest.mark.parametrize("where", ["tasks", "parity", "context", "cost", "ledger"])
def test_a_number_on_the_page_that_is_not_in_the_facts_is_noticed(visit: Visit, where: str) -> None:
    facts = json.loads(json.dumps(make_facts()))
    shown: dict[str, Any] = copy.deepcopy(facts)
    spoil: dict[str, Any] = {
        "tasks": lambda: shown["tasks"][1].update(tuned=0.9473),
        "parity": lambda: shown["parity"].update(kl_mean=7.77e-6),
        "context": lambda: shown["context"].update(loss=0.4179),
        "cost": lambda: shown["cost"].update(usd_total=31.37),
        "ledger": lambda: shown["ledger"][0].update(rows_out=40_977),
    }
    spoil[where]()
    assert strangers(seen(visit(report.render(shown))), facts)[0]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_says_no_internal_name_and_explains_each_section_that_needs_it(visit: Visit, language: str) -> None:
    facts = make_facts(language)
    page = visit(report.render(facts))
    for name, explained in TERMS.items():
        assert page.locator(f"#{name} details.terms dt").count() >= len(explained), name
    page.evaluate("document.querySelectorAll('#lineage details, .command').forEach((one) => one.remove())")
    names = set(re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b", seen(page)))
    assert names <= {"parity_prompts", "x86_64"}, "a setting that the report advises to raise, and a processor"


def test_the_scores_beside_the_answers_are_those_of_the_rows(visit: Visit) -> None:
    facts = make_facts()
    page = visit(report.render(facts))
    for place, row in enumerate(facts["samples"][:10]):
        item = page.locator(".row").nth(place)
        assert item.locator(".ids code").text_content() == row["id"]
        assert item.locator(".before .points").inner_text() == f"{row['score_base_few_shot']:.3f}"
        assert item.locator(".after .points").inner_text() == f"{row['score_tuned']:.3f}"
        assert item.locator(".outcome").inner_text() == row["outcome"]
