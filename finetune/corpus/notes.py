"""What the steps that look at all rows of a source read: an entry for each row, written beside its items."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune.corpus import dedup, keys, store
from finetune.corpus.build import Item, system_columns
from finetune.corpus.settings import Plan
from finetune.errors import Problem

_TOGETHER = 256
"""Texts that are sketched at one time."""
_MOST = 1000
"""Rows without an id of their own that are told at one time."""


def _under(system: list[str], read: str) -> str:
    """What is read, and after it letters that stand for the system text: a quarter as many, whatever its length.

    Rows under different system texts are so no near duplicates, and a long one that many share makes none of them.
    """
    if not any(system):
        return read
    told = hashlib.shake_128(dedup.normalise("\n".join(system)).encode("utf-8", "surrogatepass"))
    return f"{read}\n{told.hexdigest(max(16, len(read) // 8))}"


class Notes:
    """The items of a unit of work on disk, and beside them what the steps that look at all rows of a source read."""

    def __init__(self, folder: Path, plan: Plan, source: str) -> None:
        self._folder, self._settings = folder, plan.settings.prepare.dedup
        self._content, self._compared = plan.content(source), plan.compared(source)
        self._system = system_columns(source, plan.settings)
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
            _under(
                item.system_texts(self._system),
                "\n".join(text for column in self._compared for text in item.read_texts(column)),
            ),
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
    """Rows whose id another row of the source has already, the first thousand of them. Memory: 8 bytes a row."""
    # Half of an id's key tells nearly all ids apart: only rows where it does not are looked at.
    halves = keys.join(sum(shard.rows_named for shard in shards), (shard.named()[:, 0] for shard in shards))
    twice = keys.repeated(halves)
    del halves
    if not len(twice):
        return
    found, shard_of = [], []
    for number, shard in enumerate(shards):
        named = shard.named()
        found.append(named[twice.hold(named[:, 0])])
        shard_of.append(np.full(len(found[-1]), number))
    rows, of = np.concatenate(found), np.concatenate(shard_of)
    first = keys.firsts(rows[:, :2])

    def place(row: int) -> str:
        return f"{store.read_lines(shards[of[row]].folder / store.FILES)[rows[row, 2]]}:{rows[row, 3]}"

    for row in np.flatnonzero(first != np.arange(len(first)))[:_MOST].tolist():
        yield Problem(
            place(row), None, f"this id stands at {place(first[row])} already",
            f"make the ids unique, or name more columns in sources.{name}.id",
        )  # fmt: skip
