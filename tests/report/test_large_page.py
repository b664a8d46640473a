"""10,000 evaluated rows: the page opens and answers at once (benchmarks/report has the figures of a quiet machine)."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from benchmarks.report import run
from finetune.report import page as report

ROWS = 10_000


@pytest.mark.slow
def test_ten_thousand_rows_open_in_two_seconds_and_filter_in_a_fifth_of_one(browser: Browser, tmp_path: Path) -> None:
    facts = run.facts(ROWS)
    assert report.pack_samples(facts["samples"])[1] == ROWS, "all of them are in the page"
    html = report.render(facts)
    assert len(html.encode()) < 9_000_000
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    word = facts["samples"][0]["gold"].split()[0].lower()
    runs = [run.measure(browser, file, word) for _ in range(3)]
    # The best of three: what other jobs on the machine do is no property of the page.
    assert min(found["first_plot_ms"] for found in runs) < 2000
    assert min(found["rows_ready_ms"] for found in runs) < 4000
    assert min(found["filter_worst_ms"] for found in runs) < 200
    assert min(found["longest_task_ms"] for found in runs) < 200
    assert {found["rows_in_document"] for found in runs} == {10}, "however many rows there are, ten are drawn"


def test_search_and_filter_find_among_all_rows(browser: Browser, tmp_path: Path) -> None:
    facts = run.facts(1200)
    file = tmp_path / "report.html"
    file.write_text(report.render(facts), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'")
    last = facts["samples"][-1]
    place = sum(row["task"] == last["task"] for row in facts["samples"])
    page.fill("#query", last["prompt"][:40].upper())
    assert page.locator(".row .where").all_inner_texts() == [f"Article to marginal title · row {place:,}"]
    page.fill("#query", last["id"])
    assert page.locator(".row .ids code").first.text_content() == last["id"], "a row is found by the id in report.json"
    page.fill("#query", "")
    for outcome, count in facts["outcomes"]["title"].items():
        page.locator(f".pills label:has([value={outcome}])").click()
        assert page.locator("#showing").inner_text() == f"1–10 of {count}"
    page.close()
