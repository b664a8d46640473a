"""Documents that the field's own writers wrote: no text is lost, none is invented, and every cut is a partition."""

import io
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree, html

from finetune.config.data import Cut, Source
from finetune.corpus.read import SourceFile, read_file
from tests.corpus.written import NOISE, Block, Cell, documents, put_together, said, told

cheap = settings(max_examples=25, deadline=None, derandomize=True)
FOLDER: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as made:
        FOLDER.append(Path(made))
        yield


def read(name: str, data: bytes, by: Any) -> list[dict[str, str]]:
    path = FOLDER[-1] / name
    path.write_bytes(data)
    rows, problems = read_file(SourceFile(name, path), Source(path=name, cut=Cut(by=by)), "s")
    assert {problem.rule for problem in problems} <= {"this document holds no text", "this document has no heading"}
    assert bool(rows) != bool(problems)
    return rows


def check_cuts(name: str, data: bytes, expected: str, has_headings: bool) -> None:
    """However it is cut, the rows joined again are the document."""
    for by in ("document", "paragraph", *(["heading"] if has_headings else [])):
        assert put_together(read(name, data, by)) == expected, by


# --- HTML -------------------------------------------------------------------------------------------------------------


def put(parent: Any, text: str, cut: int) -> None:
    """The text into an element, a part of it within another one, beside what is no text."""
    parent.text, inner = text[:cut], etree.SubElement(parent, ("b", "a", "span", "font")[cut % 4])
    inner.text = text[cut : 2 * cut]
    inner.tail = text[2 * cut :]
    noise = etree.SubElement(parent, ("script", "style", "noscript")[cut % 3]) if cut % 2 else etree.Comment(NOISE)
    noise.text = NOISE
    inner.append(noise)


def put_table(parent: Any, rows: Any, cut: int) -> None:
    table = etree.SubElement(parent, "table")
    body = etree.SubElement(table, ("tbody", "thead")[cut % 2]) if cut % 3 else table
    for row in rows:
        line = etree.SubElement(body, "tr")
        for cell in row:
            if cell is None:
                continue
            made = etree.SubElement(line, ("td", "th")[cut % 2])
            if cell.high > 1:
                made.set("rowspan", str(cell.high))
            if cell.wide > 1:
                made.set("colspan", str(cell.wide))
            put(made, cell.text, cut)
            if cell.inner:
                put_table(made, [[Cell(text) for text in inner] for inner in cell.inner], cut)


def write_html(blocks: list[Block], cut: int, *, ascii_only: bool) -> bytes:
    page = etree.Element("html")
    etree.SubElement(etree.SubElement(page, "head"), "title").text = NOISE
    body = etree.SubElement(page, "body")
    place = etree.SubElement(body, ("div", "form", "main", "article")[cut % 4])
    etree.SubElement(place, "nav").text = NOISE
    for block in blocks:
        if block.table:
            put_table(place, block.table, cut)
        elif block.items:
            made = etree.SubElement(place, ("ul", "ol")[cut % 2])
            for item in block.items:
                put(etree.SubElement(made, "li"), item, cut)
        else:
            put(etree.SubElement(place, f"h{block.level}" if block.level else ("p", "div")[cut % 2]), block.text, cut)
    data: bytes = html.tostring(page, encoding="ascii" if ascii_only else "utf-8", doctype="<!DOCTYPE html>")
    return data


@cheap
@given(documents(), st.integers(0, 7), st.booleans())
def test_html_is_read_as_a_serialiser_wrote_it(blocks: list[Block], cut: int, ascii_only: bool) -> None:
    data = write_html(blocks, cut, ascii_only=ascii_only)
    check_cuts("a.html", data, said(blocks, frames=True), any(block.level and told(block.text) for block in blocks))


# --- DOCX -------------------------------------------------------------------------------------------------------------

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
MATHS = "http://schemas.openxmlformats.org/officeDocument/2006/math"
AROUND = ["", "ins", "hyperlink", "sdt", "smartTag"]
"""What a run may stand in and is text all the same."""


def fill(paragraph: Any, text: str, cut: int) -> None:
    """The text in two runs, one of them in an insertion, a link or the like; what was deleted stands beside it."""
    paragraph.add_run(text[:cut])
    run = paragraph.add_run(text[cut:])._r
    if name := AROUND[cut % len(AROUND)]:
        made = etree.SubElement(paragraph._p, f"{{{WORD}}}{name}")
        (etree.SubElement(made, f"{{{WORD}}}sdtContent") if name == "sdt" else made).append(run)
    deleted = etree.SubElement(etree.SubElement(paragraph._p, f"{{{WORD}}}del"), f"{{{WORD}}}r")
    etree.SubElement(deleted, f"{{{WORD}}}delText").text = NOISE
    if cut == 1:
        formula = etree.SubElement(etree.SubElement(paragraph._p, f"{{{MATHS}}}oMath"), f"{{{MATHS}}}r")
        etree.SubElement(formula, f"{{{MATHS}}}t").text = " x=1"


