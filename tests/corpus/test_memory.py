"""Steps that look at all rows of a source hold some bytes for each, and no Python object.

One number as a Python object in a set takes about 90 bytes, a tuple of four 250.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finetune.config.prepare import TimeSplit
from finetune.corpus import dedup, keys, near, store
from finetune.corpus.examples import Examples, find_labels
from finetune.corpus.latest import AT, join
from finetune.corpus.notes import find_twice
from finetune.corpus.sides import _two_sides
from finetune.corpus.split import SIDES
from finetune.corpus.tokens import Written
from finetune.corpus.whole import _find_common

FEW, MANY = 20_000, 60_000
PART = 5_000
MOST = 20
"""Bytes a row at the highest."""


def random(rows: int, wide: int = 1) -> store.Array:
    return np.random.default_rng(rows).integers(0, 2**63, (rows, wide), np.uint64)


def hashed(numbers: store.Array) -> store.Array:
    return numbers * np.uint64(0x9E3779B97F4A7C15)


def make_examples(home: Path, rows: int) -> Examples:
    """Examples of which no two are alike, every answer in two groups, a tenth on each side of evaluation."""
    group = np.arange(rows, dtype=np.uint64)
    side = (group % 10 > 7).astype(np.uint8) * (1 + group % 2).astype(np.uint8)
    said = random(rows, 2)
    answer = np.stack([hashed(group // 2), hashed(group)], axis=1)
    folders = []
    for begin in range(0, rows, PART):
        here = slice(begin, begin + PART)
        folders.append(home / str(begin))
        folders[-1].mkdir()
        np.savez(
            folders[-1] / "examples.npz", side=side[here], draw=random(PART)[:, 0] / 2**63, group=hashed(group[here]),
            supervised=np.ones(PART, np.int32), longest=np.ones(PART, np.int32), said=said[here],
        )  # fmt: skip
        np.savez(folders[-1] / "answers.npz", answer=answer[here])
    return load_examples(folders)


def load_examples(folders: list[Path]) -> Examples:
    side = np.concatenate(list(store.each(folders, "examples", "side")))
    return Examples("task", folders, side, np.ones(len(side), bool), [*range(0, len(side) + 1, PART)])


def ids(home: Path, rows: int) -> Callable[[], object]:
    named = np.concatenate([random(rows, 2), np.zeros((rows, 2), np.uint64)], axis=1)
    shards = []
    for begin in range(0, rows, PART):
        shards.append(store.Shard("source", home / str(begin)))
        shards[-1].folder.mkdir()
        named[begin : begin + PART].tofile(shards[-1].folder / store.NAMED)
    return lambda: list(find_twice("source", shards))


def exact(home: Path, rows: int) -> Callable[[], object]:
    made = np.zeros(rows, dedup.KEY)
    made["key"] = random(rows, 2)
    return lambda: dedup.find_exact(made)


def examples(home: Path, rows: int) -> Callable[[], object]:
    folders = make_examples(home, rows).folders
    return lambda: load_examples(folders)


def labels(home: Path, rows: int) -> Callable[[], object]:
    found = make_examples(home, rows)
    return lambda: find_labels(found)


def groups(home: Path, rows: int) -> Callable[[], object]:
    found = make_examples(home, rows)
    return lambda: [found.groups(found.on(side)) for side in SIDES]


def caps(home: Path, rows: int) -> Callable[[], object]:
    found = make_examples(home, rows)
    return lambda: found.lowest(found.on("train"), rows // 2)


def times(home: Path, rows: int) -> Callable[[], object]:
    found = [np.empty(PART, AT) for _ in range(0, rows, PART)]
    for number, part in enumerate(found):
        part["group"], part["at"] = hashed(np.arange(PART, dtype=np.uint64) + np.uint64(number * PART)), number
    settings = TimeSplit(columns={}, valid_from="1970-01-01", test_from="1970-01-02")
    return lambda: join(lambda: found, settings)


def paragraphs(home: Path, rows: int) -> Callable[[], object]:
    folders = make_examples(home, rows).folders
    for folder in folders:
        with np.load(folder / "answers.npz") as arrays:
            np.savez(folder / "paragraphs.npz", pairs=arrays["answer"])
    return lambda: _find_common(folders, 1)


def check(home: Path, rows: int) -> Callable[[], object]:
    found = make_examples(home, rows)
    return lambda: _two_sides({"task": found})


def near_ones(home: Path, rows: int) -> Callable[[], object]:
    made = np.memmap(home / "sketches", dedup.SKETCH, "w+", shape=(rows,))
    made["key"] = random(rows, 2)
    made["signature"] = random(rows, 32).view(np.uint16)
    return lambda: near.find_near(made, 0.85, lambda places: [""] * len(places), home)


def lengths(home: Path, rows: int) -> Callable[[], object]:
    written = Written()
    return lambda: written.lengths.extend(range(1000, 1000 + rows))


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        held = call()
        assert held is not call
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


STEPS = [ids, exact, near_ones, examples, labels, groups, caps, times, paragraphs, check, lengths]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_sees_all_rows_holds_few_bytes_for_each(
    step: Callable[[Path, int], Callable[[], object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is held of so many at a time is no cost of each.
    for module, name in ((dedup, "WINDOWS"), (near, "WINDOWS"), (keys, "_SORTED")):
        monkeypatch.setattr(module, name, 2048)
    seen = []
    for rows in (FEW, MANY):
        home = tmp_path / str(rows)
        home.mkdir()
        seen.append(peak(step(home, rows)))
    taken = (seen[1] - seen[0]) / (MANY - FEW)
    print(f"{step.__name__}: {taken:.1f} bytes a row")
    assert taken < MOST, "bytes a row"
