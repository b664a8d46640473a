"""Ready-made preferences: rows of a source with a better and a worse answer become what PAIRS hands on to DPO."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune.config.data import ReadyPreferences
from finetune.corpus import conversations, keys, places, store
from finetune.corpus.build import Item, fill, unmet
from finetune.corpus.engine import work_off
from finetune.corpus.evaluation import Evaluation, leak, show
from finetune.corpus.ledger import Ledger, Reject
from finetune.corpus.places import Named
from finetune.corpus.read import capped
from finetune.corpus.records import Message, Preference, mode_of
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan
from finetune.corpus.sides import Sides, save_groups
from finetune.errors import Problem, RecipeError

PREFERENCES = "preferences.jsonl"


@dataclass(frozen=True)
class Unit:
    """One use on one shard."""

    use: str
    shard: store.Shard


def make_preferences(job: Job, shards: Shards, sides: Sides, evaluation: Evaluation) -> list[Path]:
    """Folders with the preferences of all uses, in order; rows of the valid side are held out of training.

    A row whose group is among the test rows of a task is left out, and so is one that says what an evaluation row
    says. Rows that the chat template cannot render are problems with file and line.
    """
    tested = save_groups(job, sides, "test")
    units = [Unit(name, shard) for name, use in job.settings.preferences.items() for shard in shards[use.source]]
    work = partial(pair, plan=job.plan, tested=tested, evaluation=evaluation.frozen())
    folders = work_off("preferences", units, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    for name, use in job.settings.preferences.items():
        given = job.ledger.entry("preference", f"preferences/{name}").rows_in
        assert given == sum(map(len, shards[use.source])), f"preferences.{name}: a row of {use.source} was lost"
    return folders


def pair(unit: Unit, folder: Path, *, plan: Plan, tested: Path, evaluation: Evaluation) -> None:
    """One unit of work."""
    name, use = unit.use, plan.settings.preferences[unit.use]
    label, groups = f"preferences/{name}", keys.Keys(store.mapped(tested))
    index = evaluation.index() if evaluation.on else None

    def judge(item: Item) -> Reject | None:
        column = unmet(use.where, item.columns)
        if column is not None:
            return item.reject("preference", "where", f"column {column}")
        if store.short_key(item.group) in groups:
            return item.reject("preference", "group of a test row")
        wrong = _what_is_wrong(use, item)
        return item.reject("preference", wrong) if wrong else None

    def judge_leak(item: Item) -> Reject | None:
        assert index is not None, "asked for where decontamination is on"
        system_turn, asked, answers = _values(use, item)
        texts = [*system_turn, *asked, *answers]
        values, system, prompt = ([text for _, text in named] for named in (texts, system_turn, asked))
        hit = index.find(values, prompt) or (index.find([], [*system, *prompt]) if system else None)
        if hit is None:
            return None
        reject = leak({"file": item.file, "line": item.line, "id": item.id}, hit, texts)
        show(ledger, label, reject, hit, "\n".join(values))
        return reject

    problems: list[Problem] = []
    sides: Counter[str] = Counter()
    with Ledger.opened(folder) as ledger, (folder / PREFERENCES).open("w", encoding="utf-8") as file:
        items = ledger.keep("preference", label, unit.shard.items(plan.nested(use.source)), judge)
        if index is not None:
            items = ledger.keep("decontaminate", label, items, judge_leak)
        for item in items:
            held_out = plan.side_of(item) == "valid"
            preference = build_preference(name, use, item, held_out=held_out)
            try:
                for answer in (preference.chosen, preference.rejected):
                    plan.chat.supervise([*preference.messages, answer], preference.mode, preference.tools)
            except RecipeError as error:
                where = f"{item.file}:{item.line}"
                problems += [Problem(where, None, f"{each.path}: {each.rule}", each.fix) for each in error.problems]
            file.write(preference.to_json() + "\n")
            sides["held_out" if held_out else "trained"] += 1
        ledger.counts["preferences"] = sides
    if problems:
        raise capped(problems)


def build_preference(name: str, use: ReadyPreferences, item: Item, *, held_out: bool) -> Preference:
    prompt, chosen, rejected = _conversation(use, item)
    tools = json.loads(item.columns[use.tools]) if use.tools is not None else []
    return Preference(
        f"{name}/{item.id}", name, tuple(prompt), chosen, rejected, "ready", item.group, held_out=held_out,
        mode=mode_of(chosen), tools=tuple(tools),
    )  # fmt: skip


def _conversation(use: ReadyPreferences, item: Item) -> tuple[list[Message], Message, Message]:
    """(messages up to the answer, better answer, worse answer)."""
    rejected = _answer(use.rejected, use.rejected_reasoning, item)
    system: list[Message] = []
    if use.system is not None:
        system.append({"role": "system", "content": fill(use.system, item.columns)})
    if use.messages is not None:
        told = json.loads(item.columns[use.messages])
        return [*(system if told[0]["role"] != "system" else []), *told[:-1]], told[-1], rejected
    assert use.prompt is not None, "checks ask for prompt and chosen, or messages"
    assert use.chosen is not None, "checks ask for prompt and chosen, or messages"
    asked: Message = {"role": "user", "content": fill(use.prompt, item.columns)}
    return [*system, asked], _answer(use.chosen, use.chosen_reasoning, item), rejected


def _answer(template: str, reasoning: str | None, item: Item) -> Message:
    answer: Message = {"role": "assistant", "content": fill(template, item.columns).strip()}
    thought = "" if reasoning is None else fill(reasoning, item.columns).strip()
    return {"role": "assistant", "reasoning_content": thought, "content": answer["content"]} if thought else answer


def _what_is_wrong(use: ReadyPreferences, item: Item) -> str | None:
    prompt, chosen, rejected = _conversation(use, item)
    if not any(text.strip() for text in conversations.asked(prompt)):
        return "empty prompt"
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer["content"].strip() and not answer.get("tool_calls"):
            return f"empty {side}"
    if chosen == rejected:
        return "chosen and rejected are the same"
    return None if mode_of(chosen) == mode_of(rejected) else "only one of both answers has reasoning"


def _values(use: ReadyPreferences, item: Item) -> tuple[list[Named], list[Named], list[Named]]:
    """(values of the system turn, of the prompt, of the answers): what is looked for in evaluation rows."""
    system, prompt, answers = item.filling([use.system]), item.filling([use.prompt]), list[Named]()
    if (column := use.messages) is not None:
        told = json.loads(item.columns[column])
        system = places.instructed(column, told) or system
        prompt, answers = places.asked(column, told), places.answered(column, told)
    more = item.filling([use.chosen, use.rejected, use.chosen_reasoning, use.rejected_reasoning])
    return system, prompt, [*answers, *more]
