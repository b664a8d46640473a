"""The step that builds sources: rows for tasks out of the kept rows of another source, document by document.

A unit of work is one built source on one shard. A document that reaches over several (JSON lines of more than 16 MiB)
is built from in parts.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from finetune.config.build import TeacherBuilder, given_columns
from finetune.corpus import redact, store
from finetune.corpus.build import Item
from finetune.corpus.builders import build_rows, documents
from finetune.corpus.engine import work_off
from finetune.corpus.ledger import Ledger, Reject, cut
from finetune.corpus.places import find_text, find_value
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan

_TOGETHER = 50_000
"""Items of a shard that are in memory at once; documents are told apart among these."""


@dataclass(frozen=True)
class Unit:
    """One built source on one shard of the source that it is built from."""

    built: str
    shard: store.Shard


def build_sources(job: Job, shards: Shards, books: Path) -> Shards:
    """The shards with those of the built sources beside them. `books`: the folder of what teachers replied."""
    specs = job.plan.built
    units = [Unit(name, shard) for name, spec in specs.items() for shard in shards[spec.source]]
    for name, spec in specs.items():
        if isinstance(spec, TeacherBuilder):
            job.say(f"  build.{name}: texts of {spec.source} are sent to {spec.endpoint}; replies are kept in {books}")
    work = partial(make, plan=job.plan, books=books)
    folders = work_off("build", units, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    made: Shards = {name: [] for name in specs}
    for unit, folder in zip(units, folders, strict=True):
        made[unit.built].append(store.Shard(unit.built, folder))
    for name, found in made.items():
        assert job.ledger.follow(name, ("build",)).rows_out == sum(map(len, found)), f"{name}: a row was lost"
    return {**shards, **made}


def make(unit: Unit, folder: Path, *, plan: Plan, books: Path) -> None:
    """One unit of work."""
    name, spec = unit.built, plan.settings.build[unit.built]
    rows = found = given = 0
    rejects: list[Reject] = []
    with Ledger.opened(folder) as ledger, store.items_table(folder) as table:
        personal = ledger.counts.setdefault("personal", Counter())
        for items in _documents(unit, plan):
            found, given = found + 1, given + len(items)
            for item in build_rows(
                name, spec, items, side_of=plan.side_of, seed=plan.settings.seed, rejects=rejects, books=books
            ):
                better, counts, reject = _looked_at(item, given_columns(spec), plan)
                if reject is not None:
                    rejects.append(reject)
                    continue
                rows += 1
                personal.update(counts)
                store.add_item(table, better)
                if ledger.wants("build"):
                    ledger.sample("build", _sample(better, spec.text))
        assert given == len(unit.shard), f"{name}: a row of {unit.shard.source} was lost"
        ledger.record("build", name, rows + len(rejects), rows, rejects, documents=found)


def _looked_at(item: Item, made: Sequence[str], plan: Plan) -> tuple[Item, Counter[str], Reject | None]:
    """The row after the steps that its document went through before it was made: a teacher may reply anything."""
    redacted = plan.settings.prepare.redact
    columns, counts = redact.redact_row(item.columns, redacted, item.nested, only=made)
    better, texts = replace(item, columns=columns), [columns[name] for name in made if name in columns]
    if token := next(filter(None, map(plan.chat.find_control_token, texts)), None):
        place = find_text(token, better.named_texts(name for name in made if name in columns))
        return better, counts, better.reject("build", "control token in text", token, place)
    if kind := redact.drops(counts, redacted):
        place = find_value(kind, {name: item.columns[name] for name in made if name in columns}, redacted.kinds)
        return better, counts, better.reject("build", "personal data", kind, place)
    return better, counts, None


def _documents(unit: Unit, plan: Plan) -> Iterator[list[Item]]:
    items = unit.shard.items(plan.nested(unit.shard.source))
    while held := list(islice(items, _TOGETHER)):
        yield from documents(plan.settings.build[unit.built], held)


def _sample(item: Item, text: str) -> dict[str, str | int]:
    """A built row beside the text that it was made of."""
    made = {name: item.columns[name] for name in ("question", "statement", "answer") if name in item.columns}
    shown = json.dumps({**made, "quote": item.columns["quote"]}, ensure_ascii=False, indent=1)
    place: dict[str, str | int] = {"source": item.source, "file": item.file, "line": item.line}
    return {**place, "before": cut(item.columns[text]), "after": cut(shown)}
