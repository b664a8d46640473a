"""Steps from examples to the three sides: split, general text, decontamination, caps, and the cross-split check."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from finetune.artifacts import hash_file
from finetune.config.data import Task, TextUse
from finetune.config.prepare import Decontaminate
from finetune.corpus import keys, store
from finetune.corpus.build import fill
from finetune.corpus.engine import work_off
from finetune.corpus.examples import EXAMPLES, Examples, compared, find_labels
from finetune.corpus.leaks import EvaluationIndex
from finetune.corpus.ledger import Ledger, Reject, sample_of
from finetune.corpus.records import write_line
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan
from finetune.corpus.split import SIDES, Side
from finetune.errors import Problem

Sides = dict[str, Examples]
"""Task -> its examples."""


def split(job: Job, sides: Sides) -> None:
    """Count what lies on which side. Raises RecipeError for tasks that could not be trained or tested so."""
    problems: list[Problem] = []
    for name, found in sides.items():
        into = {side: int(found.on(side).sum()) for side in SIDES}
        tokens = int(found.supervised[found.alive].sum())
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


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation rows say, in a file: {"name", "values", "prompt"} a line. None: nothing is compared."""

    settings: Decontaminate
    file: Path

    @property
    def on(self) -> bool:
        return self.settings.ngram is not None

    def add(self, rows: Iterable[tuple[str, list[str], list[str]]]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            for name, values, prompt in rows:
                file.write(write_line({"name": name, "values": values, "prompt": prompt}) + "\n")

    def frozen(self) -> "Evaluation":
        """As it is now, under a name of its content: what units of work read does not change under them."""
        other = Evaluation(self.settings, self.file.with_name(f"evaluation-{hash_file(self.file)[:12]}.jsonl"))
        other.file.write_bytes(self.file.read_bytes())
        return other

    def index(self) -> EvaluationIndex:
        assert self.settings.ngram is not None, "asked for where decontamination is on"
        return _index(self.settings.ngram, self.settings.edited, self.file)


@functools.lru_cache(maxsize=2)
def _index(n: int, edited: bool, file: Path) -> EvaluationIndex:
    """Read once in a process."""
    index = EvaluationIndex(n, edited)
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            index.add(row["name"], row["values"], row["prompt"])
    return index


def take_sides(job: Job, sides: Sides, general: Iterable[tuple[str, store.Shard]]) -> Evaluation:
    """Test, then validation, then training rows: each side loses what it shares with those before it, then is capped.
    Training rows lose what they share with the general text that forgetting is measured on, too.

    The caps come after the losses, so that a leak costs no training row where there are enough.
    """
    evaluation = Evaluation(job.settings.prepare.decontaminate, job.scratch / "evaluation.jsonl")
    spoken = Evaluation(evaluation.settings, job.scratch / "general.jsonl")
    for part in (evaluation, spoken):
        part.file.write_bytes(b"")
    # By itself: the words of general text would make edits of an evaluation row seem words of the corpus.
    spoken.add((row["id"], [row["text"]], []) for row in general_rows(job, general))
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
                evaluation.add((row["id"], *compared(row, labels[name])) for row in rows)
    evaluation.add((row["id"], [row["text"]], []) for row in general_rows(job, general))
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
    indices, known = [other.index() for other in others], keys.Keys(np.load(labels / f"labels-{part.task}.npy"))
    with np.load(part.folder / "examples.npz") as arrays:
        mine, supervised = arrays["side"] == SIDES.index(part.side), arrays["supervised"]
    clean = np.ones(len(mine), bool)
    label, given = f"{part.task}/{part.side}", int(supervised[mine].sum())
    rejects = []
    with Ledger.opened(folder) as ledger:
        rows = store.read(part.folder / EXAMPLES, mine, ["id", "file", "line", "system", "prompt", "answers"])
        for at, row in zip(np.flatnonzero(mine).tolist(), rows, strict=True):
            values, prompt = compared(row, known)
            asked = [(values, prompt), *([([], row["prompt"])] if row["system"] else [])]
            hit = next((hit for index in indices for each in asked if (hit := index.find(*each))), None)
            if hit is not None:
                clean[at] = False
                reject = leak(row, hit, int(supervised[at]))
                rejects.append(reject)
                show(ledger, label, reject, hit, "\n".join(values))
        left = mine & clean
        tokens = (given, int(supervised[left].sum()))
        ledger.record("decontaminate", label, int(mine.sum()), int(left.sum()), rejects, tokens)
    np.save(folder / "clean.npy", clean | ~mine)


def leak(row: Mapping[str, Any], hit: tuple[str, str], tokens: int = 0) -> Reject:
    """A row that shares a passage with an evaluation row: `hit` as EvaluationIndex.find gives it."""
    why, detail = "shared with an evaluation row", f"{hit[0]}: {hit[1]}"
    return Reject(row["file"], row["line"], row["id"], "decontaminate", why, detail, supervised_tokens=tokens)


def show(ledger: Ledger, label: str, reject: Reject, hit: tuple[str, str], text: str) -> None:
    if ledger.wants("decontaminate"):
        sample = sample_of(label, reject, text)
        ledger.sample("decontaminate", {**sample, "evaluation": hit[0], "passage": hit[1]})


def _cap(job: Job, found: Examples, side: Side, most: int) -> None:
    # Whole ids are drawn, so that which rows are taken depends neither on their order nor on their number.
    rows = np.flatnonzero(found.on(side))
    over = np.zeros(len(found.alive), bool)
    over[rows[np.argsort(found.draw[rows], kind="stable")[most:]]] = True
    found.drop(job, "cap", side, over, f"over {side}_rows")


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


_OTHER_SIDE, _EMPTY, _HELD = -1, -2, -3
_MOST_WRONG = 1000
"""Problems of one kind that are told at one time."""


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
    taken, chars, rows_in, rows_out = [], 0, 0, 0
    rejects: list[Iterator[Reject]] = []
    for number, (shard, folder) in enumerate(zip(shards, folders, strict=True)):
        lengths = np.load(folder / "lengths.npy")
        if use.max_chars is not None:
            for row, length in enumerate(lengths.tolist()):
                if length > 0 and chars + length > use.max_chars:
                    lengths[row] = 0
                chars += max(0, int(lengths[row]))
        keep = lengths > 0
        kept = shard.narrowed(keep, job.scratch / home / f"{number:06d}.npy")
        rejects.append(_left_out(shard, lengths, keep))
        taken.append(kept)
        rows_in, rows_out = rows_in + len(keep), rows_out + int(keep.sum())
    job.ledger.record("text", label, rows_in, rows_out, (reject for found in rejects for reject in found))
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
    groups = keys.Keys(np.empty(0, np.uint64) if held is None else np.load(held))
    for item in unit.shard.items(plan.nested(unit.shard.source)):
        text = fill(unit.template, item.columns)
        if plan.side_of(item) not in unit.sides:
            lengths.append(_OTHER_SIDE)
        elif store.short_key(item.group) in groups:
            lengths.append(_HELD)
        else:
            lengths.append(len(text) if text.strip() else _EMPTY)
    np.save(folder / "lengths.npy", np.array(lengths, np.int64))


def save_groups(job: Job, sides: Sides, *on: Side) -> Path:
    """A file with the keys of the groups whose rows lie on these sides in any task, also of rows that were dropped."""
    wanted = [SIDES.index(side) for side in on]
    path = job.scratch / f"groups-{'-'.join(on)}.npy"
    np.save(path, np.unique(np.concatenate([found.group[np.isin(found.side, wanted)] for found in sides.values()])))
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
    groups = [keys.distinct(_joined(sides, side, _groups)).values for side in SIDES]
    assert not len(keys.repeated(np.concatenate(groups))), "a group lies on two sides"
    del groups
    # Half of a key tells nearly all rows apart: only rows whose half stands on two sides are looked at.
    halves = [keys.distinct(_joined(sides, side, _halves)).values for side in SIDES]
    shared = keys.repeated(np.concatenate(halves))
    del halves
    if not len(shared):
        return []
    told = {name: np.concatenate([shared.hold(half) for half in _halves(found)]) for name, found in sides.items()}
    told = {name: which & sides[name].alive for name, which in told.items()}
    said = np.concatenate([
        said[told[name][start : start + len(said)]]
        for name, found in sides.items()
        for start, said in zip(found.starts, store.each(found.folders, "examples", "said"), strict=False)
    ])  # fmt: skip
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


def _groups(found: Examples) -> Iterator[store.Array]:
    return (found.group[start:end] for start, end in pairwise(found.starts))


def _halves(found: Examples) -> Iterator[store.Array]:
    """Of each folder the first halves of the keys of what its examples say."""
    return (said[:, 0] for said in store.each(found.folders, "examples", "said"))


def _joined(sides: Sides, side: Side, parts: Callable[[Examples], Iterator[store.Array]]) -> store.Array:
    """Keys of the examples on this side, over all tasks."""
    on = {name: found.on(side) for name, found in sides.items()}
    return keys.join(
        sum(int(which.sum()) for which in on.values()),
        (
            part[on[name][start : start + len(part)]]
            for name, found in sides.items()
            for start, part in zip(found.starts, parts(found), strict=False)
        ),
    )
