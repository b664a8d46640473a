"""Blocks of PDF and DOCX, by the libraries that parse them."""

import logging
import re
import zipfile
import zlib
from typing import BinaryIO

from finetune.corpus.blocks import Block, Blocks
from finetune.corpus.streams import BadInput, bad


def read_pdf(name: str, stream: BinaryIO) -> Blocks | BadInput:
    """One block for each page. Its tables come as lines of text: a PDF does not say what a cell is."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    blocks: Blocks = []
    page_number = 0
    try:
        reader = PdfReader(stream)
        if reader.is_encrypted and not reader.decrypt(""):
            return bad(name, 0, "unreadable file", "this PDF asks for a password", "save a copy without one")
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
        rule = f"this PDF cannot be read ({type(error).__name__})"
        return bad(name, page_number, "unreadable file", rule, "save it again as PDF")
    return blocks


def _printable(text: str) -> str:
    """Extraction may give lone surrogates, NULs and other control characters: none of them is text."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)


def read_docx(name: str, stream: BinaryIO) -> Blocks | BadInput:
    """Paragraphs, headings by their style, table rows, in document order."""
    import docx
    from docx.opc.exceptions import OpcError
    from docx.table import Table
    from lxml.etree import LxmlError

    pieces: list[tuple[str, int]] = []
    try:
        document = docx.Document(stream)
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
        rule = f"this DOCX cannot be read ({type(error).__name__})"
        return bad(name, 0, "unreadable file", rule, "save it again as .docx")
    return [Block(_printable(text), number, level) for number, (text, level) in enumerate(pieces, start=1)]


def _docx_level(style: str | None) -> int:
    if style == "Title":
        return 1
    found = re.fullmatch(r"(?:Heading|标题|heading) ?([1-9])", style or "")
    return min(int(found.group(1)), 6) if found else 0
