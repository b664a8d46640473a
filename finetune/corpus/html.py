"""Blocks of HTML. Tables survive as text: cells joined by ` | `, a table within a cell in parentheses."""

import re
from collections.abc import Iterator
from typing import Any

from finetune.corpus.blocks import Block, Blocks
from finetune.corpus.streams import BadInput, bad

_NOT_TEXT = (
    "script", "style", "noscript", "template", "nav", "head", "svg", "iframe", "button", "select", "datalist",
    "textarea",
)  # fmt: skip
"""Not forms: some systems put the whole page into one."""
_HIDES = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_BLOCKS = {
    "h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "blockquote", "dt", "dd", "figcaption", "caption", "div", "section",
    "article", "main", "body", "td", "th", "header", "footer", "aside", "center", "address", "ul", "ol", "dl", "table",
}  # fmt: skip
_MOST_TAGS = 1_000_000
"""The parser holds about a kilobyte for each."""
_BREAK = "\0"
"""A line end within a block: no file of text holds it."""
_WIDEST = 100
"""A cell that claims more columns or rows claims so many."""


def read_html(name: str, text: str) -> Blocks | BadInput:
    """Block elements in order; scripts, styles, navigation and what is hidden are left out; a table row is one block.

    A merged cell stands once, at its first place; its other places are empty. A row with text in one cell only is a
    frame for a layout: what is in it is read as if it stood alone.
    """
    from bs4 import BeautifulSoup
    from bs4.element import NavigableString, PreformattedString, Tag

    if text.count("<") > _MOST_TAGS:
        rule = f"this HTML has more than {_MOST_TAGS} tags"
        return bad(name, 0, "document too long", rule, "divide it into several files")
    soup = BeautifulSoup(text, "lxml")
    for tag in soup.find_all(_NOT_TEXT):
        tag.decompose()
    for tag in soup.find_all(_hidden):
        tag.decompose()
    pieces: list[tuple[str, int]] = []
    running: list[str] = []

    def close(level: int = 0) -> None:
        lines = "\n".join(" ".join(line.split()) for line in "".join(running).split(_BREAK))
        joined = re.sub(r"\n{3,}", "\n\n", lines).strip()
        running.clear()
        if joined:
            pieces.append((joined, level))

    def table_row(row: Tag, spans: dict[int, int]) -> None:
        close()
        cells = list(_cells(row))
        told = [cell for cell in cells if cell.get_text().strip()]
        placed = [(_cell_text(cell), _span(cell, "colspan"), _span(cell, "rowspan")) for cell in cells]
        filled = list(_filled(placed, spans))
        if len(told) == 1 and isinstance(told[0], Tag) and told[0].find("table") is not None:
            walk(told[0])
            close()
        elif any(filled):
            pieces.append((" | ".join(filled), 0))

    def walk(node: Tag, spans: dict[int, int] | None = None) -> None:
        for child in node.children:
            if isinstance(child, PreformattedString):
                continue
            if isinstance(child, NavigableString):
                running.append(str(child))
            elif child.name == "br":
                running.append(_BREAK)
            elif child.name == "tr":
                table_row(child, {} if spans is None else spans)
            elif child.name in ("thead", "tbody", "tfoot"):
                walk(child, spans)
            elif child.name == "pre":
                close()
                pieces.append((child.get_text().strip("\n"), 0))
            elif re.fullmatch("h[1-6]", child.name):
                close()
                running.append(_cell_text(child))
                close(int(child.name[1]))
            elif child.name in _BLOCKS:
                close()
                walk(child, {} if child.name == "table" else None)
                close()
            else:
                walk(child, spans)

    try:
        walk(soup)
    except RecursionError:
        return bad(name, 0, "nested too deeply", "this HTML is nested too deeply", "tidy it, or take it out")
    close()
    return [Block(piece, number, level) for number, (piece, level) in enumerate(pieces, start=1)]


def _hidden(tag: Any) -> bool:
    """By its own attributes, not by a style sheet. Scripts hide a page until it is loaded: then it is its text."""
    if tag.name in ("html", "body"):
        return False
    unfound = "hidden" in tag.attrs and str(tag["hidden"]).lower() != "until-found"
    return unfound or _HIDES.search(str(tag.get("style") or "")) is not None


def _filled(cells: list[tuple[str, int, int]], spans: dict[int, int]) -> Iterator[str]:
    """The texts of a row with an empty one at each place that a merged cell takes; `spans`: column -> rows still taken.

    `cells` are (text, columns, rows).
    """
    column = 0
    for text, columns, rows in [*cells, ("", 0, 0)]:
        while spans.get(column, 0) > 0:
            spans[column] -= 1
            column += 1
            yield ""
        if columns:
            yield text
            yield from [""] * (columns - 1)
        for place in range(column, column + columns):
            spans[place] = rows - 1
        column += columns


def _cells(row: Any) -> Iterator[Any]:
    """The cells of a row, also of one whose cells stand in a form; text that stands in no cell is one."""
    from bs4.element import PreformattedString, Tag

    for child in row.children:
        if not isinstance(child, Tag):
            if not isinstance(child, PreformattedString) and child.strip():
                yield child
        elif child.name in ("td", "th"):
            yield child
        else:
            yield from _cells(child)


def _span(cell: Any, what: str) -> int:
    from bs4.element import Tag

    given = str(cell.get(what) or "") if isinstance(cell, Tag) else ""
    return min(max(int(given), 1), _WIDEST) if re.fullmatch(r"\d{1,9}", given) else 1


def _cell_text(cell: Any) -> str:
    return " ".join("".join(_texts(cell)).split())


def _texts(node: Any) -> Iterator[str]:
    from bs4.element import PreformattedString, Tag

    if not isinstance(node, Tag):
        yield "" if isinstance(node, PreformattedString) else str(node)
    elif node.name == "table":
        inner = "; ".join(filter(None, _inner_lines(node)))
        yield f" ({inner}) " if inner else " "
    else:
        apart = " " if node.name in _BLOCKS or node.name in ("br", "pre") else ""
        yield apart
        for child in node.children:
            yield from _texts(child)
        yield apart


def _inner_lines(table: Any) -> Iterator[str]:
    """The rows of a table within a cell, and what else stands in it."""
    from bs4.element import Tag

    for child in table.children:
        if isinstance(child, Tag) and child.name == "tr":
            yield " | ".join(filter(None, map(_cell_text, _cells(child))))
        elif isinstance(child, Tag) and child.name in ("thead", "tbody", "tfoot", "form"):
            yield from _inner_lines(child)
        else:
            yield _cell_text(child)
