"""What every look at the page in Debian's Chromium needs."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from playwright.sync_api import Page

from finetune.report import page as report
from tests.report.synthetic_facts import make_facts

PHONE, DESK = 390, 1440
OPENED = "() => document.documentElement.dataset.ready === 'yes'"
Visit = Callable[..., Page]


@functools.cache
def rendered(language: str = "en", gate: str = "pass", accepted: bool = False, rows: int = 96) -> str:
    return report.render(make_facts(language, rows, gate, accepted))


def violations(page: Page) -> list[str]:
    """What axe-core finds, one line each; best practices included."""
    found = find_spec("axe_playwright_python")
    assert found is not None
    assert found.origin is not None
    # Our own content policy forbids foreign scripts, so axe enters through the debugger.
    page.evaluate((Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    result = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    nodes = [(rule["id"], node) for rule in result["violations"] for node in rule["nodes"]]
    return [f"{rule}: {node['target']} {node['failureSummary']}" for rule, node in nodes]
