"""The page in a real browser (Debian's Chromium): what a reader sees, at phone and desk width, in light and dark."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from finetune.report import page as report
from finetune.score.general import summarise
from tests.report.looking import DESK, PHONE, Visit, rendered, violations
from tests.report.synthetic_facts import make_facts


def plots(page: Page) -> list[dict[str, Any]]:
    """Of every plot that is shown: its marks' boxes, and texts that leave the drawing or are too small."""
    found: list[dict[str, Any]] = page.evaluate(
        """() => [...document.querySelectorAll('figure')].map(figure => {
            const shown = [...figure.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width > 0);
            const svg = shown[0], frame = svg.getBoundingClientRect();
            const coloured = [...svg.querySelectorAll('path, use')].filter(mark =>
                /var\\(--(tuned|classic|base|fail)\\)/.test(mark.getAttribute('style') || ''));
            const boxes = coloured.map(mark => mark.getBoundingClientRect());
            const visible = boxes.filter(box => box.width + box.height > 1);
            const texts = [...svg.querySelectorAll('text')].map(text => ({
                text: text.textContent, box: text.getBoundingClientRect().toJSON(),
                size: parseFloat(getComputedStyle(text).fontSize) * frame.width / svg.viewBox.baseVal.width}));
            return {shown: shown.length, marks: visible.length, texts, frame: frame.toJSON(),
                    caption: figure.querySelector('figcaption').textContent};
        })"""
    )
    return found


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_page_draws_every_plot_and_is_accessible(visit: Visit, width: int, scheme: str, language: str) -> None:
    page = visit(rendered(language), width, scheme)
    assert page.evaluate("document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]
    drawn = plots(page)
    assert len(drawn) == 11
    for plot in drawn:
        assert plot["shown"] == 1, plot["caption"]
        assert plot["marks"] >= 2, plot["caption"]
        assert len(plot["caption"]) > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    assert violations(page) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_reaches_over_the_edge_at_any_width_with_everything_unfolded(visit: Visit, language: str) -> None:
    page = visit(rendered(language), PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for width in (360, 390, 480, 639, 640, 719, 720, 768, 899, 900, 1024, 1119, 1120, 1280, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_text_in_plots_is_large_enough_inside_the_page_and_never_on_other_text(
    visit: Visit, width: int, language: str
) -> None:
    for plot in plots(visit(rendered(language), width)):
        texts = [text for text in plot["texts"] if text["text"].strip()]
        assert min(text["size"] for text in texts) >= 11, plot["caption"]
        for text in texts:
            box = text["box"]
            assert box["left"] >= plot["frame"]["left"] - 6, text["text"]
            assert box["right"] <= width - 10, text["text"]
        overlapping = [
            (one["text"], other["text"])
            for at, one in enumerate(texts)
            for other in texts[at + 1 :]
            if min(one["box"]["right"], other["box"]["right"]) - max(one["box"]["left"], other["box"]["left"]) > 1
            and min(one["box"]["bottom"], other["box"]["bottom"]) - max(one["box"]["top"], other["box"]["top"]) > 3
        ]
        assert overlapping == []


def test_same_facts_give_the_same_bytes() -> None:
    # Another process, another hash seed: nothing may depend on the order of a set or on a clock.
    script = (
        "import hashlib; from tests.report.synthetic_facts import make_facts;"
        "from finetune.report import page; print(hashlib.sha256(page.render(make_facts()).encode()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=root, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


def test_page_may_ask_for_nothing_from_outside() -> None:
    html = rendered()
    assert "default-src 'none'" in html
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    assert not re.search(r"url\((?!#)", html)
    assert len(html.encode()) < 1_000_000


def test_ids_are_unique_and_references_resolve() -> None:
    html = rendered()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert (target[0] or target[1]) in ids


def test_every_plot_takes_its_colours_from_the_page() -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", rendered(), flags=re.DOTALL))
    assert drawings.count("var(--tuned)") > 10
    assert not re.search(r"#[0-9a-f]{6}\b", drawings), "a colour that light and dark would share"


def test_text_of_a_row_never_becomes_markup(visit: Visit) -> None:
    evil = "</script><img src=x onerror=alert(1)><b>bold</b>"
    facts = make_facts()
    facts["title"] = evil
    facts["samples"][0] |= {"prompt": evil, "tuned": evil, "gold": evil, "id": evil}
    facts["ledger"][0]["source"] = evil
    page = visit(report.render(facts))
    assert page.locator("h1").inner_text() == evil
    assert page.locator(".row .prompt").first.inner_text() == evil
    assert page.locator("img").count() == 0
    assert page.locator(".row b").count() == 0


def test_a_failed_gate_is_said_in_words_and_so_is_who_accepted_it(visit: Visit) -> None:
    page = visit(rendered(gate="fail"))
    assert "Not to be handed over" in page.locator(".verdict").inner_text()
    assert page.locator(".result.fail").inner_text() == "fail"
    page = visit(rendered(gate="fail", accepted=True))
    said = page.locator(".verdict").inner_text()
    assert "R. Okafor, model risk" in said
    assert "speeches are not read by this product" in said
    assert "R. Okafor, model risk" in page.locator("#lineage .signed").inner_text()
    assert page.locator(".signed").evaluate_all("found => found.map(one => getComputedStyle(one).color)") == [
        "rgb(179, 38, 30)", "rgb(179, 38, 30)",
    ]  # fmt: skip
    assert violations(page) == []


def test_an_unmeasured_gate_is_neither_pass_nor_fail(visit: Visit) -> None:
    page = visit(rendered(gate="not_measured"))
    row = page.locator("table.gates tr", has_text="perplexity").inner_text()
    assert row.count("not measured") == 2
    said = page.locator(".verdict").inner_text()
    assert "1 of 5 limits not measured: general text" in said
    assert "Ready" not in said
    assert violations(page) == []


def test_search_and_filter_find_rows(visit: Visit) -> None:
    facts = make_facts()
    page = visit(report.render(facts))
    assert page.locator(".row").count() == 10
    for outcome, count in facts["outcomes"]["title"].items():
        assert page.locator(f"[data-count={outcome}]").inner_text() == str(count)
    page.locator("label:has([value=lost])").click()
    assert page.locator("#showing").inner_text().endswith(f"of {facts['outcomes']['title']['lost']}")
    assert set(page.locator(".row .outcome").all_inner_texts()) == {"lost"}
    page.locator(".pills label:has([value=''])").click()
    page.fill("#query", "ARTICLE 17.")
    assert page.locator(".row .where").all_inner_texts() == ["Article to marginal title · row 18"]
    page.fill("#query", "nowhere to be found")
    assert page.locator("#showing").inner_text() == "No row matches."


@pytest.mark.parametrize(("language", "called"), [("en", "row 4, token 5"), ("zh", "第 4 行，回答的第 5 个词元")])
def test_a_row_is_called_by_task_and_number_and_its_id_waits_where_it_is_asked_for(
    visit: Visit, language: str, called: str
) -> None:
    page = visit(rendered(language))
    assert called in page.locator("#parity").inner_text()
    assert "articles:" not in page.locator("main").inner_text(), "an id means nothing to who has no documents"
    page.locator("#parity details.ids summary").click()
    assert "articles:3" in page.locator("#parity").inner_text()


def test_a_row_without_an_id_offers_none(visit: Visit) -> None:
    facts = make_facts()
    facts["privacy"], facts["samples"] = "none", []
    facts["parity"]["kl_max_at"] = {"id": "title/", "position": 4}
    page = visit(report.render(facts), wait=False)
    assert page.locator("#parity .ids").count() == page.locator(".row .ids").count() == 0
    assert f"{facts['tasks'][0]['title']}" in page.locator("#parity").inner_text()


def test_rows_can_be_turned_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit(rendered())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "verdict"
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert page.locator("#showing").inner_text() == "11–20 of 96"
    page.locator("#previous").focus()
    page.keyboard.press("Space")
    assert page.locator("#showing").inner_text() == "1–10 of 96"
    page.locator("input[name=outcome]").first.focus()
    page.keyboard.press("ArrowRight")
    assert set(page.locator(".row .outcome").all_inner_texts()) == {"learned"}


def test_differing_words_are_marked_and_equal_ones_are_not(visit: Visit) -> None:
    facts = make_facts(rows=3)
    facts["samples"] = facts["samples"][:1]
    facts["samples"][0] |= {
        "gold": '{"action":"replace","part":"hose"}', "base_few_shot": '{"action":"repair","part":"hose"}',
        "tuned": '{"action":"replace"}',
    }  # fmt: skip
    page = visit(report.render(facts))
    assert page.locator(".before mark").all_inner_texts() == ["repair"]
    assert page.locator(".after mark").count() == 0
    assert "".join(page.locator(".gold .missed").all_inner_texts()) == ',"part":"hose"'


def test_differing_characters_are_marked_in_chinese(visit: Visit) -> None:
    facts = make_facts("zh", rows=1)
    facts["samples"][0] |= {"gold": "更换液压软管", "base_few_shot": "修理液压软管", "tuned": "更换液压软管"}
    page = visit(report.render(facts))
    assert page.locator(".before mark").all_inner_texts() == ["修理"]
    assert page.locator(".after mark").count() == 0


def test_rows_that_do_not_fit_are_counted_not_lost() -> None:
    facts = make_facts(rows=400)
    packed, shown = report.pack_samples(facts["samples"], limit=2_000)
    assert len(packed) <= 2_000
    assert 0 < shown < 400
    everything, all_of_them = report.pack_samples(facts["samples"])
    assert all_of_them == 400
    assert len(everything) > 2_000


def test_without_samples_the_page_shows_counts_and_no_texts(visit: Visit) -> None:
    facts = make_facts()
    facts |= {"samples": [], "privacy": "none"}
    page = visit(report.render(facts), wait=False)
    said = page.locator("#answers").inner_text()
    assert str(facts["outcomes"]["title"]["learned"]) in said
    assert "No person shall" not in page.content()
    assert violations(page) == []


def test_a_run_with_little_in_it_still_makes_a_page(visit: Visit) -> None:
    facts = make_facts()
    task = facts["tasks"][0] | {"base_zero_shot": None, "linear_baseline": None, "nearest_baseline": None}
    task["differences"] = {name: task["differences"][name] for name in ("base_few_shot", "majority")}
    for name in ("details", "contamination", "p", "p_adjusted", "standard_error", "smallest_effect", "groups"):
        del task[name]
    for name in ("modes", "consistency", "context", "leaks", "latency", "harness", "export"):
        del facts[name]
    facts |= {
        "tasks": [task], "gates": [], "curves": {}, "parity": {}, "ledger": [], "timings": {}, "rejects_examples": [],
        "general": {"perplexity_base": {}, "perplexity_tuned": {}, "change": {}}, "environment": {}, "cost": None,
    }  # fmt: skip
    page = visit(report.render(facts))
    assert len(plots(page)) == 2
    assert violations(page) == []


@pytest.mark.parametrize("nats", [1000.0, math.inf, math.nan])
def test_a_model_that_training_has_broken_still_gets_its_report(nats: float) -> None:
    """exp(1000) ended SCORE, and an axis without an end the report, in place of a gate that failed."""
    facts = make_facts(gate="fail")
    facts["general"] = summarise({"speeches": [3.0], "glosses": [4.0]}, {"speeches": [3.0], "glosses": [nats]})
    assert not math.isfinite(facts["general"]["change"]["glosses"])
    page = report.render(facts)
    assert len(re.findall(r"<svg", page)) == len(re.findall(r"<svg", rendered(gate="fail")))


def test_a_dollar_in_a_title_is_drawn_as_it_is_and_begins_no_formula() -> None:
    facts = make_facts()
    for task, title in zip(facts["tasks"], ("Amount in $ (50% of $ base)", r"Cost $\frac"), strict=True):
        task["title"] = title
    drawings = "".join(re.findall(r"<svg.*?</svg>", report.render(facts), flags=re.DOTALL))
    assert "Amount in $ (50% of $ base)" in drawings
    assert r"Cost $\frac" in drawings
