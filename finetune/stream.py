"""One file of weights written while it is made: blocks of rows are read and merged by several threads, in order hashed
by one and written by another. The whole costs little more than its slowest part, and memory is a few blocks."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import shards
from finetune.adapter import finite, parts
from finetune.deltas import DTYPE, Change, Update, read_rows, row_bytes
from finetune.errors import RecipeError
from finetune.fourbit import RoundTrip

if TYPE_CHECKING:
    import torch

    from finetune.fourbit import Packed

    Block = tuple[torch.Tensor, torch.Tensor]
    """Bytes that are ready to be written, and the buffer that they lie in."""

BLOCK_BYTES = 8 << 20
"""Bytes of base weights that one thread holds at once."""
_THREADS = 4
"""That read and merge at most: one thread hashes 1.8 GB/s, so that more would wait."""
_FLUSH_BYTES = 256 << 20
"""Bytes after which the disk is asked to begin, so that it works while the rest is made."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file that is written: the bytes of `source`, through 4 bit if there is a `trip`, then changed
    by `updates` in their order."""

    name: str
    source: shards.Tensor
    updates: tuple[tuple[Update, bool], ...] = ()
    """With each whether the adapter's own copy of an embedding may stand in for the base's (see Change)."""
    trip: RoundTrip | None = None


def write_shard(
    file: Path, entries: Sequence[Entry], *, add: Callable[[int], None], block_bytes: int = BLOCK_BYTES
) -> dict[str, Any]:
    """Write a safetensors file of `entries` in this order; {sha256, bytes} once the disk has it. `add` hears of every
    block's bytes. Raises RecipeError where a number is not finite."""
    header = shards.header_bytes([(entry.name, entry.source.dtype, entry.source.shape) for entry in entries])
    size, digest = len(header), hashlib.sha256(header)
    threads = max(1, min(_THREADS, len(os.sched_getaffinity(0))))
    hashing: deque[tuple[Future[None], torch.Tensor]] = deque()
    free: list[torch.Tensor] = []
    with (
        _one_thread_each(), file.open("wb", buffering=0) as handle, ThreadPoolExecutor(threads) as workers,
        ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as syncer,
    ):  # fmt: skip
        _write(handle, memoryview(header))
        flushed, flushing = 0, syncer.submit(int)
        for block, buffer in _ahead(workers, _tasks(entries, block_bytes, free, workers), threads + 1):
            data = memoryview(block.numpy())
            hashing.append((hasher.submit(digest.update, data), buffer))
            _write(handle, data)
            size += len(data)
            if len(hashing) > 2:
                _reuse(hashing, free)
            if size - flushed >= _FLUSH_BYTES and flushing.done():
                flushing.result()  # a write that the disk refused is reported once, to the first who asks
                flushed, flushing = size, syncer.submit(os.fdatasync, handle.fileno())  # type: ignore[arg-type]
            add(len(data))
        while hashing:
            _reuse(hashing, free)
        flushing.result()
        os.fsync(handle.fileno())
    assert size == len(header) + sum(entry.source.bytes for entry in entries)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _tasks(
    entries: Sequence[Entry], block_bytes: int, free: "list[torch.Tensor]", workers: ThreadPoolExecutor
) -> "Iterator[Callable[[], Block]]":
    for entry in entries:
        changes = [Change(update, own_base=own) for update, own in entry.updates]
        ranges = list(parts(entry.source, block_bytes))
        if entry.trip is None:
            yield from (partial(_block, entry, changes, partial(_read, entry, *part, free), *part) for part in ranges)
            continue
        if not entry.trip.cuttable(entry.source.shape):
            ranges = [(0, ranges[-1][1])]
        packed = entry.trip.room(entry.source.shape)
        deque(workers.map(partial(_pack, entry, packed), ranges), maxlen=0)
        entry.trip.compress(packed)
        for part in ranges:
            yield partial(_block, entry, changes, partial(_unpack, entry, packed, *part, free), *part)


def _read(entry: Entry, first: int, last: int, free: "list[torch.Tensor]") -> "Block":
    """Rows [first, last) as they are stored, and the buffer that they lie in."""
    buffer = _buffer(entry, last - first, free)
    return read_rows(entry.source, first, last, buffer), buffer


def _pack(entry: Entry, packed: "Packed", part: tuple[int, int]) -> None:
    assert entry.trip is not None
    rows, first = read_rows(entry.source, *part), part[0]
    for a, b in entry.trip.pieces(entry.source.shape, *part):
        entry.trip.pack(rows[a - first : b - first], packed, a)


def _unpack(entry: Entry, packed: "Packed", first: int, last: int, free: "list[torch.Tensor]") -> "Block":
    """Rows [first, last) as their 4-bit codes stand for, and the buffer that they lie in."""
    import torch

    assert entry.trip is not None
    shape, buffer = entry.source.shape, _buffer(entry, last - first, free)
    rows = buffer[: row_bytes(entry.source) * (last - first)].view(getattr(torch, DTYPE[entry.source.dtype]))
    rows = rows.view(last - first, *shape[1:])
    for a, b in entry.trip.pieces(shape, first, last):
        entry.trip.unpack(packed, a, rows[a - first : b - first])
    return rows, buffer


def _buffer(entry: Entry, rows: int, free: "list[torch.Tensor]") -> "torch.Tensor":
    """Memory for so many rows, used before if it can be."""
    import torch

    size = row_bytes(entry.source) * rows
    try:
        buffer = free.pop()
    except IndexError:  # asking first would not help: another thread may take the last one in between
        buffer = torch.empty(0, dtype=torch.uint8)
    return buffer if buffer.numel() >= size else torch.empty(size, dtype=torch.uint8)


def _block(
    entry: Entry, changes: Sequence[Change], rows: "Callable[[], Block]", first: int, last: int
) -> "Block":
    """Rows [first, last), merged and known to be finite."""
    import torch

    block, buffer = rows()
    for change in changes:
        change(block, first, last)
    if entry.source.dtype in DTYPE and not finite(block):
        guilty = "after merging" if changes else "in the base"
        raise RecipeError.one(
            entry.name, None, f"rows {first} to {last} hold NaN or infinity {guilty}",
            "use an adapter and a base with finite weights (a diverged training run makes such ones)",
        )  # fmt: skip
    return block.reshape(-1).view(torch.uint8), buffer


def _ahead(
    pool: ThreadPoolExecutor, tasks: "Iterable[Callable[[], Block]]", depth: int
) -> "Iterator[Block]":
    """Results in order, `depth` of them begun before they are asked for."""
    waiting: deque[Future[Block]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _reuse(hashing: "deque[tuple[Future[None], torch.Tensor]]", free: "list[torch.Tensor]") -> None:
    """Wait for the oldest hash; its buffer may then be filled again (fresh memory costs more than the sums in it)."""
    done, buffer = hashing.popleft()
    done.result()
    free.append(buffer)


def _write(handle: FileIO, data: memoryview) -> None:
    while data:
        data = data[handle.write(data) :]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Blocks are worked on side by side: threads within one block would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
