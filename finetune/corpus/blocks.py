"""Blocks of text documents: txt and Markdown.

A block is a heading, a paragraph, a list item, a table row or a page's text, with the line, page or part it starts at.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from finetune.corpus.streams import LINE_COST, LONGEST, BadInput, Line, bad


@dataclass(frozen=True)
class Block:
    text: str
    line: int
    """Line of a text file, page of a PDF, part number of HTML and DOCX; from 1."""
    level: int = 0
    """1 to 6 for a heading, 0 for body text."""


Blocks = list[Block]
"""In reading order."""


def read_txt(name: str, lines: Iterable[Line]) -> Iterator[Block | BadInput]:
    """Paragraphs: runs of lines between blank lines. One with a line that cannot be read is left out and told."""
    held: list[str] = []
    first, size, broken = 1, 0, False
    for number, text, wrong in chain(lines, [Line(0, "", None)]):
        if wrong is not None:
            broken = True
            yield wrong
        elif text.strip():
            first = first if held else number
            held.append(text.rstrip())
            size += len(text) + LINE_COST
            if size > LONGEST and not broken:
                broken = True
                rule = f"this paragraph is longer than {LONGEST >> 20} MiB"
                yield bad(name, first, "line too long", rule, "divide it with blank lines")
            held = [""] if broken else held
        else:
            if held and not broken:
                yield Block("\n".join(held), first)
            held, size, broken = [], 0, False


_ATX = re.compile(r"(#{1,6})\s+(.*)")
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})\s*(.*)")
"""Its signs and what is said of the code; three backticks with others behind them are code within a line."""
_SETEXT = re.compile(r"(=+|-{2,})\s*$")


def read_md(text: str) -> Blocks:
    """Markdown: ATX (`# x`) and setext (underlined) headings, code fences left whole; other markup stays as text."""
    blocks: Blocks = []
    lines: list[str] = []
    first, fence = 1, ""

    def close() -> None:
        if lines:
            blocks.append(Block("\n".join(lines), first))
            lines.clear()

    for number, line in enumerate([*text.split("\n"), ""], start=1):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark.group(1)
        elif mark and mark.group(1).startswith(fence) and not mark.group(2):
            fence = ""
        heading = None if fence else _ATX.match(line)
        if heading:
            close()
            blocks.append(Block(_title(heading.group(2).rstrip()), number, level=len(heading.group(1))))
        elif not fence and len(lines) == 1 and _SETEXT.match(line) and not lines[0].lstrip().startswith(("|", "-")):
            blocks.append(Block(lines.pop().strip(), first, level=1 if line.startswith("=") else 2))
        elif line.strip() or (fence and lines):
            first = first if lines else number
            lines.append(line.rstrip())
        else:
            close()
    close()
    return blocks


def _title(text: str) -> str:
    """Without the signs that close a heading; in `About C#` they do not."""
    bare = text.rstrip("#")
    return bare.rstrip() if not bare or bare[-1].isspace() else text
