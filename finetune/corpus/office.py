"""Blocks of PDF and DOCX, by the libraries that parse them."""

import logging
import re
import zipfile
import zlib
from collections.abc import Container, Iterator
from typing import Any, BinaryIO

from finetune.corpus.blocks import Block, Blocks
from finetune.corpus.streams import LONGEST, BadInput, bad

_WIDEST = 100
"""A cell that claims more columns claims so many."""
_MOST = 4 * LONGEST
"""Bytes that all parts of a DOCX may unpack to."""


def read_pdf(name: str, stream: BinaryIO) -> Blocks | BadInput:
    """One block for each page. Its tables come as lines of text: a PDF does not say what a cell is."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    blocks: Blocks = []
    page_number = size = 0
    try:
        reader = PdfReader(stream)
        if reader.is_encrypted and not reader.decrypt(""):
            return bad(name, 0, "unreadable file", "this PDF asks for a password", "save a copy without one")
        for page_number, page in enumerate(reader.pages, start=1):
            text = _printable(page.extract_text())
            size += len(text)
            if size > LONGEST:
                rule = f"this PDF holds more than {LONGEST >> 20} MiB of text"
                return bad(name, page_number, "document too long", rule, "divide it into several files")
            blocks.append(Block(text, page_number))
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
        rule = f"this PDF cannot be read ({type(error).__name__})"
        return bad(name, page_number, "unreadable file", rule, "save it again as PDF")
    return blocks


def _printable(text: str) -> str:
    """Extraction may give lone surrogates, NULs and other control characters: none of them is text."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)


def read_docx(name: str, stream: BinaryIO) -> Blocks | BadInput:
    """Paragraphs, headings by their style and table rows, in document order, content controls and insertions included.

    A merged cell stands once, at its first place; a table within a cell stands in parentheses. Headers, footers, notes,
    comments and runs that are marked as hidden are no part of the text.
    """
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError

    pieces: list[tuple[str, int]] = []
    try:
        with zipfile.ZipFile(stream) as archive:
            parts = archive.infolist()
            if sum(part.file_size for part in parts if part.filename.lower().endswith((".xml", ".rels"))) > LONGEST:
                rule = f"this DOCX holds more than {LONGEST >> 20} MiB of XML"
                return bad(name, 0, "document too long", rule, "divide it into several files")
            if sum(part.file_size for part in parts) > _MOST:  # python-docx holds every part, pictures too
                rule = f"this DOCX holds more than {_MOST >> 20} MiB, unpacked"
                return bad(name, 0, "document too long", rule, "take pictures out of it, or divide it")
        document = docx.Document(stream)
        for element in _elements(document.element.body):
            if element.tag == _TABLE:
                pieces += [(" | ".join(cells), 0) for cells in _rows(element) if any(cells)]
            else:
                style = docx.text.paragraph.Paragraph(element, document._body).style
                pieces.append((_text(element), _docx_level(style.name if style is not None else "")))
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
        EOFError,
        RecursionError,
        NotImplementedError,  # python-docx's word for a feature of the format that it does not read
        zlib.error,
    ) as error:
        rule = f"this DOCX cannot be read ({type(error).__name__})"
        return bad(name, 0, "unreadable file", rule, "save it again as .docx")
    return [Block(_printable(text), number, level) for number, (text, level) in enumerate(pieces, start=1)]


_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_PARAGRAPH, _TABLE, _ROW, _CELL = f"{_W}p", f"{_W}tbl", f"{_W}tr", f"{_W}tc"
_TWICE = (f"{_W}moveFrom", "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback")
"""What stands elsewhere in the document as well."""
_LETTERS = (f"{_W}t", "{http://schemas.openxmlformats.org/officeDocument/2006/math}t")
"""Text, and that of formulas, whose form is lost."""
_SIGNS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def _elements(parent: Any, wanted: Container[str] = (_PARAGRAPH, _TABLE)) -> Iterator[Any]:
    """The elements of these kinds below `parent`, not those within them."""
    for child in parent:
        if child.tag in wanted:
            yield child
        elif child.tag not in _TWICE:
            yield from _elements(child, wanted)


def _text(paragraph: Any) -> str:
    """The text of a paragraph, also in links, content controls, insertions and text boxes; deletions are none."""
    parts: list[str] = []
    for child in paragraph:
        if child.tag in _LETTERS:
            parts.append(child.text or "")
        elif child.tag in _SIGNS:
            parts.append(_SIGNS[child.tag])
        elif child.tag == _PARAGRAPH:
            parts.append(f"\n{_text(child)}\n")
        elif child.tag not in _TWICE and not _hidden(child):
            parts.append(_text(child))
    return "".join(parts)


def _hidden(element: Any) -> bool:
    mark = element.find(f"{_W}rPr/{_W}vanish")
    return mark is not None and mark.get(f"{_W}val", "true") not in ("0", "false", "off")


def _rows(table: Any) -> Iterator[list[str]]:
    for row in _elements(table, (_ROW,)):
        cells: list[str] = []
        for cell in _elements(row, (_CELL,)):
            merge = cell.find(f"{_W}tcPr/{_W}vMerge")
            span = cell.find(f"{_W}tcPr/{_W}gridSpan")
            goes_on = merge is not None and merge.get(f"{_W}val", "continue") == "continue"
            places = int(span.get(f"{_W}val", "1")) if span is not None else 1
            cells += ["" if goes_on else _cell_text(cell), *[""] * (min(places, _WIDEST) - 1)]
        yield cells


def _cell_text(cell: Any) -> str:
    parts = []
    for element in _elements(cell):
        if element.tag == _TABLE:
            inner = "; ".join(" | ".join(filter(None, row)) for row in _rows(element) if any(row))
            parts.append(f"({inner})" if inner else "")
        else:
            parts.append(_text(element))
    return " ".join(" ".join(parts).split())


def _docx_level(style: str | None) -> int:
    if style == "Title":
        return 1
    found = re.fullmatch(r"(?:Heading|标题|heading) ?([1-9])", style or "")
    return min(int(found.group(1)), 6) if found else 0
