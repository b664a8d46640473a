"""Steps on source rows: read, where, repair, filter, markup, redact, duplicates. Each is counted in the ledger."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from finetune.config.data import Source
from finetune.corpus import clean, conversations, dedup, redact, tables
from finetune.corpus.build import Item, compared_columns, fill, name_items, nested_columns, unmet, used_columns
from finetune.corpus.ledger import Reject
from finetune.corpus.read import capped, read_sources
from finetune.corpus.settings import Items, Job
from finetune.errors import Problem


def read(job: Job, data_root: Path, workers: int) -> Items:
    """Rows of all sources that something uses, named; rows outside `where` are counted."""
    columns = {name: used_columns(name, source, job.settings) for name, source in job.settings.sources.items()}
    used = {name: source for name, source in job.settings.sources.items() if columns[name][0]}
    job.content = {name: columns[name][0] for name in used}
    job.compared = {name: compared_columns(name, job.settings) for name in used}
    rows = read_sources(used, data_root, {name: columns[name][1] for name in used}, workers)
    items: Items = {}
    problems: list[Problem] = []
    for name, source in used.items():
        job.ledger.record("read", name, len(rows[name]), len(rows[name]))
        chosen = job.ledger.keep("where", name, rows[name], partial(_outside, source))
        columns_of = nested_columns(name, job.settings)
        chosen, broken = _unify(job, chosen, columns_of)
        nested = frozenset(column for pair in columns_of for column in pair if column)
        items[name], wrong = name_items(name, source, chosen, columns[name][1], nested)
        problems += [*broken, *wrong]
    if problems:
        raise capped(problems)
    return items


def _outside(source: Source, row: Mapping[str, str]) -> Reject | None:
    column = unmet(source.where, row)
    if column is None:
        return None
    return Reject(row["_file"], int(row["_line"]), fill(source.id, row), "where", "where", f"column {column}")


def _unify(
    job: Job, rows: list[tables.Row], columns_of: list[tuple[str, str | None]]
) -> tuple[list[tables.Row], list[Problem]]:
    """Conversations in one form, and where one cannot be read."""
    unified: list[tables.Row] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            for messages, tools in columns_of:
                row = conversations.unify(row, messages, tools, job.settings.model.modes)
            unified.append(row)
        except conversations.WrongConversationError as wrong:
            problems.append(Problem(f"{row['_file']}:{row['_line']}", None, wrong.rule, wrong.fix))
    return unified, problems


def repair(job: Job, items: Items) -> Items:
    if not job.settings.prepare.repair.enabled:
        return items
    repaired: Items = {}
    for name, found in items.items():
        repaired[name] = [replace(item, columns=clean.repair_row(item.columns, item.nested)) for item in found]
        changed = sum(a.columns != b.columns for a, b in zip(found, repaired[name], strict=True))
        job.ledger.record("repair", name, len(found), len(found), changed=changed)
    return repaired


def drop_by_length(job: Job, items: Items) -> Items:
    def judge(item: Item) -> Reject | None:
        found = clean.filter_reason(_content(job, item), job.settings.prepare.filters)
        return item.reject("filter", *found) if found else None

    return {name: job.ledger.keep("filter", name, found, judge) for name, found in items.items()}


def drop_markup(job: Job, items: Items) -> Items:
    """Text that holds one of the model's control tokens could close the user's turn: such rows are left out."""

    def judge(item: Item) -> Reject | None:
        token = next(filter(None, map(job.chat.find_control_token, _content(job, item))), None)
        return item.reject("markup", "control token in text", token) if token else None

    return {name: job.ledger.keep("markup", name, found, judge) for name, found in items.items()}


def redact_personal(job: Job, items: Items) -> Items:
    settings, seed = job.settings.prepare.redact, job.settings.seed
    redacted: Items = {}
    for name, found in items.items():
        redacted[name], changed, rejects = [], 0, []
        for item in found:
            columns, counts = redact.redact_row(item.columns, settings, item.nested)
            job.personal += counts
            if kind := redact.drops(counts, settings):
                rejects.append(item.reject("redact", "personal data", kind))
                continue
            changed += bool(counts)
            id_, group = (redact.redact_key(key, settings, seed, item.columns) for key in (item.id, item.group))
            redacted[name].append(replace(item, id=id_, group=group, columns=columns))
        job.ledger.record("redact", name, len(found), len(redacted[name]), rejects, changed=changed)
    # Rows dropped before this step were named in the rejects by their id, which may hold personal data too.
    job.ledger.rejects = [
        replace(
            reject,
            source=redact.redact_key(reject.source, settings, seed),
            id=redact.redact_key(reject.id, settings, seed),
        )
        for reject in job.ledger.rejects
    ]
    return redacted


def drop_duplicates(job: Job, items: Items) -> Items:
    settings = job.settings.prepare.dedup
    if settings.exact:
        for name in items:
            columns = job.content[name]
            texts = [[text for column in columns for text in item.texts(column)] for item in items[name]]
            items[name] = _without(job, name, items[name], "exact duplicates", texts, _find_exact)
    if settings.near is not None:
        find_near = partial(_find_near, threshold=settings.near)
        for name in items:
            columns = job.compared[name]
            texts = [[text for column in columns for text in item.read_texts(column)] for item in items[name]]
            items[name] = _without(job, name, items[name], "near duplicates", texts, find_near)
    return items


def _without(
    job: Job,
    name: str,
    found: list[Item],
    step: str,
    read: list[list[str]],
    find: Callable[[list[str]], dedup.Found],
) -> list[Item]:
    texts = ["\n".join(texts) for texts in read]
    twins = {int(i): (int(kept), float(alike)) for i, kept, alike in zip(*find(texts), strict=True)}
    reason = step.removesuffix("s")
    rejects = [
        found[i].reject(step, reason, f"similarity {alike} to {found[stands].id}")
        for i, (stands, alike) in twins.items()
    ]
    kept = [item for i, item in enumerate(found) if i not in twins]
    job.ledger.record(step, name, len(found), len(kept), rejects)
    if step == "near duplicates":
        shown = sorted((alike, i, stands) for i, (stands, alike) in twins.items())[:3]
        job.clusters += [
            {"source": name, "similarity": alike, "kept": texts[stands], "dropped": texts[i]}
            for alike, i, stands in shown
        ]
    return kept


def _find_exact(texts: list[str]) -> dedup.Found:
    return dedup.find_exact(dedup.keys(texts))


def _find_near(texts: list[str], threshold: float) -> dedup.Found:
    return dedup.find_near(dedup.sketches(texts), threshold, lambda places: [texts[place] for place in places])


def _content(job: Job, item: Item) -> list[str]:
    """The values that end up in records, in column order."""
    return [text for name in job.content[item.source] for text in item.texts(name)]