def write_docx(blocks: list[Block], cut: int) -> bytes:
    import docx

    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = NOISE
    document.core_properties.title = NOISE
    for block in blocks:
        if block.table:
            table = document.add_table(len(block.table), len(block.table[0]))
            for y, row in enumerate(block.table):
                for x, cell in enumerate(row):
                    if cell is None:
                        continue
                    place = table.cell(y, x).merge(table.cell(y + cell.high - 1, x + cell.wide - 1))
                    fill(place.paragraphs[0], cell.text, 2 * cut)
                    if cell.inner:
                        inner = place.add_table(len(cell.inner), len(cell.inner[0]))
                        for inner_row, texts in zip(inner.rows, cell.inner, strict=True):
                            for inner_cell, text in zip(inner_row.cells, texts, strict=True):
                                inner_cell.text = text
        elif block.items:
            for item in block.items:
                fill(document.add_paragraph(style="List Bullet"), item, 2 * cut)
        else:
            paragraph = document.add_paragraph(style=f"Heading {block.level}" if block.level else None)
            fill(paragraph, block.text, cut)
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


@settings(cheap, max_examples=15)
@given(documents(), st.integers(0, 4))
def test_docx_is_read_as_python_docx_wrote_it(blocks: list[Block], cut: int) -> None:
    formula = " x=1" if cut == 1 else ""
    expected = [replace(b, text=b.text + formula) if not b.table and not b.items else b for b in blocks]
    headed = any(block.level and told(block.text) for block in expected)
    check_cuts("a.docx", write_docx(blocks, cut), said(expected), headed)


# --- PDF --------------------------------------------------------------------------------------------------------------

LATIN = st.text(st.characters(codec="latin-1", categories=["L", "N", "P", "S", "Zs"]), max_size=30)
CHINESE = st.lists(st.sampled_from(list("更换液压泵密封件，第十二条。（一）：、ABC 0123.5-")), max_size=20).map("".join)
PAGES = st.lists(st.lists(st.tuples(st.booleans(), LATIN, CHINESE), max_size=5), min_size=1, max_size=4)


def write_pdf(pages: list[list[str]]) -> bytes:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen import canvas

    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    stream = io.BytesIO()
    page = canvas.Canvas(stream, invariant=True)
    page.setTitle(NOISE)
    for lines in pages:
        for number, line in enumerate(lines):
            page.setFont("Helvetica" if ord(max(line, default="a")) < 256 else "STSong-Light", 11)
            page.drawString(60, 780 - 20 * number, line)
        page.showPage()
    page.save()
    return stream.getvalue()


@cheap
@given(PAGES)
def test_pdf_is_read_as_reportlab_wrote_it(drawn: list[list[tuple[bool, str, str]]]) -> None:
    """A PDF says where letters stand and no more: white space is what the library makes of it."""
    pages = [[chinese if which else latin for which, latin, chinese in lines] for lines in drawn]
    data = write_pdf(pages)
    written = ["".join("".join(lines).split()) for lines in pages]
    by_page = read("a.pdf", data, "page")
    assert [(row["_line"], "".join(row["text"].split())) for row in by_page] == [
        (str(number), text) for number, text in enumerate(written, start=1) if text
    ]
    for by in ("document", "paragraph"):
        assert "".join("".join(row["text"].split()) for row in read("a.pdf", data, by)) == "".join(written)


# --- OBO --------------------------------------------------------------------------------------------------------------

NAMED = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)
TERM = st.fixed_dictionaries({
    "id": st.integers(1, 9999).map("X:{:04d}".format),
    "name": NAMED.filter(lambda text: text == text.strip()),
    "def": NAMED | st.just("two\nlines\tand a tab"),
    "synonyms": st.lists(NAMED.filter(lambda text: text and " | " not in f" {text} "), max_size=3),
    "parents": st.lists(st.integers(1, 9999).map("X:{:04d}".format), max_size=3),
    "comment": NAMED.filter(lambda text: text == text.strip()),
})  # fmt: skip
ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}


def quoted(text: str) -> str:
    return '"' + "".join(ESCAPED.get(letter, letter) for letter in text) + '"'


