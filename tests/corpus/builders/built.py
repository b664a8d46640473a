"""Documents as lists of items, and what a builder makes of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from finetune.config.build import Built
from finetune.corpus.build import Item
from finetune.corpus.builders import build_rows
from finetune.corpus.ledger import Reject
from finetune.corpus.split import Side


def item(number: int, text: str, heading: str = "", group: str = "", **columns: str) -> Item:
    row = {"text": text, "heading": heading, "_file": "a.md", "_line": str(number), **columns}
    return Item("s", f"i{number}", group or f"g{number}", row)


def document(*texts: str, headings: Sequence[str] = ()) -> list[Item]:
    return [item(i, text, headings[i] if headings else "") for i, text in enumerate(texts)]


def build(
    items: Sequence[Item], builder: str, side_of: Callable[[Item], Side] = lambda _: "train", books: Path | None = None,
    **options: Any,
) -> tuple[list[Item], list[Reject]]:  # fmt: skip
    spec = TypeAdapter[Built](Built).validate_python({"source": "s", "builder": builder, **options})
    rejects: list[Reject] = []
    rows = build_rows("b", spec, items, side_of=side_of, seed=0, rejects=rejects, books=books)
    return list(rows), rejects


def reasons(rejects: Sequence[Reject]) -> list[str]:
    return [reject.reason for reject in rejects]
