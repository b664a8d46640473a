"""On paper: nothing is cut off, nothing is shown that only works on a screen, and what is folded is unfolded."""

import io

import pytest
from playwright.sync_api import Page
from pypdf import PdfReader

from finetune.report.layout import sections
from finetune.report.strings import words
from tests.report.looking import Visit, rendered
from tests.report.synthetic_facts import make_facts

A4_WIDTH = 672  # CSS px between the page's own margins of 16 mm
_CUT = """(width) => [...document.querySelectorAll('main *, header *')]
  .filter((one) => one.getClientRects().length && !one.closest('svg'))
  .filter((one) => one.getBoundingClientRect().right > width + 1
    || (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX !== 'visible'))
  .map((one) => `${one.tagName} ${one.className} ${one.textContent.slice(0, 60)}`)"""


def on_paper(page: Page) -> Page:
    page.set_viewport_size({"width": A4_WIDTH, "height": 1000})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    return page


def test_print_shows_the_ledger_and_hides_what_only_works_on_a_screen(visit: Visit) -> None:
    page = on_paper(visit(rendered(), scheme="dark"))
    assert not page.locator(".controls").is_visible()
    assert not page.locator("nav").is_visible()
    assert not page.locator(".terms").first.is_visible(), "the words stand at the end"
    assert page.locator("section > details:not([open]):visible").count() == 0, "nothing that would have to be clicked"
    assert page.locator("table.ledger").first.is_visible()
    assert page.locator("#lineage details table").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 30, 34)", "paper is light"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_is_cut_off_on_paper(visit: Visit, language: str) -> None:
    page = on_paper(visit(rendered(language)))
    assert page.evaluate(_CUT, A4_WIDTH) == []
    pdf = PdfReader(io.BytesIO(page.pdf(format="A4", prefer_css_page_size=True)))
    assert 8 <= len(pdf.pages) <= 24
    if language == "en":  # Debian's CJK font has no table of characters in a PDF
        text = "".join("".join(page.extract_text() for page in pdf.pages).split())
        facts = make_facts(language)
        titles = [words(language)[name]["title"] for name in sections(facts)]
        assert [title for title in titles if "".join(title.split()) not in text] == []
        assert all(entry["digest"] in text for entry in facts["lineage"])
        assert "".join(facts["verdict"]["sentence"].split()) in text
