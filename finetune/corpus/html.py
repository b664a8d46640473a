"""Blocks of HTML. Tables survive as text: cells joined by ` | `."""

import re

from finetune.corpus.blocks import Block, Blocks

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
