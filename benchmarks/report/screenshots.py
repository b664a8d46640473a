"""The pictures in docs/screenshots of a run: `python -m benchmarks.report.screenshots work/legal`.

With `--datasheet` those of the datasheet alone, for which `finetune prepare` is enough.
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from finetune.datasheet import page as datasheet
from finetune.report import page as report
from finetune.report import rebuild

OUT = Path(__file__).parents[2] / "docs" / "screenshots"
_COLOURS = 96
SHOTS: dict[str, dict[str, Any]] = {
    "report-1440": {"width": 1440},
    "report-1440-dark": {"width": 1440, "scheme": "dark"},
    "report-390": {"width": 390},
    "report-zh-390-dark": {"width": 390, "scheme": "dark", "language": "zh"},
    "report-answers-1440": {"width": 1440, "at": "#browser"},
    "report-long-texts-1440": {"width": 1440, "at": "#context"},
    "report-parity-1440": {"width": 1440, "at": "#parity"},
}


DATASHEET: dict[str, dict[str, Any]] = {
    "datasheet-1440": {"width": 1440},
    "datasheet-flow-1440": {"width": 1440, "at": "#flow"},
    "datasheet-duplicates-1440": {"width": 1440, "at": "#duplicates"},
    "datasheet-390": {"width": 390, "at": "#flow"},
    "datasheet-zh-390-dark": {"width": 390, "scheme": "dark", "language": "zh"},
}


def take(browser: Browser, file: Path, *, width: int, scheme: Any = "light", at: str | None = None) -> Image.Image:
    """What a reader sees of the page at once, from its top or from the element `at`."""
    context = browser.new_context(viewport={"width": width, "height": 844 if width < 640 else 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(file.as_uri())
    if page.locator("script").count():
        page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'")
    if at:
        page.evaluate("(where) => scrollBy({top: document.querySelector(where).getBoundingClientRect().top - 24, "
                      "behavior: 'instant'})", at)  # fmt: skip
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    return picture


def main(work: Path, *, reports: bool) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "scripts/system.sh installs Debian's Chromium"
    sheet = json.loads((work / "datasheet.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
        sheets, files = {}, {}
        for language in ("en", "zh"):
            sheets[language] = Path(folder) / f"datasheet-{language}.html"
            sheets[language].write_text(datasheet.render(sheet, language), encoding="utf-8")
            if reports:
                _, facts = rebuild.again(work, language)
                files[language] = Path(folder) / f"{language}.html"
                files[language].write_text(report.render(facts), encoding="utf-8")
        shots = [(name, how, sheets) for name, how in DATASHEET.items()]
        shots += [(name, how, files) for name, how in SHOTS.items() if reports]
        for name, how, pages in shots:
            if how.get("at") == "#context" and not facts.get("context"):
                continue
            how = dict(how)
            picture = take(browser, pages[how.pop("language", "en")], **how)
            picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)
            print(json.dumps({"picture": name, "bytes": (OUT / f"{name}.png").stat().st_size}))
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), reports="--datasheet" not in sys.argv[2:])