@cheap
@given(st.lists(TERM, min_size=1, max_size=4), st.booleans())
def test_obo_is_read_as_its_lines_say(terms: list[dict[str, Any]], marked: bool) -> None:
    """Escapes are those of the format's specification; a definition of HP said `nsecond to fifth` for a line end."""
    lines = ["format-version: 1.2", "! a comment", "", "[Typedef]", "id: part_of", ""]
    for term in terms:
        lines += ["[Term] ! and why" if marked else "[Term]", f"id: {term['id']}", f"name: {term['name']}"]
        lines += [f"def: {quoted(term['def'])} [{NOISE}:1]"]
        lines += [f"synonym: {quoted(text)} EXACT [{NOISE}:2]" for text in term["synonyms"]]
        lines += [f"is_a: {parent} ! {NOISE}" for parent in term["parents"]]
        lines += ["! a comment", f"comment: {term['comment']}", ""]
    rows = read("a.obo", "\n".join(lines).encode(), "document")
    keys = ("id", "name", "def", "synonyms", "parents", "comment", "first_parent")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (
            term["id"], term["name"], term["def"], " | ".join(term["synonyms"]), " ".join(term["parents"]),
            term["comment"], (term["parents"] or [""])[0],
        )
        for term in terms
    ]  # fmt: skip
    assert [lines[int(row["_line"]) - 1][:6] for row in rows] == ["[Term]"] * len(terms)


# --- Markdown and clauses ---------------------------------------------------------------------------------------------

LINE = st.sampled_from(["word 更换", "- item", "| a | b |", "*x* #y", "C#", "3. 第二条"])
PART = st.one_of(
    st.tuples(st.just("heading"), st.integers(1, 6), st.sampled_from(["", " #", " ##  "])),
    st.tuples(st.just("underlined"), st.integers(1, 2), st.just("")),
    st.tuples(st.just("lines"), st.lists(LINE, min_size=1, max_size=3), st.sampled_from(["", "  "])),
    st.tuples(st.just("code"), st.lists(st.sampled_from(["# no heading", "", "~~~", "``", "x"])), st.just("```")),
    st.tuples(st.just("code"), st.lists(st.sampled_from(["# no heading", "", "```", "~~", "x"])), st.just("~~~~")),
)


@cheap
@given(st.lists(PART, min_size=1, max_size=6))
def test_markdown_is_read_as_its_marks_say(parts: list[tuple[str, Any, str]]) -> None:
    """A fence of tildes in one of backticks ended it, and the title `About C#` lost its sharp."""
    written, expected = [], []
    for number, (kind, what, more) in enumerate(parts):
        title = f"{number} About C#"
        if kind == "heading":
            written, expected = [*written, f"{'#' * what} {title}{more}"], [*expected, title]
        elif kind == "underlined":
            written, expected = [*written, f"{title}\n{'=-'[what - 1] * 3}"], [*expected, title]
        else:
            lines = [line + more for line in what] if kind == "lines" else [more, *what, more]
            written, expected = [*written, "\n".join(lines)], [*expected, *lines]
    headed = any(kind in ("heading", "underlined") for kind, _, _ in parts)
    check_cuts("a.md", "\n\n".join(written).encode(), told(" ".join(expected)), headed)


BODY = st.sampled_from(["is so.\nSee Article 1.", "适用于公司。\n（一）如下", "", "Late payment", "is; so\n\nit ends"])


@cheap
@given(st.lists(st.tuples(st.booleans(), BODY), min_size=1, max_size=7), st.sampled_from(["zh", "en", "plain"]))
def test_clauses_joined_again_are_the_document(drawn: list[tuple[bool, str]], way: str) -> None:
    chapter, clause = {
        "zh": ("第{}章 总则{}", "第{}条　"),
        "en": ("Chapter {} Scope{}", "Article {}. "),
        "plain": ("{}. SCOPE{}", "{}.{} "),
    }[way]
    lines, chapters, clauses = [], 0, 0
    for opens, body in drawn:
        if opens or (way == "plain" and not chapters):
            chapters, clauses = chapters + 1, 0 if way == "plain" else clauses
            lines.append(chapter.format(chapters, chapters))
        clauses += 1
        number = clause.format(chapters, clauses) if way == "plain" else clause.format(clauses)
        lines.append(f"{number}{body}")
    text = "\n\n".join(lines)
    parts: list[str] = []
    for row in read("a.txt", text.encode(), "clause"):
        steps = [squeezed(step) for step in row["path"].split(" > ")]
        own = squeezed(row["number"] + row["heading"])
        parts += [step for step in [*steps, own] if step not in parts]
        parts.append(squeezed(row["text"]))
    assert "".join(parts) == squeezed(text)


def squeezed(text: str) -> str:
    """Without white space, and without what stands between a number and what it belongs to."""
    return re.sub(r"[\s.:)：、—–-]", "", text)
