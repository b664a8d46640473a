"""The step that makes supervised conversations of items, tokenised once, for training and for the ledger.

A unit of work is one task on one shard. Its folder holds the conversations, their token rows, and arrays for the steps
that look at all examples of a task.
"""

import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.config.data import Task
from finetune.corpus import dedup, draws, keys, places, store, tokens
from finetune.corpus.build import Example, Item, answer_templates, build_chat, empty_part, unmet
from finetune.corpus.engine import work_off
from finetune.corpus.ledger import Ledger, Reject
from finetune.corpus.lengths import split_text
from finetune.corpus.places import Named
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan
from finetune.corpus.split import SIDES, Side, draw
from finetune.errors import Problem, RecipeError
from finetune.metrics import gold_problem

EXAMPLES = "examples.parquet"
_EXAMPLE = pa.schema([
    ("id", pa.string()), ("file", pa.string()), ("line", pa.int64()), ("chat", pa.string()),
    ("system", pa.list_(pa.string())), ("prompt", pa.list_(pa.string())), ("answers", pa.list_(pa.string())),
    ("names", pa.list_(pa.string())), ("problems", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """One task on one shard."""

    task: str
    shard: store.Shard


@dataclass
class Examples:
    """The examples of one task. What is held of each is on which side it lies and whether it is `alive`: nothing has
    dropped it. Other arrays are read from disk, folder by folder: `draw` (of the step that caps, in [0, 1)), `group`,
    `supervised` and `longest` (tokens of all and of the longest of its token rows), `said`."""

    task: str
    folders: list[Path]
    side: store.Array
    """Position in SIDES."""
    alive: store.Mask
    starts: list[int]
    """Position of the first example of each folder, and the end."""
    over: dict[Path, store.Mask] = field(default_factory=dict)
    """Folder -> token rows that are left out of an example that stays."""
    again: list[store.Mask] = field(default_factory=list)
    """Training examples that stand once more, for each further time."""

    def on(self, side: Side) -> store.Mask:
        """Those still there that lie on this side."""
        return self.alive & (self.side == SIDES.index(side))

    def each(self, array: str, which: store.Mask) -> Iterator[store.Array]:
        """One of the arrays for those of `which`, folder by folder, without folders that have none."""
        for folder, mask in self.parts(which):
            with np.load(folder / "examples.npz") as arrays:
                yield arrays[array][mask]

    def groups(self, which: store.Mask) -> int:
        return sum(map(len, keys.runs(lambda: self.each("group", which))))

    def supervised(self, which: store.Mask) -> int:
        """Their supervised tokens together."""
        return sum(int(found.sum()) for found in self.each("supervised", which))

    def lowest(self, which: store.Mask, most: int) -> store.Mask:
        """The `most` of these with the lowest draws."""
        taken = np.zeros(len(which), bool)
        masks = draws.lowest(lambda: self.each("draw", which), most)
        taken[which] = np.concatenate([np.empty(0, bool), *masks])
        return taken

    def parts(self, which: store.Mask) -> Iterator[tuple[Path, store.Mask]]:
        """(folder, which of its examples) for each folder that has some of `which`."""
        for folder, start, end in zip(self.folders, self.starts, self.starts[1:], strict=False):
            if which[start:end].any():
                yield folder, which[start:end]

    def chats(self, which: store.Mask, *columns: str) -> Iterator[dict[str, object]]:
        for folder, mask in self.parts(which):
            yield from store.read(folder / EXAMPLES, mask, columns)

    def drop(self, job: Job, step: str, side: Side, gone: store.Mask, reason: str, *, tell: bool = False) -> None:
        """Take these out and count them: an entry for each side of a task. `tell`: rejects say how long they are."""
        before = self.on(side)
        gone = gone & before
        self.alive &= ~gone
        after = self.on(side)
        tokens = self.supervised(before), self.supervised(after)
        rejects = self._rejects(gone, step, reason, tell)
        label = f"{self.task}/{side}"
        job.ledger.record(step, label, int(before.sum()), int(after.sum()), rejects, tokens)

    def _rejects(self, gone: store.Mask, step: str, reason: str, tell: bool) -> Iterator[Reject]:
        for (folder, mask), lost, longest in zip(
            self.parts(gone), self.each("supervised", gone), self.each("longest", gone), strict=True
        ):
            details = [f"{count} tokens" for count in longest.tolist()] if tell else ""
            yield from store.rejects(folder / EXAMPLES, mask, step, reason, details, lost)


def build_tasks(job: Job, shards: Shards) -> dict[str, Examples]:
    """The examples of every task on their sides."""
    units = [Unit(name, shard) for name, task in job.settings.tasks.items() for shard in shards[task.source]]
    work = partial(make, plan=job.plan)
    folders = work_off("task", units, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    made = {}
    for name, task in job.settings.tasks.items():
        mine = [folder for unit, folder in zip(units, folders, strict=True) if unit.task == name]
        sides = list(store.each(mine, "examples", "side"))
        starts = [0, *np.cumsum([len(found) for found in sides]).tolist()]
        side = np.concatenate([np.empty(0, np.uint8), *sides])
        made[name] = Examples(name, mine, side, np.ones(starts[-1], bool), starts)
        assert job.ledger.follow(name, ("task", "parts")).rows_out == starts[-1], f"{name}: an example was lost"
        given = job.ledger.entry("task", name).rows_in
        assert given == sum(map(len, shards[task.source])), f"{name}: a row of {task.source} was lost"
    return made


def make(unit: Unit, folder: Path, *, plan: Plan) -> None:
    """One unit of work."""
    name, task = unit.task, plan.settings.tasks[unit.task]

    def judge(item: Item) -> Reject | None:
        column = unmet(task.where, item.columns)
        if column is not None:
            return item.reject("task", "where", f"column {column}")
        empty = empty_part(task, item)
        return item.reject("task", empty) if empty else None

    nested = plan.nested(unit.shard.source)
    arrays: list[tuple[int, ...]] = []
    drawn: list[float] = []
    answers: list[tuple[int, int]] = []
    supervised = 0
    with (
        Ledger.opened(folder) as ledger,
        store.Table(folder / EXAMPLES, _EXAMPLE) as table,
        store.Table(folder / tokens.ROWS, tokens.ROW) as rows,
    ):
        chosen = ledger.keep("task", name, unit.shard.items(nested), judge, lambda item: _shown(item, plan))
        cuts = plan.settings.prepare.length.policy == "split"
        whole = (_tokenised(name, task, item, plan) for item in chosen)
        for example, problems, turns in _fitting(name, task, whole, plan, ledger) if cuts else whole:
            item = example.item
            values = _values(task, item)
            system, asked, answered, thought = ([text for _, text in named] for named in values)
            problems += _unscorable(name, task, example)
            text = example.chat.to_json()
            told = json.dumps([vars(problem) for problem in problems]) if problems else None
            table.add({
                "id": example.chat.id, "file": item.file, "line": item.line, "chat": text, "system": system,
                "prompt": asked, "answers": [*answered, *thought], "problems": told,
                "names": [name for named in values for name, _ in named],
            }, 2 * len(text))  # fmt: skip
            for turn in turns:
                tokens.add_row(rows, turn, len(arrays))
            counts = [turn.supervised for turn in turns]
            supervised += sum(counts)
            side = plan.side_of(item)
            group = store.short_key(item.group)
            said = store.key("\0".join(map(dedup.normalise, [*system, *asked, *answered])))
            drawn.append(draw(plan.settings.seed, f"{name}/{side}", example.chat.id))
            longest = max((len(turn.input_ids) for turn in turns), default=0)
            arrays.append((SIDES.index(side), group, sum(counts), longest, *said))
            answers += [(store.short_key(answer), group) for answer in (*system, *answered, *thought)]
        ledger.made("parts" if cuts else "task", name, supervised)
    columns = np.array(arrays, np.uint64).reshape(-1, 6).T
    np.savez(
        folder / "examples.npz", side=columns[0].astype(np.uint8), draw=np.array(drawn), group=columns[1],
        supervised=columns[2].astype(np.int32), longest=columns[3].astype(np.int32), said=columns[4:].T,
    )  # fmt: skip
    np.savez(folder / "answers.npz", answer=np.array(answers, np.uint64).reshape(-1, 2))


def _shown(item: Item, plan: Plan) -> str:
    return "\n".join(text for column in plan.content(item.source) for text in item.texts(column))


Tokenised = tuple[Example, list[Problem], list[tokens.TokenRow]]


def _tokenised(name: str, task: Task, item: Item, plan: Plan) -> Tokenised:
    example = Example(build_chat(name, task, item), item)
    # An error counts only where the example is taken: a capped row costs nobody a run.
    try:
        return example, [], tokens.tokenise(plan.chat, example)
    except RecipeError as error:
        return example, list(error.problems), []


def _fitting(name: str, task: Task, given: Iterable[Tokenised], plan: Plan, ledger: Ledger) -> Iterator[Tokenised]:
    """Of an item that is too long its parts, where the task says which column may be cut: `id~1`, `id~2` and so on."""
    limit, column = plan.settings.sft.max_length, task.split_column
    entry = ledger.entry("parts", name)
    entry.more.update(made=0, cut=0)

    def part(item: Item, text: str, number: int = 0) -> Tokenised:
        mine = replace(item, id=f"{item.id}~{number}", columns={**item.columns, str(column): text})
        return _tokenised(name, task, mine, plan)

    def fits(made: Tokenised) -> bool:
        return all(len(turn.input_ids) <= limit for turn in made[2])

    for whole in given:
        ledger.count("parts", name)
        item, parts = whole[0].item, None
        if column is not None and not fits(whole):
            text = item.columns[column]
            parts = split_text(text, lambda some: fits(part(item, some)))  # noqa: B023 (called at once)
            assert parts is None or _ink("".join(parts)) == _ink(text), f"{item.file}:{item.line}: a text lost words"
        if parts is None:
            yield whole
            continue
        entry.rows_out += len(parts) - 1
        entry.more["made"] += len(parts) - 1
        entry.more["cut"] += 1
        for number, text in enumerate(parts, start=1):
            yield part(item, text, number)


def _ink(text: str) -> str:
    return "".join(text.split())


def find_labels(examples: Examples) -> keys.Keys:
    """Values of answers and system turns (as keys) that more than one group gives: labels, a prompt that all rows
    stand under. Sharing one is what a task is about, no leak."""

    return keys.mixed(lambda: store.each(examples.folders, "answers", "answer"))


def compared(row: dict[str, list[str]], labels: Container[int]) -> tuple[list[str], list[str]]:
    """(all values without labels, values of the prompt and of the system turn before it): what is compared across
    sides."""
    system, answers = (
        [value for value in row[part] if store.short_key(value) not in labels] for part in ("system", "answers")
    )
    return [*system, *row["prompt"], *answers], [*system, *row["prompt"]]


def _values(task: Task, item: Item) -> tuple[list[Named], list[Named], list[Named], list[Named]]:
    """(values of the system turn, of the prompt, of the answer, of the reasoning that is no part of the answer)."""
    system = item.filling([task.system])
    if (column := task.messages) is not None:
        told = json.loads(item.columns[column])
        said = (places.instructed(column, told), places.asked(column, told), places.answered(column, told))
        return said[0] or system, said[1], said[2], []
    answers = answer_templates(task)
    return system, item.filling([task.prompt]), item.filling(answers), item.filling([task.reasoning])


def _unscorable(name: str, task: Task, example: Example) -> list[Problem]:
    """A gold answer that the task's metric cannot score: said before anything is trained."""
    problem = gold_problem(example.chat, task)
    if not problem:
        return []
    return [Problem(
        f"{example.item.file}:{example.item.line}",
        None,
        f"tasks.{name}.metric={task.metric} cannot score this row's gold answer: {problem}",
        f"mend the row, leave it out with tasks.{name}.where, or change the metric or its metric_options",
    )]  # fmt: skip
