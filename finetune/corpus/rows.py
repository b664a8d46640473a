"""Steps on one row at a time, in one pass over a piece of a source: read, where, repair, filter, markup, redact.

A unit of work is a run of pieces of one source. What it leaves is its items on disk, with arrays for the steps that
look at all rows of a source.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from finetune.config.data import Source
from finetune.corpus import clean, conversations, redact, store, tables
from finetune.corpus.build import Item, fill, nested_columns, unmet
from finetune.corpus.engine import work_off
from finetune.corpus.glossary import expand_row
from finetune.corpus.languages import LANGUAGES, WRITINGS, name_script
from finetune.corpus.layout import Tidied
from finetune.corpus.ledger import Entry, Ledger, Reject, cut
from finetune.corpus.notes import Notes, find_twice
from finetune.corpus.places import Place, find_text, find_value
from finetune.corpus.read import BadInput, Piece, SourceFile, capped, lacking, pieces, rows
from finetune.corpus.settings import Job, Plan
from finetune.corpus.streams import bad
from finetune.corpus.times import timed
from finetune.errors import Problem

Shards = dict[str, list[store.Shard]]
"""Source -> its items, a shard for each unit of work."""
_UNIT_BYTES = 16 << 20
_SLOW = {"pdf": 30, "docx": 10, "html": 3}
"""How many times the bytes of a text a byte of such a file weighs."""
_LOOKED_AT, _LOOK_BYTES = 20, 4 * _UNIT_BYTES
"""For a look: files among which its rows are spread, if each has enough; weighed bytes of slow files that it reads."""
_MOST_WRONG = 1000
"""Problems after which a unit of work reads no further."""


@dataclass(frozen=True)
class Batch:
    """Pieces of one source that are read in one unit of work; `most` rows of each file, `rows` in all. None: all."""

    source: str
    pieces: tuple[Piece, ...]
    most: int | None = None
    rows: int | None = None


def read_rows(job: Job, files: Mapping[str, list[SourceFile]]) -> Shards:
    """The rows of these files, source by source, through every step that looks at one row at a time."""
    sources = job.settings.sources
    batches = [batch for name, found in files.items() for batch in _batches(name, sources[name], found, job.limit)]
    for batch in batches:
        seen, there = len({piece.file for piece in batch.pieces}), len(files[batch.source])
        if job.limit is not None and seen < there:
            job.say(f"  sources.{batch.source}: rows of at most {seen} of {there} files are looked at")
    for step in _steps(job.plan):
        for name in files:
            job.ledger.entry(step, name)
    work = partial(pass_rows, plan=job.plan)
    folders = work_off("rows", batches, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    shards: Shards = {}
    for batch, folder in zip(batches, folders, strict=True):
        shards.setdefault(batch.source, []).append(store.Shard(batch.source, folder))
    problems = [problem for name, found in shards.items() for problem in find_twice(name, found)]
    if problems:
        raise capped(problems)
    for name, found in shards.items():
        last = job.ledger.follow(name, _steps(job.plan))
        assert last.rows_out == sum(map(len, found)), f"{name}: a row was lost"
    return shards


def _steps(plan: Plan) -> list[str]:
    """The steps that every row of a source goes through, in order."""
    timed_rows = ["time"] if plan.settings.prepare.split.time is not None else []
    named = ["unify", "name", *timed_rows] if plan.settings.prepare.bad_input == "reject" else []
    repaired = ["repair"] if plan.settings.prepare.repair.enabled else []
    return ["read", "where", *named, *repaired, "filter", "markup", "redact"]


def _batches(name: str, source: Source, files: list[SourceFile], limit: int | None) -> Iterator[Batch]:
    if limit is not None:
        yield _look(name, source, files, limit)
        return
    held: list[Piece] = []
    size = 0
    for piece in (piece for file in files for piece in pieces(file, source, name)):
        held.append(piece)
        size += _SLOW.get(piece.kind or "", 1) * _bytes(piece)
        if size >= _UNIT_BYTES:
            yield Batch(name, tuple(held))
            held, size = [], 0
    if held:
        yield Batch(name, tuple(held))


def _look(name: str, source: Source, files: list[SourceFile], limit: int) -> Batch:
    """So many rows of files that are spread over the source: thousands of documents are not opened for them."""
    step = -(-len(files) // _LOOKED_AT)
    chosen: list[Piece] = []
    count = size = 0
    for file in (file for start in range(step) for file in files[start::step]):
        found = pieces(file, source, name)
        chosen, count = [*chosen, *found], count + 1
        size += sum(_SLOW[piece.kind] * _bytes(piece) for piece in found if piece.kind in _SLOW)
        if count == limit or size >= _LOOK_BYTES:
            break
    return Batch(name, tuple(chosen), -(-limit // min(count, _LOOKED_AT)), limit)


def _bytes(piece: Piece) -> int:
    if piece.kind == "jsonl" and piece.last is not None:
        return piece.last - piece.first
    return piece.file.path.stat().st_size if piece.file.path is not None else 0


def pass_rows(batch: Batch, folder: Path, *, plan: Plan) -> None:
    """One unit of work. Raises RecipeError with all that is wrong in these files, if the recipe does not say reject."""
    name, source = batch.source, plan.settings.sources[batch.source]
    with Ledger.opened(folder, plan.hide_key) as ledger, Notes(folder, plan, name) as notes:
        for step in _steps(plan):
            ledger.entry(step, name)
        wrong = _Wrong(name, ledger, plan)
        read: Iterable[tables.Row] = _read(batch, source, plan, wrong, ledger)
        read = ledger.keep("where", name, read, partial(_outside, source, plan), partial(_shown, name, plan))
        read = wrong.out("unify", read, partial(_unify, nested_columns(name, plan.settings), plan.settings.model.modes))
        read = wrong.out("name", read, partial(_named, name, source))
        if (time := plan.settings.prepare.split.time) is not None:
            read = wrong.out("time", read, partial(timed, time.columns.get(name), time))
        items = notes.named(_items(name, source, read, plan))
        for item in pass_items(name, items, plan, ledger):
            notes.add(item)
        wrong.tell()


def pass_items(name: str, items: Iterable[Item], plan: Plan, ledger: Ledger) -> Iterator[Item]:
    """Items of one source through the steps behind their naming."""
    content, filters = plan.content(name), plan.settings.prepare.filters
    languages = ledger.counts.setdefault(f"{LANGUAGES}{name}", Counter()) if filters.languages is not None else None

    def texts(item: Item) -> list[str]:
        return [text for column in content for text in item.texts(column)]

    def refused(item: Item, step: str, reason: str, detail: str, place: Place | None) -> Reject:
        return replace(item, id=plan.hide_key(item.id, item.columns)).reject(step, reason, detail, place)

    def unwanted(item: Item) -> Reject | None:
        found = clean.filter_reason(texts(item), filters, languages)
        if found is None:
            return None
        return refused(item, "filter", *found, clean.place_of(found[0], item.named_texts(content), filters))

    def markup(item: Item) -> Reject | None:
        # Text that holds one of the model's control tokens could close the user's turn.
        token = next(filter(None, map(plan.chat.find_control_token, texts(item))), None)
        if token is None:
            return None
        return refused(item, "markup", "control token in text", token, find_text(token, item.named_texts(content)))

    def show(item: Item) -> str:
        return plan.hide(item, content)

    items = _repair(name, items, plan, ledger) if plan.settings.prepare.repair.enabled else items
    items = ledger.keep("filter", name, items, unwanted, show)
    items = ledger.keep("markup", name, items, markup, show)
    return _redact(name, items, plan, ledger)


class _Wrong:
    """What cannot be read: collected, to be told at the end of the unit of work, or rejected and counted."""

    def __init__(self, source: str, ledger: Ledger, plan: Plan) -> None:
        self._source, self._ledger, self._plan = source, ledger, plan
        self.stop = plan.settings.prepare.bad_input == "raise"
        self._problems: list[Problem] = []

    @property
    def enough(self) -> bool:
        return len(self._problems) >= _MOST_WRONG

    def add(self, step: str, wrong: BadInput) -> None:
        if self.stop:
            self._problems.append(wrong.problem)
        else:
            reject = Reject(wrong.file, wrong.line, "", step, wrong.reason, wrong.problem.rule)
            self._ledger.drop(step, self._source, reject)

    def out(
        self, step: str, given: Iterable[tables.Row], look: Callable[[tables.Row], tables.Row | BadInput]
    ) -> Iterator[tables.Row]:
        """The rows as `look` gives them back, without those that it finds wrong."""
        for row in given:
            found = look(row)
            if isinstance(found, BadInput):
                self.add(step, found)
            else:
                if not self.stop:
                    self._ledger.count(step, self._source)
                yield found

    def note(self, piece: Piece, tidied: Tidied) -> None:
        """What was tidied on the pages of a document before it was cut."""
        self._ledger.entry("read", self._source).add(Entry("read", self._source, more={"layout": dict(tidied.counts)}))
        for shown in tidied.samples.values():
            for number, *texts in shown:
                before, after = (cut(self._plan.hide_text(text)) for text in texts)
                place = {"source": self._source, "file": self._plan.hide_key(piece.file.name), "line": number}
                self._ledger.sample("layout", {**place, "before": before, "after": after})

    def tell(self) -> None:
        if self._problems:
            raise capped(self._problems)


def _read(batch: Batch, source: Source, plan: Plan, wrong: _Wrong, ledger: Ledger) -> Iterator[tables.Row]:
    """The rows that have every column which the recipe uses."""
    needed, left = plan.needed(batch.source), batch.rows
    for _, of_file in groupby(batch.pieces, key=lambda piece: piece.file):
        without: dict[str, list[BadInput]] = {}
        whole = False
        for row in islice(_rows_of(of_file, source, batch.source, wrong), _least(batch.most, left)):
            left = None if left is None else left - 1
            missing = [column for column in needed if column not in row]
            if not missing:
                whole = True
                ledger.count("read", batch.source)
                yield row
            elif not wrong.stop:
                wrong.add("read", _lacks(row, missing[0], batch.source))
            else:
                for column in missing if len(without.get(missing[0], ())) < _MOST_WRONG else ():
                    without.setdefault(column, []).append(_lacks(row, column, batch.source))
        for found in without.values():
            for lacks in found if whole else found[:1]:  # what a whole file lacks is told once
                wrong.add("read", lacks)
        if wrong.enough or left == 0:
            return


def _least(*most: int | None) -> int | None:
    return min((one for one in most if one is not None), default=None)


def _lacks(row: tables.Row, column: str, source: str) -> BadInput:
    found = lacking(row, [column], source)
    assert found is not None, "asked for a column that is not there"
    return found


def _rows_of(of_file: Iterable[Piece], source: Source, name: str, wrong: _Wrong) -> Iterator[tables.Row]:
    for piece in of_file:
        found: list[BadInput] = []
        tidied: list[Tidied] = []
        for row in rows(piece, source, name, found, tidied):
            for one in found:
                wrong.add("read", one)
            found.clear()
            if wrong.enough:
                return
            yield row
        for one in found:
            wrong.add("read", one)
        for one_tidied in tidied:
            wrong.note(piece, one_tidied)


def _shown(source: str, plan: Plan, row: tables.Row) -> str:
    """The text of a row as it was read. What is JSON is told by itself: a conversation may be broken here."""
    nested = frozenset(column for column, text in row.items() if conversations.is_json(text))
    return plan.hide(Item(source, "", "", row, nested), [column for column in row if column not in tables.OURS])


def _outside(source: Source, plan: Plan, row: Mapping[str, str]) -> Reject | None:
    column = unmet(source.where, row)
    if column is None:
        return None
    id_ = plan.hide_key(fill(source.id, row), row)
    return Reject(row["_file"], int(row["_line"]), id_, "where", "where", f"column {column}")


def _unify(
    columns_of: list[tuple[str, str | None]], modes: tuple[str, ...], row: tables.Row
) -> tables.Row | BadInput:
    """The row with its conversations in one form."""
    try:
        for messages, tools in columns_of:
            row = conversations.unify(row, messages, tools, modes)
    except conversations.WrongConversationError as wrong:
        return bad(row["_file"], int(row["_line"]), "wrong conversation", wrong.rule, wrong.fix)
    return row


def _named(name: str, source: Source, row: tables.Row) -> tables.Row | BadInput:
    for what, template in (("id", source.id), ("group", source.group)):
        if not fill(template, row).strip():
            fix = f"fill the column of sources.{name}.{what} ({template}), or leave the row out with `where`"
            return bad(row["_file"], int(row["_line"]), f"no {what}", f"the {what} of this row is empty", fix)
    return row


def _items(name: str, source: Source, given: Iterable[tables.Row], plan: Plan) -> Iterator[Item]:
    """Items with id and group, only the columns kept that the recipe uses.

    Where the recipe names no id, the second row of one page of a PDF is `a.pdf:7.2`.
    """
    keep, nested = {*plan.needed(name), "_file", "_line", "_when"}, plan.nested(name)
    plain, before, same = source.id == Source.model_fields["id"].default, "", 1
    for row in given:
        kept = {column: value for column, value in row.items() if column in keep}
        id_ = fill(source.id, row)
        before, same = id_, same + 1 if id_ == before else 1
        yield Item(name, f"{id_}.{same}" if plain and same > 1 else id_, fill(source.group, row), kept, nested)


def _repair(name: str, items: Iterable[Item], plan: Plan, ledger: Ledger) -> Iterator[Item]:
    more: dict[str, Any]
    rows = changed = 0
    glossary = plan.settings.prepare.repair.glossary
    columns = glossary.columns.get(name, ()) if glossary is not None else ()
    codes: Counter[str] = Counter()
    for item in items:
        better = replace(item, columns=clean.repair_row(item.columns, item.nested, plan.settings.prepare.repair))
        if columns:
            assert plan.codes is not None, "read with the recipe"
            expanded, found = expand_row(better.columns, columns, plan.codes)
            better = replace(better, columns=expanded)
            codes += found
        rows += 1
        if any(better.columns[column] != text for column, text in item.columns.items()):
            changed += 1
            if ledger.wants("repair"):
                ledger.sample("repair", _difference(item, better, plan))
        yield better
    more = {"changed": changed, **({"glossary": dict(sorted(codes.items()))} if columns else {})}
    ledger.record("repair", name, rows, rows, **more)


def _redact(name: str, items: Iterable[Item], plan: Plan, ledger: Ledger) -> Iterator[Item]:
    settings = plan.settings.prepare.redact
    personal = ledger.counts.setdefault("personal", Counter())
    writings = ledger.counts.setdefault(f"{WRITINGS}{name}", Counter())
    entry = ledger.entry("redact", name)
    entry.more.setdefault("changed", 0)
    files: dict[str, str] = {}
    for item in items:
        columns, counts = redact.redact_row(item.columns, settings, item.nested)
        personal.update(counts)
        if item.file not in files:
            files = {item.file: plan.hide_key(item.file)}
        hidden = {**columns, "_file": files[item.file]}
        id_ = plan.hide_key(item.id, item.columns)
        group = id_ if item.group == item.id else plan.hide_key(item.group, item.columns)
        better = replace(item, id=id_, group=group, columns=hidden)
        if kind := redact.drops(counts, settings):
            read = {
                column: json.loads(text) if column in item.nested else text
                for column, text in item.columns.items()
                if column not in tables.OURS
            }
            place = find_value(kind, read, settings.kinds)
            ledger.drop("redact", name, better.reject("redact", "personal data", kind, place))
            continue
        ledger.count("redact", name)
        writings[name_script(" ".join(text for column, text in columns.items() if column not in tables.OURS))] += 1
        if counts:
            entry.more["changed"] += 1
            if ledger.wants("redact"):
                shown = "\n".join(text for column, text in columns.items() if text != item.columns[column])
                ledger.sample("redact", {"source": name, "file": better.file, "line": item.line, "after": cut(shown)})
        yield better


def _difference(before: Item, after: Item, plan: Plan) -> dict[str, str | int]:
    columns = [column for column in before.columns if before.columns[column] != after.columns[column]]
    texts = [cut(plan.hide(item, columns)) for item in (before, after)]
    place: dict[str, str | int] = {"source": before.source, "file": plan.hide_key(before.file), "line": before.line}
    return {**place, "before": texts[0], "after": texts[1]}
