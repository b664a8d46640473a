"""Every number that a reader sees stands in report.json: on the page, in its plots, and in the rows of answers."""

import copy
import json
from typing import Any

import pytest
from playwright.sync_api import Page

from finetune.report import page as report
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


def test_the_scores_beside_the_answers_are_those_of_the_rows(visit: Visit) -> None:
    facts = make_facts()
    page = visit(report.render(facts))
    for row in facts["samples"][:10]:
        item = page.locator(".row", has=page.get_by_text(f"· {row['id']}", exact=False)).first
        assert item.locator(".before .points").inner_text() == f"{row['score_base_few_shot']:.3f}"
        assert item.locator(".after .points").inner_text() == f"{row['score_tuned']:.3f}"
        assert item.locator(".outcome").inner_text() == row["outcome"]
