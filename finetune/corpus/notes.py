"""What the steps that look at all rows of a source read: an entry for each row, written beside its items."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune.corpus import dedup, store
from finetune.corpus.build import Item
from finetune.corpus.settings import Plan
from finetune.errors import Problem

_TOGETHER = 256
"""Texts that are sketched at one time."""


class Notes:
    """The items of a unit of work on disk, and beside them what the steps that look at all rows of a source read."""

    def __init__(self, folder: Path, plan: Plan, source: str) -> None:
        self._folder, self._settings = folder, plan.settings.prepare.dedup
        self._content, self._compared = plan.content(source), plan.compared(source)
        self._table = store.items_table(folder)
        self._files: list[str] = []
        self._ids: list[tuple[int, int, int, int]] = []
        self._texts: list[tuple[str, str]] = []
        self._out: dict[str, BinaryIO] = {}

    def named(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items as they come; the ids of all of them are noted, also of those that a later step drops."""
        for item in items:
            if not self._files or self._files[-1] != item.file:
                self._files.append(item.file)
            self._ids.append((*store.key(item.id), len(self._files) - 1, item.line))
            if len(self._ids) == _TOGETHER:
                self._flush_ids()
            yield item

    def add(self, item: Item) -> None:
        store.add_item(self._table, item)
        self._texts.append((
            "\n".join(text for column in self._content for text in item.texts(column)),
            "\n".join(text for column in self._compared for text in item.read_texts(column)),
        ))  # fmt: skip
        if len(self._texts) == _TOGETHER:
            self._flush_texts()

    def __enter__(self) -> "Notes":
        for name in (store.NAMED, store.KEYS, store.SKETCHES, store.TEXTS):
            self._out[name] = (self._folder / name).open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._flush_ids()
        self._flush_texts()
        self._table.close()
        for file in self._out.values():
            file.close()
        store.write_lines(self._folder / store.FILES, self._files)

    def _flush_ids(self) -> None:
        self._out[store.NAMED].write(np.array(self._ids, np.uint64).tobytes())
        self._ids = []

    def _flush_texts(self) -> None:
        content, compared = [text for text, _ in self._texts], [text for _, text in self._texts]
        if self._settings.exact:
            self._out[store.KEYS].write(dedup.keys(content).tobytes())
        if self._settings.near is not None:
            self._out[store.SKETCHES].write(dedup.sketches(compared).tobytes())
            store.add_texts(self._out[store.TEXTS], compared)
        self._texts = []


def find_twice(name: str, shards: list[store.Shard]) -> Iterator[Problem]:
    """Rows whose id another row of the source has already."""
    named = np.concatenate([shard.named() for shard in shards])
    order = np.lexsort((named[:, 1], named[:, 0]))  # stable: of equal ids the first comes first
    ids = named[order, :2]
    again = np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1)) + 1
    first: dict[int, int] = {}
    for at in again:
        first[order[at]] = first.get(order[at - 1], order[at - 1])
    if not first:
        return
    starts = np.cumsum([0, *(len(shard.named()) for shard in shards)])
    files = [store.read_lines(shard.folder / store.FILES) for shard in shards]

    def place(row: int) -> str:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{files[shard][named[row, 2]]}:{named[row, 3]}"

    for row, other in sorted(first.items()):
        yield Problem(
            place(row), None, f"this id stands at {place(other)} already",
            f"make the ids unique, or name more columns in sources.{name}.id",
        )  # fmt: skip
