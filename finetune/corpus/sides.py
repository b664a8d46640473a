"""Steps from examples to the three sides: split, general text, decontamination, caps, and the cross-split check."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config.data import Task
from finetune.corpus import keys, store
from finetune.corpus.engine import work_off
from finetune.corpus.evaluation import Evaluation, leak, show
from finetune.corpus.examples import EXAMPLES, Examples, compared, find_labels
from finetune.corpus.ledger import Ledger
from finetune.corpus.settings import Job, Plan
from finetune.corpus.split import SIDES, Side
from finetune.corpus.texts import general_rows
from finetune.errors import Problem

Sides = dict[str, Examples]
"""Task -> its examples."""


def split(job: Job, sides: Sides) -> None:
    """Count what lies on which side. Raises RecipeError for tasks that could not be trained or tested so."""
    problems: list[Problem] = []
    for name, found in sides.items():
        into = {side: int(found.on(side).sum()) for side in SIDES}
        tokens = found.supervised(found.alive)
        job.ledger.record("split", name, int(found.alive.sum()), sum(into.values()), tokens=(tokens, tokens), into=into)
        problems += _lopsided(name, job.settings.tasks[name], found, job.plan)
    job.refuse(problems)


def _lopsided(name: str, task: Task, found: Examples, plan: Plan) -> list[Problem]:
    where, group = f"tasks.{name}", f"sources.{plan.origin(task.source)}.group"
    rows, groups, test_groups = int(found.alive.sum()), found.groups(found.alive), found.groups(found.on("test"))
    if not rows:
        return [
            Problem(where, task.source, "no row is left for this task", "loosen `where` or the filters; see rejects")
        ]
    problems = []
    if test_groups < 2:
        problems.append(
            Problem(
                where,
                f"{test_groups} test groups of {groups}",
                "a task needs at least 2 groups of rows for testing",
                f"raise prepare.split.test, change seed, or name a finer group in {group}",
            )
        )
    if task.train_rows and not found.on("train").any():
        problems.append(
            Problem(
                where,
                f"0 training rows of {rows}",
                "a task that is trained needs training rows",
                f"lower prepare.split.test, name a finer group in {group}, or set train_rows: 0",
            )
        )
    return problems


def take_sides(job: Job, sides: Sides, general: Sequence[tuple[str, store.Shard]]) -> Evaluation:
    """Test, then validation, then training rows: each side loses what it shares with those before it, then is capped.
    Training rows lose what they share with the general text that forgetting is measured on, too.

    The caps come after the losses, so that a leak costs no training row where there are enough.
    """
    evaluation = Evaluation(job.settings.prepare.decontaminate, job.scratch / "evaluation.jsonl")
    spoken = Evaluation(evaluation.settings, job.scratch / "general.jsonl")
    for part in (evaluation, spoken):
        part.file.write_bytes(b"")
    # By itself: the words of general text would make edits of an evaluation row seem words of the corpus.
    measured = sum(len(shard) for _, shard in general)
    told = spoken.add((row["id"], [row["text"]], [row["text"]]) for row in general_rows(job, general))
    assert told == measured, "a general text that forgetting is measured on was lost"
    labels = {name: find_labels(found) for name, found in sides.items()}
    for side in reversed(SIDES):
        if evaluation.on and side != "test":
            others = [evaluation, spoken] if side == "train" else [evaluation]
            _decontaminate(job, sides, side, labels, [other.frozen() for other in others])
        for name, found in sides.items():
            task = job.settings.tasks[name]
            most = {"train": task.train_rows, "valid": task.valid_rows, "test": task.test_rows}[side]
            _cap(job, found, side, most)
            if side != "train":
                rows: Iterator[Any] = found.chats(found.on(side), "id", "system", "prompt", "answers")
                told = evaluation.add((row["id"], *compared(row, labels[name])) for row in rows)
                assert told == int(found.on(side).sum()), f"{name}: an evaluation row was lost"
    told = evaluation.add((row["id"], [row["text"]], [row["text"]]) for row in general_rows(job, general))
    assert told == measured, "a general text that forgetting is measured on was lost"
    return evaluation


@dataclass(frozen=True)
class Part:
    """The examples of one side in one folder: a unit of work."""

    task: str
    side: Side
    folder: Path


def _decontaminate(
    job: Job, sides: Sides, side: Side, labels: Mapping[str, keys.Keys], others: list[Evaluation]
) -> None:
    parts = [Part(name, side, folder) for name, found in sides.items() for folder, _ in found.parts(found.on(side))]
    for name, values in labels.items():
        np.save(job.scratch / f"labels-{name}.npy", values.values)
    work = partial(look_for_leaks, labels=job.scratch, others=others)
    folders = work_off(f"decontaminate {side}", parts, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    for name, found in sides.items():
        before = int(found.on(side).sum())
        for part, folder in zip(parts, folders, strict=True):
            if part.task == name:
                start = found.starts[found.folders.index(part.folder)]
                clean = np.load(folder / "clean.npy")
                found.alive[start : start + len(clean)] &= clean
        entry = job.ledger.entry("decontaminate", f"{name}/{side}")
        if not before:
            job.ledger.record("decontaminate", f"{name}/{side}", 0, 0, tokens=(0, 0))
        assert (entry.rows_in, entry.rows_out) == (before, int(found.on(side).sum())), f"{name}: an example was lost"


def look_for_leaks(part: Part, folder: Path, *, labels: Path, others: list[Evaluation]) -> None:
    """One unit of work: which examples of this side share nothing with an evaluation row."""
    indices, known = [other.index() for other in others], keys.Keys(store.mapped(labels / f"labels-{part.task}.npy"))
    with np.load(part.folder / "examples.npz") as arrays:
        mine, supervised = arrays["side"] == SIDES.index(part.side), arrays["supervised"]
    clean = np.ones(len(mine), bool)
    label, given = f"{part.task}/{part.side}", int(supervised[mine].sum())
    rejects = []
    with Ledger.opened(folder) as ledger:
        columns = ["id", "file", "line", "system", "prompt", "answers", "names"]
        rows = store.read(part.folder / EXAMPLES, mine, columns)
        for at, row in zip(np.flatnonzero(mine).tolist(), rows, strict=True):
            values, prompt = compared(row, known)
            asked = [(values, prompt), *([([], row["prompt"])] if row["system"] else [])]
            hit = next((hit for index in indices for each in asked if (hit := index.find(*each))), None)
            if hit is not None:
                clean[at] = False
                texts = [*row["system"], *row["prompt"], *row["answers"]]
                reject = leak(row, hit, zip(row["names"], texts, strict=True), int(supervised[at]))
                rejects.append(reject)
                show(ledger, label, reject, hit, "\n".join(values))
        left = mine & clean
        tokens = (given, int(supervised[left].sum()))
        ledger.record("decontaminate", label, int(mine.sum()), int(left.sum()), rejects, tokens)
    np.save(folder / "clean.npy", clean | ~mine)


def _cap(job: Job, found: Examples, side: Side, most: int) -> None:
    # Whole ids are drawn, so that which rows are taken depends neither on their order nor on their number.
    mine = found.on(side)
    over = mine & ~found.lowest(mine, most)
    found.drop(job, "cap", side, over, f"over {side}_rows")


_MOST_WRONG = 1000
"""Problems of one kind that are told at one time."""


def save_groups(job: Job, sides: Sides, *on: Side) -> Path:
    """A file with the keys of the groups whose rows lie on these sides in any task, also of rows that were dropped."""
    wanted = [SIDES.index(side) for side in on]
    path = job.scratch / f"groups-{'-'.join(on)}.npy"

    def groups() -> Iterator[store.Array]:
        return (group for found in sides.values() for group in found.each("group", np.isin(found.side, wanted)))

    np.save(path, np.concatenate([np.empty(0, np.uint64), *keys.runs(groups)]))
    return path


def check(job: Job, sides: Sides) -> None:
    """The cross-split check: no group and no conversation on two sides; and something to train and test on."""
    problems: list[Problem] = _two_sides(sides)
    for name, found in sides.items():
        wrong: Iterator[Any] = found.chats(found.alive, "problems")
        told = (Problem(**one) for row in wrong if row["problems"] for one in json.loads(row["problems"]))
        problems += islice(told, _MOST_WRONG)
        if job.settings.tasks[name].train_rows and not found.on("train").any():
            problems.append(
                Problem(f"tasks.{name}", "0 training rows", "every training row was dropped", "see rejects.jsonl")
            )
        if found.groups(found.on("test")) < 2:
            problems.append(
                Problem(
                    f"tasks.{name}",
                    "fewer than 2 test groups",
                    "a task needs 2",
                    "raise prepare.split.test or test_rows",
                )
            )
    job.refuse(problems)


def _two_sides(sides: Sides) -> list[Problem]:
    """Rows of different sides that say the same, over all tasks."""
    assert not len(keys.mixed(lambda: _beside(sides, "group"))), "a group lies on two sides"
    # Half of a key tells nearly all rows apart: only rows whose half stands on two sides are looked at.
    shared = keys.mixed(lambda: _beside(sides, "said"))
    if not len(shared):
        return []
    told = {name: np.zeros(len(found.alive), bool) for name, found in sides.items()}
    for name, found in sides.items():
        halves = found.each("said", found.alive)
        told[name][found.alive] = np.concatenate([np.empty(0, bool), *(shared.hold(said[:, 0]) for said in halves)])
    said = np.concatenate([said for name, found in sides.items() for said in found.each("said", told[name])])
    side = np.concatenate([found.side[told[name]] for name, found in sides.items()])
    first = keys.firsts(said)
    apart = np.flatnonzero(side != side[first])[:_MOST_WRONG].tolist()
    wanted = {*apart, *first[apart].tolist()}
    rows: Iterator[Any] = (row for name, found in sides.items() for row in found.chats(told[name], "file", "line"))
    places = {number: f"{row['file']}:{row['line']}" for number, row in enumerate(rows) if number in wanted}
    return [
        Problem(
            places[row],
            None,
            f"this {SIDES[side[row]]} row says the same as {SIDES[side[other]]} row {places[other]}",
            "set prepare.dedup.exact=true and prepare.decontaminate.ngram=13, or give both one group",
        )
        for row, other in zip(apart, first[apart].tolist(), strict=True)
    ]


def _beside(sides: Sides, array: str) -> Iterator[store.Array]:
    """Keys of the examples of all tasks (of `said` their first halves), and beside each the place of its side."""
    for found in sides.values():
        for side in range(len(SIDES)):
            for part in found.each(array, found.alive & (found.side == side)):
                key = part if part.ndim == 1 else part[:, 0]
                yield np.stack([key, np.full(len(key), side, np.uint64)], axis=1)
