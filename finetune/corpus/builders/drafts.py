"""What builders yield: a row with the spans that it was made of, or what could not be used and why."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from finetune.corpus.build import Item
from finetune.corpus.split import Side


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (not in it) of a column of an item, as its text is after the steps on rows."""

    item: Item
    column: str
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.item.columns[self.column][self.start : self.end]

    def __str__(self) -> str:
        return f"{self.item.file}:{self.item.line} {self.column}[{self.start}:{self.end}]"


@dataclass(frozen=True)
class Draft:
    """A row that a builder made of `item`, which gives it its id, its group and the columns it does not set."""

    item: Item
    key: str
    """What tells it from other rows of the item."""
    spans: tuple[Span, ...]
    """Where its quotes stand."""
    columns: Mapping[str, str]
    quoted: bool = True
    """False where the row holds no quote on purpose: the span says what was left out."""


@dataclass(frozen=True)
class Unused:
    """Something that a builder looked at and made no row of."""

    item: Item
    reason: str
    detail: str = ""
    at: Span | None = None
    """What of the item the reason is about."""


Found = Iterator[Draft | Unused]


@dataclass(frozen=True)
class Place:
    """What a builder knows beside the document."""

    side_of: Callable[[Item], Side]
    seed: int
    name: str
    """Of the built source."""
