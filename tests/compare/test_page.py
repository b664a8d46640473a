"""The page of a comparison in Debian's Chromium: light and dark, phone and desk, nothing for axe to find."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune.compare.differences import compare
from finetune.compare.page import render
from finetune.compare.reading import read
from tests.compare import made
from tests.report.conftest import browser, visit
from tests.report.looking import DESK, PHONE, Visit, violations

__all__ = ["browser", "visit"]
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    runs = [
        read(str(made.run(tmp_path / name, privacy="full", **changes)))  # type: ignore[arg-type]
        for name, changes in (("one", {}), ("two", {"wrong": 8, "lr": 0.002, "price": 2.0}), ("three", {"gold": EVIL}))
    ]
    return compare(runs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_is_accessible_and_draws_plots(visit: Visit, facts: dict[str, Any], width: int, scheme: str) -> None:
    page = visit(render(facts), width, scheme, wait=False)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    drawn = [svg for svg in page.locator("figure svg").all() if svg.is_visible()]
    assert len(drawn) == 2, "scores and one stage's curves"
    assert all(svg.locator("path[style*='var(--tuned)'], use[style*='var(--tuned)']").count() for svg in drawn)
    said = page.locator("main").inner_text()
    assert "80 rows of the same id have different gold answers" in said
    assert "12 of 80 answers changed: 12 gained, 0 lost" in said
    page.locator("#answers details summary").first.click()
    first = page.locator(".changed .row").first
    assert "row 9" in first.inner_text()
    assert "parts/r8" not in first.inner_text()
    assert page.locator("#answers h3").first.inner_text() == "Spare parts: B against A", "a reader knows no keys"
    assert "Spare parts" in page.locator("#scores tbody th").first.inner_text()
    assert first.locator(".ids code").text_content() == "parts/r8"


def test_text_of_a_run_never_becomes_markup(visit: Visit, facts: dict[str, Any]) -> None:
    facts["runs"][0]["name"] = EVIL
    facts["answers"][0]["rows"][0]["other"] = EVIL
    page = visit(render(facts), wait=False)
    assert page.locator("img").count() == 0
    assert EVIL in page.locator("header").inner_text()


def test_no_folder_of_the_runs_is_on_the_page_or_in_the_facts(tmp_path: Path) -> None:
    """A page is passed on: whose machine and which client's folder a run lay in is not."""
    folders = ("client-x/one", "client-y/one", "client-y/two")
    found = compare([read(str(made.run(tmp_path / name))) for name in folders])
    assert [run["name"] for run in found["runs"]] == ["one (A)", "one (B)", "two"]
    for text in (json.dumps(found), render(found)):
        assert "client-" not in text
        assert str(tmp_path) not in text


def test_the_page_asks_for_nothing_and_the_same_facts_give_the_same_bytes(facts: dict[str, Any]) -> None:
    html = render(facts)
    assert html == render(facts)
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
