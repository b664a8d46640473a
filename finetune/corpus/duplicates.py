"""The step that drops rows which another row of their source repeats, exactly or nearly. The best copy is kept."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.corpus import dedup, near, store
from finetune.corpus.build import Item
from finetune.corpus.engine import work_off
from finetune.corpus.ledger import Ledger, Reject, cut
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan

_SHOWN = 3


@dataclass(frozen=True)
class Whole:
    """All items of one source: a unit of work of the steps that compare rows with each other."""

    source: str
    shards: tuple[store.Shard, ...]


def drop_duplicates(job: Job, shards: Shards) -> Shards:
    settings = job.settings.prepare.dedup
    if not settings.exact and settings.near is None:
        return shards
    wholes = [Whole(name, tuple(found)) for name, found in shards.items()]
    work = partial(find, plan=job.plan)
    folders = work_off("duplicates", wholes, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    kept = {}
    for whole, folder in zip(wholes, folders, strict=True):
        kept[whole.source] = [
            store.Shard(shard.source, shard.folder, folder / f"kept-{number}.npy")
            for number, shard in enumerate(whole.shards)
        ]
        last = job.ledger.follow(whole.source, ("redact", "boilerplate", "exact duplicates", "near duplicates"))
        assert last.rows_out == sum(map(len, kept[whole.source])), f"{whole.source}: a row was lost"
    return kept


def find(whole: Whole, folder: Path, *, plan: Plan) -> None:
    """One unit of work: a mask for each shard."""
    settings = plan.settings.prepare.dedup
    sizes = [len(shard) for shard in whole.shards]
    alive = np.ones(sum(sizes), bool)
    with Ledger.opened(folder) as ledger:
        if settings.exact:
            path = _joined(whole, sizes, alive, store.KEYS, dedup.KEY, folder)
            found = dedup.find_exact(np.memmap(path, dedup.KEY, "r") if len(alive) else np.empty(0, dedup.KEY))
            path.unlink()
            _drop(whole, "exact duplicates", found, alive, plan.content(whole.source), plan, ledger)
        if settings.near is not None:
            found = _near(whole, sizes, alive, settings.near, folder)
            _drop(whole, "near duplicates", found, alive, plan.compared(whole.source), plan, ledger)
    at = 0
    for number, rows in enumerate(sizes):
        np.save(folder / f"kept-{number}.npy", alive[at : at + rows])
        at += rows


def _near(whole: Whole, sizes: list[int], alive: store.Mask, threshold: float, folder: Path) -> dedup.Found:
    """Near duplicates among the rows that are there, whose sketches are put together on disk."""
    if not alive.any():
        return dedup.Found(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    path = _joined(whole, sizes, alive, store.SKETCHES, dedup.SKETCH, folder)
    texts = store.Texts(whole.shards, alive, folder)
    found = near.find_near(np.memmap(path, dedup.SKETCH, "r"), threshold, texts.read, scratch=folder)
    path.unlink()
    left = np.flatnonzero(alive)
    return dedup.Found(left[found.dropped], left[found.kept], found.similarity)


def _joined(
    whole: Whole, sizes: list[int], alive: store.Mask, name: str, kind: np.dtype[np.void], folder: Path
) -> Path:
    """A file with the keys or the sketches of the rows that are there, to be mapped."""
    path = folder / name
    with path.open("wb") as file:
        at = 0
        for shard, rows in zip(whole.shards, sizes, strict=True):
            made = np.fromfile(shard.folder / name, kind)
            file.write(made[alive[at : at + rows]].tobytes())
            at += rows
    return path


def _drop(
    whole: Whole, step: str, found: dedup.Found, alive: store.Mask, columns: list[str], plan: Plan, ledger: Ledger
) -> None:
    """Count the pairs, list what is dropped and show a few, the least alike first; `alive` loses the dropped rows."""
    rows_in = int(alive.sum())
    alive[found.dropped] = False
    ledger.record(step, whole.source, rows_in, int(alive.sum()), _rejects(whole, step, found))
    clusters = dedup.clusters(found)
    counts = {name: count for name, count in clusters.items() if name != "sizes"}
    ledger.counts[step] = Counter({**counts, **clusters["sizes"]})
    shown = np.lexsort((found.dropped, found.similarity))[:_SHOWN]
    texts = dict(_items(whole, {*found.dropped[shown], *found.kept[shown]}, plan))
    for pair in shown:
        dropped, kept = texts[found.dropped[pair]], texts[found.kept[pair]]
        joined = ["\n".join(text for column in columns for text in item.read_texts(column)) for item in (dropped, kept)]
        ledger.sample(
            step,
            {"source": whole.source, "file": dropped.file, "line": dropped.line, "before": cut(joined[0]),
             "kept": cut(joined[1]), "similarity": float(found.similarity[pair]), "reason": step.removesuffix("s")},
        )  # fmt: skip


def _rejects(whole: Whole, step: str, found: dedup.Found) -> Iterator[Reject]:
    # Ids stay in Arrow's memory: as Python strings they would take three times as much.
    kept = np.unique(found.kept)
    ids = _ids(whole, kept)
    at = 0
    for shard in whole.shards:
        rows = len(shard)
        here = slice(*np.searchsorted(found.dropped, [at, at + rows]).tolist())
        mask = np.zeros(rows, bool)
        mask[found.dropped[here] - at] = True
        names = ids.take(pa.array(np.searchsorted(kept, found.kept[here]))).to_pylist()
        pairs = zip(found.similarity[here].tolist(), names, strict=True)
        details = [f"similarity {similarity} to {name}" for similarity, name in pairs]
        yield from store.rejects(shard.folder / store.ITEMS, mask, step, step.removesuffix("s"), details)
        at += rows


def _ids(whole: Whole, rows: store.Array) -> pa.Array:
    found, at = [pa.array([], pa.large_string())], 0
    for shard in whole.shards:
        size = len(shard)
        mask = np.zeros(size, bool)
        mask[rows[slice(*np.searchsorted(rows, [at, at + size]).tolist())] - at] = True
        batches = store.batches(shard.folder / store.ITEMS, mask, ["id"])
        found += [batch["id"].cast(pa.large_string()) for batch in batches]
        at += size
    return pa.concat_arrays(found)


def _items(whole: Whole, rows: set[int], plan: Plan) -> Iterator[tuple[int, Item]]:
    at = 0
    for shard in whole.shards:
        size = len(shard)
        wanted = sorted(row for row in rows if at <= row < at + size)
        if wanted:
            mask = np.zeros(size, bool)
            mask[[row - at for row in wanted]] = True
            path = shard.folder / store.ITEMS
            yield from zip(wanted, store.items(path, whole.source, mask, plan.nested(whole.source)), strict=True)
        at += size
