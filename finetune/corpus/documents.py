"""Readers of documents (txt, md, html, pdf, docx): blocks first, then rows, cut on the document's own structure.

A block is a heading, a paragraph, a list item, a table row or a page's text, in reading order, with the line, page or
part it starts at. Tables survive as text: cells joined by ` | `.
"""

import io
import logging
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from finetune.config.data import Cut
from finetune.corpus.tables import Row
from finetune.errors import Problem

TEXTUAL = ("txt", "md", "html")
"""Documents that are decoded before they are parsed."""


@dataclass(frozen=True)
class Block:
    text: str
    line: int
    """Line of a text file, page of a PDF, part number of HTML and DOCX; from 1."""
    level: int = 0
    """1 to 6 for a heading, 0 for body text."""


Blocks = list[Block]


def cut_document(name: str, kind: str, blocks: Sequence[Block], cut: Cut, problems: list[Problem]) -> list[Row]:
    """Rows of one document. Column `text` always; heading: also `heading` and `path`; pattern: its named groups."""
    if not any(block.text.strip() for block in blocks):
        fix = "run text recognition (OCR) over it first" if kind == "pdf" else "put text into it, or take it out"
        problems.append(Problem(name, None, "this document holds no text", fix))
        return []
    if cut.by == "pattern":
        return _cut_pattern(name, blocks, cut, problems)
    if cut.by == "page" and kind != "pdf":
        problems.append(
            Problem(name, "page", f"a {kind} document has no pages", "set cut.by to paragraph, heading or document")
        )
        return []
    if cut.by == "heading":
        return _cut_heading(name, kind, blocks, problems)
    if cut.by == "document":
        return [_row(name, blocks[0].line, text=_joined(blocks))]
    pieces = blocks if cut.by == "page" else [piece for block in blocks if not block.level for piece in _split(block)]
    return [_row(name, block.line, text=block.text.strip()) for block in pieces if block.text.strip()]


def _cut_heading(name: str, kind: str, blocks: Sequence[Block], problems: list[Problem]) -> list[Row]:
    if not any(block.level for block in blocks):
        where = {"txt": "plain text has no headings", "pdf": "a PDF does not say what a heading is"}
        problems.append(
            Problem(
                name,
                "heading",
                where.get(kind, "this document has no heading"),
                "set cut.by to paragraph or page, or to pattern with a regular expression for its headings",
            )
        )
        return []
    rows: list[Row] = []
    trail: list[Block] = []
    body: list[Block] = []
    for block in [*blocks, Block("", 0, level=1)]:
        if not block.level:
            body.append(block)
            continue
        text = _joined(body)
        if text or (trail and block.level <= trail[-1].level):
            # A heading over nothing but smaller headings is in their path; one without a body is a row all the same.
            path = " > ".join(step.text for step in trail)
            first = trail[-1] if trail else body[0]
            rows.append(_row(name, first.line, heading=trail[-1].text if trail else "", path=path, text=text))
        trail = [*(step for step in trail if step.level < block.level), block]
        body = []
    return rows


def _cut_pattern(name: str, blocks: Sequence[Block], cut: Cut, problems: list[Problem]) -> list[Row]:
    assert cut.pattern is not None, "checks ask for a pattern when cut.by is pattern"
    text = _joined(blocks)
    starts = _line_starts(blocks)
    rows = []
    for match in re.finditer(cut.pattern, text, re.MULTILINE | re.DOTALL):
        groups = {key: " ".join((value or "").split()) for key, value in match.groupdict().items()}
        line = next(block_line for offset, block_line in reversed(starts) if offset <= match.start())
        rows.append(_row(name, line, **{"text": match.group().strip(), **groups}))
    if not rows:
        problems.append(
            Problem(name, cut.pattern, "the pattern is found nowhere in this document", "correct cut.pattern")
        )
    return rows


