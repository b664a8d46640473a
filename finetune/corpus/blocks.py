"""Blocks of text documents: txt, Markdown and HTML. Tables survive as text: cells joined by ` | `."""

import re

from finetune.corpus.documents import Block, Blocks


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
