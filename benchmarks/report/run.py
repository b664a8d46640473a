"""How quickly a report of 10,000 rows opens and answers: `python -m benchmarks.report.run [ROWS]`, in Chromium.

The rows are made of invented words, so that they pack as badly as real text does. Writes results.json beside this file.
"""

import json
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from finetune.report import page as report
from finetune.report import samples as rows_of_report
from tests.report.synthetic_facts import make_facts

HERE = Path(__file__).parent
_SCORES = (0.0, 0.18, 0.5, 0.72, 1.0)
# A frame is on the screen when the one after it begins.
_FIRST_PLOT = """
(() => {
  let seen = false;
  const look = () => {
    if (seen) { window.firstPlot = performance.now(); return; }
    const plot = document.querySelector('figure svg');
    seen = plot !== null && plot.getBoundingClientRect().height > 0;
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
  }).observe({entryTypes: ['longtask']});
})()
"""
_TYPED = """
async (text) => {
  const query = document.getElementById('query'), began = performance.now();
  query.value = text;
  query.dispatchEvent(new Event('input', {bubbles: true}));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - began;
}
"""
_CHOSEN = """
async (value) => {
  const pill = document.querySelector(`input[name=outcome][value="${value}"]`), began = performance.now();
  pill.click();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - began;
}
"""


def facts(rows: int) -> dict[str, Any]:
    """The facts of the tests' invented run with `rows` rows of about 600 characters each."""
    dice = random.Random(rows)  # noqa: S311 (invented text)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 11))) for _ in range(6000)]

    def text(count: int) -> str:
        return " ".join(dice.choices(words, k=count)).capitalize() + "."

    made = make_facts(rows=1)
    samples = []
    for number in range(rows):
        gold = text(9)
        before, after = dice.choice(_SCORES), dice.choice(_SCORES)
        row = {
            "task": "title", "id": f"articles:{number}", "prompt": text(55), "gold": gold, "base_zero_shot": text(9),
            "base_few_shot": text(9), "tuned": gold if after == 1 else text(9), "score_base_zero_shot": 0.1,
            "score_base_few_shot": before, "score_tuned": after,
        }  # fmt: skip
        samples.append({**row, "outcome": rows_of_report.outcome(before, after)})
    return made | {"samples": samples, "outcomes": rows_of_report.count_outcomes(samples)}


def measure(browser: Browser, page_file: Path, word: str) -> dict[str, Any]:
    """Milliseconds from opening the file to the first plot on the screen and to usable rows, and from a key or click to
    the screen that answers it (the worst of twelve); `longest_task_ms` is the longest the page did not react while so
    used."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(_FIRST_PLOT)
    page.goto(page_file.as_uri(), wait_until="commit")
    page.wait_for_function("() => window.firstPlot !== undefined")
    page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'")
    opened = {
        "first_plot_ms": page.evaluate("window.firstPlot"),
        "rows_ready_ms": page.evaluate("performance.now()"),
    }
    page.evaluate("window.longest = 0")
    typed = [page.evaluate(_TYPED, text) for text in (*(word[:end] for end in range(1, 5)), "zz", "e", "")]
    chosen = [page.evaluate(_CHOSEN, value) for value in ("learned", "lost", "same", "wrong", "")]
    page.wait_for_timeout(100)
    found = {
        **opened, "filter_worst_ms": max(typed + chosen), "filter_median_ms": statistics.median(typed + chosen),
        "longest_task_ms": page.evaluate("window.longest"),
        "rows_in_document": page.locator(".row").count(),
    }  # fmt: skip
    context.close()
    return {name: round(value, 1) for name, value in found.items()}


def main(rows: int) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "scripts/system.sh installs Debian's Chromium"
    made = facts(rows)
    html = report.render(made)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(html, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
        runs = [measure(browser, file, made["samples"][0]["gold"].split()[0].lower()) for _ in range(5)]
        version = browser.version
        browser.close()
    shown = report.pack_samples(made["samples"])[1]
    result = {"rows": rows, "rows_shown": shown, "page_bytes": len(html.encode()), "chromium": version, "runs": runs}
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
