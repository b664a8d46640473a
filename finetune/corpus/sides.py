"""Steps from rows to the three sides: tasks, split, caps, general text, decontamination, the cross-split check."""

import json
from collections.abc import Set
from functools import partial

from finetune.config.data import Task, TextUse
from finetune.corpus import conversations, dedup
from finetune.corpus.build import Example, Item, answer_templates, build_chat, empty_part, fill, names_in, unmet
from finetune.corpus.ledger import Reject
from finetune.corpus.read import capped
from finetune.corpus.settings import Items, Job, Sides
from finetune.corpus.split import SIDES, EvaluationIndex, Side, choose, side_of
from finetune.errors import Problem, RecipeError
from finetune.metrics import gold_problem


def build_tasks(job: Job, items: Items) -> dict[str, list[Example]]:
    examples: dict[str, list[Example]] = {}
    for name, task in job.settings.tasks.items():

        def judge(item: Item, task: Task = task) -> Reject | None:
            column = unmet(task.where, item.columns)
            if column is not None:
                return item.reject("task", "where", f"column {column}")
            empty = empty_part(task, item)
            return item.reject("task", empty) if empty else None

        chosen = job.ledger.keep("task", name, items[task.source], judge)
        examples[name] = [Example(build_chat(name, task, item), item) for item in chosen]
    return examples


def split(job: Job, examples: dict[str, list[Example]]) -> Sides:
    sides: Sides = {}
    problems: list[Problem] = []
    for name, found in examples.items():
        dealt: dict[Side, list[Example]] = {side: [] for side in SIDES}
        for example in found:
            dealt[side_of(example.item.group, job.settings.seed, job.settings.prepare.split)].append(example)
        into = {side: len(dealt[side]) for side in SIDES}
        job.ledger.record("split", name, len(found), sum(into.values()), into=into)
        sides[name] = dealt
        problems += _lopsided(name, job.settings.tasks[name], found, dealt)
    if problems:
        raise capped(problems)
    return sides


def _lopsided(name: str, task: Task, found: list[Example], dealt: dict[Side, list[Example]]) -> list[Problem]:
    where = f"tasks.{name}"
    groups = len({example.item.group for example in found})
    test_groups = len({example.item.group for example in dealt["test"]})
    if not found:
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
                f"raise prepare.split.test, change seed, or name a finer group in sources.{task.source}.group",
            )
        )
    if task.train_rows and not dealt["train"]:
        problems.append(
            Problem(
                where,
                f"0 training rows of {len(found)}",
                "a task that is trained needs training rows",
                f"lower prepare.split.test, name a finer group in sources.{task.source}.group, or set train_rows: 0",
            )
        )
    return problems


def take_sides(job: Job, sides: Sides, general: list[dict[str, str]]) -> tuple[Sides, EvaluationIndex | None]:
    """Test, then validation, then training rows: each side loses what it shares with those before it, then is capped.

    The caps come after the losses, so that a leak costs no training row where there are enough.
    """
    n = job.settings.prepare.decontaminate.ngram
    index = None if n is None else EvaluationIndex(n)
    taken: Sides = {name: {} for name in sides}
    labels = {
        name: find_labels([example for found in dealt.values() for example in found], job.settings.tasks[name])
        for name, dealt in sides.items()
    }
    for side in reversed(SIDES):
        for name, dealt in sides.items():
            task = job.settings.tasks[name]
            found = dealt[side]
            if index is not None and side != "test":
                judge = partial(_judge_leak, index=index, task=task, labels=labels[name])
                found = job.ledger.keep("decontaminate", f"{name}/{side}", found, judge)
            most = {"train": task.train_rows, "valid": task.valid_rows, "test": task.test_rows}[side]
            taken[name][side] = _cap(job, name, side, found, most)
        if index is not None and side != "train":
            for name, dealt in taken.items():
                for example in dealt[side]:
                    index.add(example.chat.id, *_values(job.settings.tasks[name], example.item, labels[name]))
    if index is not None:
        for row in general:
            index.add(row["id"], [row["text"]])
    return taken, index


def _cap(job: Job, task: str, side: Side, examples: list[Example], most: int) -> list[Example]:
    # Whole ids are drawn, so that which rows are taken depends neither on their order nor on their number.
    chosen = choose([example.chat.id for example in examples], most, job.settings.seed, f"{task}/{side}")
    return job.ledger.keep(
        "cap", f"{task}/{side}", examples,
        lambda example: None if example.chat.id in chosen else example.reject("cap", f"over {side}_rows"),
    )  # fmt: skip