def _line_starts(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    starts, offset = [(0, blocks[0].line)], 0
    for block in blocks:
        text = block.text.strip()
        if text:
            starts.append((offset, block.line))
            starts += [(offset + match.end(), block.line + i + 1) for i, match in enumerate(re.finditer("\n", text))]
            offset += len(text) + 2
    return starts


def _joined(blocks: Iterable[Block]) -> str:
    return "\n\n".join(text for block in blocks if (text := block.text.strip()))


def _split(block: Block) -> Iterator[Block]:
    """A block at its blank lines (a PDF page is one block)."""
    line = block.line
    for piece in re.split(r"(\n[^\S\n]*\n\s*)", block.text):
        if piece.strip():
            yield Block(piece, line, block.level)


def _row(name: str, line: int, **columns: str) -> Row:
    return {**columns, "_file": name, "_line": str(line)}


# --- blocks of each format -------------------------------------------------------------------------------------------


def read_txt(text: str) -> Blocks:
    """Paragraphs: runs of lines between blank lines."""
    blocks: Blocks = []
    lines: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            first = first if lines else number
            lines.append(line.rstrip())
        elif lines:
            blocks.append(Block("\n".join(lines), first))
            lines = []
    return blocks


_ATX = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_SETEXT = re.compile(r"(=+|-{2,})\s*$")


def read_md(text: str) -> Blocks:
    """Markdown: ATX (`# x`) and setext (underlined) headings, code fences left whole; other markup stays as text."""
    blocks: Blocks = []
    lines: list[str] = []
    first, fenced = 1, False

    def close() -> None:
        if lines:
            blocks.append(Block("\n".join(lines), first))
            lines.clear()

    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if _FENCE.match(line):
            fenced = not fenced
        heading = None if fenced else _ATX.match(line)
        if heading:
            close()
            blocks.append(Block(heading.group(2), number, level=len(heading.group(1))))
        elif not fenced and len(lines) == 1 and _SETEXT.match(line) and not lines[0].lstrip().startswith(("|", "-")):
            blocks.append(Block(lines.pop().strip(), first, level=1 if line.startswith("=") else 2))
        elif line.strip() or (fenced and lines):
            first = first if lines else number
            lines.append(line.rstrip())
        else:
            close()
    close()
    return blocks


_NOT_TEXT = ("script", "style", "noscript", "template", "nav", "head", "svg", "button", "form", "iframe")
_LEAVES = (
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "p",
    "li",
    "tr",
    "pre",
    "blockquote",
    "dt",
    "dd",
    "figcaption",
    "caption",
)
_CONTAINERS = (
    "div",
    "section",
    "article",
    "main",
    "body",
    "td",
    "th",
    "header",
    "footer",
    "aside",
    "center",
    "address",
)


def read_html(text: str) -> Blocks:
    """Block elements in order; scripts, styles and navigation are left out; a table row is one block."""
    from bs4 import BeautifulSoup
    from bs4.element import NavigableString, PreformattedString, Tag

    soup = BeautifulSoup(text, "lxml")
    for tag in soup.find_all(_NOT_TEXT):
        tag.decompose()
    pieces: list[tuple[str, int]] = []
    running: list[str] = []

    def close(level: int = 0) -> None:
        joined = " ".join("".join(running).split())
        running.clear()
        if joined:
            pieces.append((joined, level))

    def walk(node: Tag) -> None:
        for child in node.children:
            if isinstance(child, PreformattedString):
                continue
            if isinstance(child, NavigableString):
                running.append(str(child))
            elif child.name == "br":
                running.append(" ")
            elif child.name == "tr":
                close()
                cells = [" ".join(cell.get_text(" ").split()) for cell in child.find_all(["td", "th"])]
                pieces.append((" | ".join(cells), 0))
            elif child.name == "pre":
                close()
                pieces.append((child.get_text().strip("\n"), 0))
            elif child.name in _LEAVES or child.name in _CONTAINERS or child.name in ("ul", "ol", "dl", "table"):
                close()
                walk(child)
                close(int(child.name[1]) if re.fullmatch("h[1-6]", child.name) else 0)
            else:
                walk(child)

    walk(soup)
    close()
    return [Block(piece, number, level) for number, (piece, level) in enumerate(pieces, start=1)]


def read_pdf(name: str, data: bytes, problems: list[Problem]) -> Blocks:
    """One block for each page."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    blocks: Blocks = []
    page_number = 0
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            problems.append(Problem(name, None, "this PDF asks for a password", "save a copy without one"))
            return []
        for page_number, page in enumerate(reader.pages, start=1):
            blocks.append(Block(_printable(page.extract_text()), page_number))
    # A broken PDF raises nearly anything out of the parser; each of these was seen with mutated files.
    except (
        PyPdfError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        AssertionError,
        NotImplementedError,  # pypdf's word for a filter or an encryption that it does not know
        OSError,
        zlib.error,
        MemoryError,
    ) as error:
        where = f"{name}:{page_number}" if page_number else name
        problems.append(
            Problem(where, None, f"this PDF cannot be read ({type(error).__name__})", "save it again as PDF")
        )
        return []
    return blocks


def _printable(text: str) -> str:
    """Extraction may give lone surrogates, NULs and other control characters: none of them is text."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)


def read_docx(name: str, data: bytes, problems: list[Problem]) -> Blocks:
    """Paragraphs, headings by their style, table rows, in document order."""
    import docx
    from docx.opc.exceptions import OpcError
    from docx.table import Table
    from lxml.etree import LxmlError

    pieces: list[tuple[str, int]] = []
    try:
        document = docx.Document(io.BytesIO(data))
        for item in document.iter_inner_content():
            if isinstance(item, Table):
                pieces += [(" | ".join(" ".join(cell.text.split()) for cell in row.cells), 0) for row in item.rows]
            else:
                pieces.append((item.text, _docx_level(item.style.name if item.style is not None else "")))
    # As for PDF: a broken archive or a feature the parser has not implemented surfaces as any of these.
    except (
        OpcError,
        LxmlError,
        zipfile.BadZipFile,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
        NotImplementedError,  # python-docx's word for a feature of the format that it does not read
        zlib.error,
    ) as error:
        problems.append(
            Problem(name, None, f"this DOCX cannot be read ({type(error).__name__})", "save it again as .docx")
        )
        return []
    return [Block(_printable(text), number, level) for number, (text, level) in enumerate(pieces, start=1)]


def _docx_level(style: str | None) -> int:
    if style == "Title":
        return 1
    found = re.fullmatch(r"(?:Heading|标题|heading) ?([1-9])", style or "")
    return min(int(found.group(1)), 6) if found else 0
