"""Debian's Chromium, and a page opened in it as a reader opens it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.report.looking import DESK, OPENED, Visit

# Quiet: nothing that the browser itself would ask of a network.
QUIET = [
    "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "these tests look at the page in Debian's Chromium: scripts/system.sh installs it"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Visit]:
    """Open a page from a file, as a reader does; a console line, an error or a request for anything else fails."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(html: str, width: int = DESK, scheme: Any = "light", wait: bool = True) -> Page:
        file = tmp_path / f"report-{len(contexts)}.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        if wait:
            page.wait_for_function(OPENED)
        return page

    yield open_page
    outside = [url for url in asked if not re.match(r"file://.*/report-\d+\.html|data:", url)]
    for context in contexts:
        context.close()
    assert said == []
    assert outside == []