def take_general(job: Job, items: Items) -> list[dict[str, str]]:
    """General text to measure forgetting on. From a source that is trained on as well, only its test groups."""
    trained = {use.source for use in job.settings.text} | (
        {job.settings.replay.source} if job.settings.replay else set()
    )
    rows: list[dict[str, str]] = []
    for kind, use in job.settings.general.items():
        chosen = take_text(
            job, f"general/{kind}", use, items[use.source], ("test",) if use.source in trained else SIDES
        )
        if not chosen:
            raise RecipeError.one(
                f"general.{kind}",
                use.source,
                "no text is left to measure forgetting on",
                "name a source with more text",
            )
        rows += [{"id": f"{kind}/{item.id}", "kind": kind, "text": fill(use.template, item.columns)} for item in chosen]
    return rows


def take_text(job: Job, label: str, use: TextUse, found: list[Item], sides: tuple[Side, ...]) -> list[Item]:
    """Rows of a text use that lie on the wanted sides, in order, up to max_chars."""
    taken = 0

    def judge(item: Item) -> Reject | None:
        nonlocal taken
        if side_of(item.group, job.settings.seed, job.settings.prepare.split) not in sides:
            return item.reject("text", "other side of the split")
        text = fill(use.template, item.columns)
        if not text.strip():
            return item.reject("text", "empty text")
        if use.max_chars is not None and taken + len(text) > use.max_chars:
            return item.reject("text", "over max_chars")
        taken += len(text)
        return None

    return job.ledger.keep("text", label, found, judge)


def _judge_leak(example: Example, index: EvaluationIndex, task: Task, labels: Set[str]) -> Reject | None:
    return leak_reject(example, index.find(*_values(task, example.item, labels)))


def leak_reject(found: Example | Item, hit: tuple[str, str] | None) -> Reject | None:
    return found.reject("decontaminate", "shared with an evaluation row", f"{hit[0]}: {hit[1]}") if hit else None


def find_labels(examples: list[Example], task: Task) -> set[str]:
    """Answer values that more than one group gives: labels. Sharing one is what a task is about, not a leak."""
    groups: dict[str, set[str]] = {}
    for example in examples:
        for value in _answers(task, example.item):
            groups.setdefault(value, set()).add(example.item.group)
    return {value for value, found in groups.items() if len(found) > 1}


def _values(task: Task, item: Item, labels: Set[str] = frozenset()) -> tuple[list[str], list[str]]:
    """(values of prompt and answer columns without labels, values of prompt columns): what is compared across sides."""
    if task.messages is not None:
        prompt = conversations.asked(json.loads(item.columns[task.messages]))
    else:
        prompt = [item.columns[name] for name in names_in([task.prompt])]
    return [*prompt, *(value for value in _answers(task, item) if value not in labels)], prompt


def _answers(task: Task, item: Item) -> list[str]:
    if task.messages is not None:
        return conversations.answered(json.loads(item.columns[task.messages]))
    return [item.columns[name] for name in names_in(answer_templates(task))]


def check(job: Job, sides: Sides) -> None:
    """The cross-split check: no group and no conversation on two sides; and something to train and test on."""
    seen: dict[str, tuple[Side, Example]] = {}
    groups: dict[str, Side] = {}
    problems: list[Problem] = []
    for name, dealt in sides.items():
        for side in SIDES:
            for example in dealt[side]:
                item = example.item
                assert groups.setdefault(item.group, side) == side, f"group {item.group} lies on two sides"
                said = "\0".join(map(dedup.normalise, _values(job.settings.tasks[name], item)[0]))
                other_side, other = seen.setdefault(said, (side, example))
                if other_side != side:
                    problems.append(
                        Problem(
                            f"{item.file}:{item.line}",
                            None,
                            f"this {side} row says the same as {other_side} row {other.item.file}:{other.item.line}",
                            "set prepare.dedup.exact=true and prepare.decontaminate.ngram=13, or give both one group",
                        )
                    )
        problems += _unscorable(name, job.settings.tasks[name], [e for side in SIDES for e in dealt[side]])
        if job.settings.tasks[name].train_rows and not dealt["train"]:
            problems.append(
                Problem(f"tasks.{name}", "0 training rows", "every training row was dropped", "see rejects.jsonl")
            )
        if len({example.item.group for example in dealt["test"]}) < 2:
            problems.append(
                Problem(
                    f"tasks.{name}",
                    "fewer than 2 test groups",
                    "a task needs 2",
                    "raise prepare.split.test or test_rows",
                )
            )
    if problems:
        raise capped(problems)


def _unscorable(name: str, task: Task, examples: list[Example]) -> list[Problem]:
    """Gold answers that the task's metric cannot score, on whichever side: said before anything is trained."""
    return [
        Problem(
            f"{example.item.file}:{example.item.line}",
            None,
            f"tasks.{name}.metric={task.metric} cannot score this row's gold answer: {problem}",
            f"mend the row, leave it out with tasks.{name}.where, or change the metric or its metric_options",
        )
        for example in sorted(examples, key=lambda example: (example.item.file, example.item.line))
        if (problem := gold_problem(example.chat, task))
    ]
