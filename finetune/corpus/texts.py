"""Rows that are taken as text: what forgetting is measured on, running text, replay."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from finetune.config.data import TextUse
from finetune.corpus import keys, store
from finetune.corpus.build import fill
from finetune.corpus.engine import work_off
from finetune.corpus.ledger import Reject
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan
from finetune.corpus.split import SIDES, Side
from finetune.errors import Problem

_OTHER_SIDE, _EMPTY, _HELD = -1, -2, -3


@dataclass(frozen=True)
class Measured:
    """Rows of a text use whose length in characters is asked for: a unit of work."""

    label: str
    template: str
    sides: tuple[Side, ...]
    shard: store.Shard


def take_text(
    job: Job, label: str, use: TextUse, shards: list[store.Shard], sides: tuple[Side, ...], name: str,
    held: Path | None = None,
) -> list[store.Shard]:  # fmt: skip
    """Rows of a text use that lie on the wanted sides, in order, up to max_chars; none of the groups in `held`, a file
    of `save_groups`. `name` is that of one use alone."""
    home = f"measure-{name.replace('/', '-')}"
    units = [Measured(label, use.template, sides, shard) for shard in shards]
    work = partial(measure, plan=job.plan, held=held)
    folders = work_off(home, units, work, scratch=job.scratch, engine=job.engine, say=job.say)
    taken, chars = [], 0
    job.ledger.entry("text", label)
    for number, (shard, folder) in enumerate(zip(shards, folders, strict=True)):
        lengths = np.load(folder / "lengths.npy")
        assert len(lengths) == len(shard), f"{label}: a row was lost"
        if use.max_chars is not None:
            for row, length in enumerate(lengths.tolist()):
                if length > 0 and chars + length > use.max_chars:
                    lengths[row] = 0
                chars += max(0, int(lengths[row]))
        keep = lengths > 0
        taken.append(shard.narrowed(keep, job.scratch / home / f"{number:06d}.npy"))
        job.ledger.record("text", label, len(keep), int(keep.sum()), _left_out(shard, lengths, keep))
    return taken


def _left_out(shard: store.Shard, lengths: store.Array, keep: store.Mask) -> Iterator[Reject]:
    whole = shard.mask()
    gone = np.ones(len(keep), bool) if whole is None else whole.copy()
    gone[np.flatnonzero(gone)] = ~keep
    words = {
        _OTHER_SIDE: "other side of the split", _EMPTY: "empty text", _HELD: "group of a held-out row",
        0: "over max_chars",
    }  # fmt: skip
    reasons = [words[length] for length in lengths[~keep].tolist()]
    return store.rejects(shard.folder / store.ITEMS, gone, "text", reasons)


def measure(unit: Measured, folder: Path, *, plan: Plan, held: Path | None = None) -> None:
    """One unit of work: characters of each row's text, or why it is left out."""
    lengths = []
    groups = keys.Keys(np.empty(0, np.uint64) if held is None else store.mapped(held))
    for item in unit.shard.items(plan.nested(unit.shard.source)):
        text = fill(unit.template, item.columns)
        if plan.side_of(item) not in unit.sides:
            lengths.append(_OTHER_SIDE)
        elif store.short_key(item.group) in groups:
            lengths.append(_HELD)
        else:
            lengths.append(len(text) if text.strip() else _EMPTY)
    np.save(folder / "lengths.npy", np.array(lengths, np.int64))


def take_general(job: Job, shards: Shards) -> list[tuple[str, store.Shard]]:
    """General text to measure forgetting on: (kind, shard). From a source that is trained on, only its test groups."""
    trained = {use.source for use in job.settings.text}
    if job.settings.replay is not None:
        trained.add(job.settings.replay.source)
    taken: list[tuple[str, store.Shard]] = []
    for kind, use in job.settings.general.items():
        label = f"general/{kind}"
        found = take_text(job, label, use, shards[use.source], ("test",) if use.source in trained else SIDES, label)
        if not any(map(len, found)):
            rule, fix = "no text is left to measure forgetting on", "name a source with more text"
            job.refuse([Problem(f"general.{kind}", use.source, rule, fix)])
        taken += [(kind, shard) for shard in found]
    return taken


def general_rows(job: Job, general: Iterable[tuple[str, store.Shard]]) -> Iterator[dict[str, str]]:
    for kind, shard in general:
        template, nested = job.settings.general[kind].template, job.plan.nested(shard.source)
        for item in shard.items(nested):
            yield {"id": f"{kind}/{item.id}", "kind": kind, "text": fill(template, item.columns)}
