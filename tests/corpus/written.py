"""Documents drawn as a structure, written by the field's own writers, and what a reader has to say of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import strategies as st

NOISE = "NOISE"
"""What stands in a document and is no part of its text."""
LETTERS = ["a", "Wort", "B2", "3.5", "é", "ß", "更换", "液压泵，", "第", "。", "😀"]
MARKUP = ["<b>", "&amp;", "&", "\"q'", "|", "#x", "{y}", "\\", "!"]
SPACES = st.sampled_from([" ", " ", "  ", "\t", "\n", "\u00a0", "\u3000", " \n "])


def told(text: str) -> str:
    """A text up to white space."""
    return " ".join(text.split())


def texts(words: list[str], least: int = 0) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(st.sampled_from(words), SPACES), min_size=least, max_size=5)
    return pairs.map(lambda found: "".join(word + space for word, space in found))


TEXT = texts([*LETTERS, *MARKUP])
Grid = list[list[str]]


@dataclass(frozen=True)
class Cell:
    text: str
    high: int = 1
    wide: int = 1
    inner: Grid = field(default_factory=list)
    """A table within the cell."""

    @property
    def said(self) -> str:
        lines = [" | ".join(filter(None, map(told, row))) for row in self.inner]
        inner = "; ".join(filter(None, lines))
        return told(f"{self.text} ({inner})" if inner else self.text)


@dataclass(frozen=True)
class Block:
    """A heading where it has a level, else a paragraph, a list or a table."""

    text: str = ""
    level: int = 0
    items: tuple[str, ...] = ()
    table: tuple[tuple[Cell | None, ...], ...] = ()
    """Rows of a table; None where a merged cell lies."""

    def lines(self, frames: bool) -> Iterator[str]:
        """What it says, line by line. `frames`: one cell with a table in it is read as if that stood alone."""
        yield told(self.text)
        yield from map(told, self.items)
        for row in self.table:
            filled = [cell for cell in row if cell is not None and cell.said]
            if frames and len(filled) == 1 and filled[0].inner:
                yield told(filled[0].text)
                yield from (" | ".join(map(told, inner)) for inner in filled[0].inner if any(map(told, inner)))
            elif filled:
                yield " | ".join("" if cell is None else cell.said for cell in row)


GRID = st.integers(1, 2).flatmap(lambda width: st.lists(st.lists(TEXT, min_size=width, max_size=width), max_size=2))


@st.composite
def tables(draw: st.DrawFn) -> Block:
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    taken: dict[tuple[int, int], Cell | None] = {}
    for row in range(height):
        for column in range(width):
            if (row, column) in taken:
                continue
            high, wide = draw(st.integers(1, height - row)), draw(st.integers(1, width - column))
            places = [(row + y, column + x) for y in range(high) for x in range(wide)]
            if any(place in taken for place in places):
                high, wide, places = 1, 1, [(row, column)]
            taken |= dict.fromkeys(places)
            taken[row, column] = Cell(draw(TEXT), high, wide, draw(st.one_of(st.just([]), st.just([]), GRID)))
    return Block(table=tuple(tuple(taken[y, x] for x in range(width)) for y in range(height)))


@st.composite
def documents(draw: st.DrawFn) -> list[Block]:
    """Headings that all differ, paragraphs, lists and tables with merged cells, some of them blank."""
    blocks = []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["heading", "heading", "paragraph", "list", "table"]))
        if kind == "heading":
            text = draw(st.sampled_from(["", "{} title", "第{}节 \n 标题 ", "a\u3000{}\t<b>&"])).format(number)
            blocks.append(Block(text, level=draw(st.integers(1, 6))))
        elif kind == "paragraph":
            blocks.append(Block(draw(TEXT)))
        elif kind == "list":
            blocks.append(Block(items=tuple(draw(st.lists(TEXT, max_size=3)))))
        else:
            blocks.append(draw(tables()))
    return blocks


def said(blocks: list[Block], frames: bool = False) -> str:
    """All that a document says, in order, up to white space."""
    return told(" ".join(line for block in blocks for line in block.lines(frames)))


def put_together(rows: list[dict[str, str]]) -> str:
    """The rows of a document joined again: a heading stands where it is named first, in a path or as its own."""
    parts: list[str] = []
    named: set[str] = set()
    for row in rows:
        steps = [step for step in row.get("path", "").split(" > ") if step]
        parts += [step for step in steps if step not in named]
        named |= set(steps)
        parts.append(row["text"])
    return told(" ".join(parts))
