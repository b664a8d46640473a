"""Steps that look at a whole source, or at several, before rows are compared: boilerplate, and when each group was."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from finetune.corpus import keys, store
from finetune.corpus.boilerplate import find_common, hash_paragraphs, key, without
from finetune.corpus.build import Item
from finetune.corpus.engine import work_off
from finetune.corpus.latest import AT, join, read_times
from finetune.corpus.ledger import Ledger, cut
from finetune.corpus.notes import Notes
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan


@dataclass(frozen=True)
class Cleaned:
    """A shard whose boilerplate is taken out, knowing what is common: a unit of work."""

    shard: store.Shard
    common: Path


def drop_boilerplate(job: Job, shards: Shards) -> Shards:
    """Take paragraphs out that stand in more than prepare.filters.boilerplate groups of a source."""
    most = job.settings.prepare.filters.boilerplate
    if most is None:
        return shards
    units = [shard for found in shards.values() for shard in found]
    work = partial(look_at_paragraphs, plan=job.plan)
    folders = work_off("paragraphs", units, work, scratch=job.scratch, engine=job.engine, say=job.say)
    cleaned = []
    for name in shards:
        mine = [folder for shard, folder in zip(units, folders, strict=True) if shard.source == name]
        path = job.scratch / f"common-{name}.npy"
        np.save(path, _find_common(mine, most))
        cleaned += [Cleaned(shard, path) for shard in shards[name]]
    work = partial(take_out, plan=job.plan)
    folders = work_off("boilerplate", cleaned, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    left: Shards = {name: [] for name in shards}
    for unit, folder in zip(cleaned, folders, strict=True):
        left[unit.shard.source].append(store.Shard(unit.shard.source, folder))
    for name, found in left.items():
        last = job.ledger.follow(name, ("redact", "boilerplate"))
        assert last.rows_out == sum(map(len, found)), f"{name}: a row was lost"
    return left


def _find_common(folders: list[Path], most: int) -> store.Array:
    def pairs() -> Iterator[store.Array]:
        return store.each(folders, "paragraphs", "pairs")

    found = [find_common(run[:, 0], run[:, 1], most) for run in keys.in_runs(pairs, lambda part: part[:, 0])]
    return np.concatenate([np.empty(0, np.uint64), *found])


def _read(plan: Plan, source: str) -> list[str]:
    """The columns of a source in which boilerplate is looked for: what is read, and no conversation."""
    return [column for column in plan.compared(source) if column not in plan.nested(source)]


def look_at_paragraphs(shard: store.Shard, folder: Path, *, plan: Plan) -> None:
    """One unit of work: a key for each paragraph of each row, and that of the row's group."""
    columns = _read(plan, shard.source)
    pairs: list[tuple[int, int]] = []
    for item in shard.items(plan.nested(shard.source)):
        group = key(item.group)
        pairs += [(paragraph, group) for paragraph in hash_paragraphs(item.columns[column] for column in columns)]
    np.savez(folder / "paragraphs.npz", pairs=np.unique(np.array(pairs, np.uint64).reshape(-1, 2), axis=0))


def take_out(unit: Cleaned, folder: Path, *, plan: Plan) -> None:
    """One unit of work: the items without their common paragraphs; a row that was nothing else is dropped."""
    name, common = unit.shard.source, store.mapped(unit.common)
    columns = _read(plan, name)
    changed = paragraphs = 0

    def cleaned() -> Iterator[tuple[Item, Item]]:
        nonlocal changed, paragraphs
        for item in unit.shard.items(plan.nested(name)):
            found = {column: without(item.columns[column], common) for column in columns}
            taken = [paragraph for _, gone in found.values() for paragraph in gone]
            if not taken:
                yield item, item
                continue
            changed, paragraphs = changed + 1, paragraphs + len(taken)
            if ledger.wants("boilerplate"):
                shown = {"source": name, "file": item.file, "line": item.line, "before": cut("\n\n".join(taken))}
                ledger.sample("boilerplate", {**shown, "reason": "stands in many groups"})
            yield item, replace(item, columns={**item.columns, **{column: text for column, (text, _) in found.items()}})

    with Ledger.opened(folder) as ledger, Notes(folder, plan, name) as notes:
        for item, left in cleaned():
            if item is not left and not any(left.columns[column].strip() for column in columns):
                ledger.drop("boilerplate", name, item.reject("boilerplate", "only boilerplate"))
            else:
                ledger.count("boilerplate", name)
                notes.add(left)
        ledger.entry("boilerplate", name).more.update(changed=changed, paragraphs=paragraphs)


def note_times(job: Job, shards: Shards) -> Job:
    """The job that knows when each group's latest row was, where the recipe splits by time."""
    time = job.settings.prepare.split.time
    if time is None:
        return job
    units = [shard for name in time.columns for shard in shards.get(name, ())]
    folders = work_off("time", units, look_at_times, scratch=job.scratch, engine=job.engine, say=job.say)
    found = join(lambda: (np.load(folder / "times.npy") for folder in folders), time)
    found.times.save(job.scratch / "times.npy")
    read_times.cache_clear()
    rows = sum(map(len, units))
    job.ledger.record(
        "groups by time", ", ".join(time.columns), rows, rows,
        groups=len(found.times.groups), straddling=found.straddling, moved=found.moved,
    )  # fmt: skip
    return replace(job, plan=replace(job.plan, times=job.scratch / "times.npy"))


def look_at_times(shard: store.Shard, folder: Path) -> None:
    """One unit of work: the group of each row, and when it was."""
    rows = [(key(item.group), float(item.columns["_when"])) for item in shard.items()]
    assert len(rows) == len(shard), f"{shard.source}: a row was lost"
    np.save(folder / "times.npy", np.array(rows, AT))
