"""A folder as a company has it: PDF, DOCX, HTML and CSV, made of the real texts that data/ ships."""

import csv
import itertools
import re
from pathlib import Path

from bs4 import BeautifulSoup

from scripts.domain_data.documents import Block, write_csv, write_docx, write_html, write_pdf

DATA = Path(__file__).parents[2] / "data"


def mixed(root: Path) -> Path:
    """orders.csv, policies/*.docx, site/*.html, manuals/*.pdf, and two files that no reader belongs to."""
    with (DATA / "maintenance" / "work_orders.csv").open(encoding="utf-8", newline="") as file:
        orders = list(itertools.islice(csv.DictReader(file), 240))
    columns = ("order", "asset", "text", "action", "failure_mode")
    write_csv(root / "orders.csv", [{name: row[name] for name in columns} for row in orders])
    articles = list(_articles())
    for number, start in enumerate(range(0, 160, 40)):
        if number % 2:
            write_docx(root / "policies" / f"part_{number}.docx", itertools.chain(*articles[start : start + 40]))
        else:
            write_html(root / "site" / f"part_{number}.html", "Part", itertools.chain(*articles[start : start + 40]))
    paragraphs = re.split(r"\n\s*\n", (DATA / "legal" / "us_constitution.txt").read_text(encoding="utf-8"))
    blocks: list[Block] = [("p", " ".join(text.split())) for text in paragraphs[5:120] if text.strip()]
    write_pdf(root / "manuals" / "rules.pdf", "Rules", blocks)
    (root / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "notes.xlsx").write_bytes(b"PK")
    return root


def _articles() -> "itertools.chain[list[Block]]":
    """Heading and paragraphs of each article of a statute."""
    soup = BeautifulSoup((DATA / "legal" / "constitution_of_india.html").read_text(encoding="utf-8"), "lxml")
    found: list[list[Block]] = []
    for tag in soup.main.find_all(["h3", "p"]):
        text = tag.get_text()
        if tag.name == "h3":
            found.append([("h2", re.sub(r"^Article \w+\. ", "", text))])
        elif found and not text.startswith("Subject:"):
            found[-1].append(("p", text))
    return itertools.chain(found)
