"""Writers for the file types that a company's folder holds. The same input gives the same content everywhere."""

import csv
import html
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Block = tuple[str, str]
"""(kind, text) with kind h1 h2 h3 h4 p: a document is a list of them."""


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    write_text(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def write_markdown(path: Path, blocks: Iterable[Block]) -> None:
    lines = [("#" * int(kind[1]) + " " if kind != "p" else "") + text for kind, text in blocks]
    write_text(path, "\n\n".join(lines))


def write_html(path: Path, title: str, blocks: Iterable[Block]) -> None:
    body = "\n".join(f"<{kind}>{html.escape(text, quote=False)}</{kind}>" for kind, text in blocks)
    write_text(
        path,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        f"<title>{html.escape(title)}</title>\n<style>body {{ max-width: 45em }}</style>\n</head>\n<body>\n"
        f"<nav><a href=\"index.html\">All documents</a></nav>\n<main>\n{body}\n</main>\n</body>\n</html>",
    )


def write_docx(path: Path, blocks: Iterable[Block]) -> None:
    """A Word document by python-docx, zipped anew without the clock in its bytes."""
    import docx

    document = docx.Document()
    for kind, text in blocks:
        if kind == "p":
            document.add_paragraph(text)
        else:
            document.add_heading(text, level=int(kind[1]))
    written = io.BytesIO()
    document.save(written)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, source.read(name))


def write_pdf(path: Path, title: str, blocks: Iterable[Block]) -> None:
    """A paged PDF by reportlab (`invariant`: no clock; uncompressed: no zlib version in its bytes)."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import Paragraph, SimpleDocTemplate

    styles = getSampleStyleSheet()
    names = {"h1": "Title", "h2": "Heading2", "h3": "Heading3", "h4": "Heading4", "p": "BodyText"}
    path.parent.mkdir(parents=True, exist_ok=True)
    document = SimpleDocTemplate(str(path), pagesize=A4, title=title, invariant=1, pageCompression=0)
    document.build([Paragraph(html.escape(text, quote=False), styles[names[kind]]) for kind, text in blocks])
