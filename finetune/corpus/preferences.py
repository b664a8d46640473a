"""Ready-made preferences: rows of a source with a better and a worse answer become what PAIRS hands on to DPO."""

import json
from collections.abc import Iterable, Sequence
from functools import partial

from finetune.config.data import ReadyPreferences
from finetune.corpus import conversations
from finetune.corpus.build import Example, Item, fill, names_in, unmet
from finetune.corpus.ledger import Reject
from finetune.corpus.read import capped
from finetune.corpus.records import Message, Preference, mode_of
from finetune.corpus.settings import Items, Job
from finetune.corpus.sides import leak_reject
from finetune.corpus.split import EvaluationIndex, side_of
from finetune.errors import Problem, RecipeError


def make_preferences(
    job: Job, items: Items, examples: Iterable[Example], index: EvaluationIndex | None
) -> list[Preference]:
    """The preferences of all uses, in order; rows of the valid side are held out of training.

    `examples` are those of all tasks: a row whose group is among their test rows is left out, and so is one that
    `index` finds in an evaluation row. Rows that the chat template cannot render are problems with file and line.
    """
    tasked = {example.item.group for example in examples}
    split = job.settings.prepare.split
    made: list[Preference] = []
    problems: list[Problem] = []
    for name, use in job.settings.preferences.items():

        def judge(item: Item, use: ReadyPreferences = use) -> Reject | None:
            column = unmet(use.where, item.columns)
            if column is not None:
                return item.reject("preference", "where", f"column {column}")
            if item.group in tasked and side_of(item.group, job.settings.seed, split) == "test":
                return item.reject("preference", "group of a test row")
            wrong = _what_is_wrong(use, item)
            return item.reject("preference", wrong) if wrong else None

        found = job.ledger.keep("preference", f"preferences/{name}", items[use.source], judge)
        if index is not None:
            found = job.ledger.keep("decontaminate", f"preferences/{name}", found, partial(_judge_leak, use, index))
        for item in found:
            held_out = side_of(item.group, job.settings.seed, split) == "valid"
            preference = build_preference(name, use, item, held_out=held_out)
            try:
                for answer in (preference.chosen, preference.rejected):
                    job.chat.supervise([*preference.messages, answer], preference.mode, preference.tools)
            except RecipeError as error:
                where = f"{item.file}:{item.line}"
                problems += [Problem(where, None, f"{each.path}: {each.rule}", each.fix) for each in error.problems]
            made.append(preference)
    if problems:
        raise capped(problems)
    return made


def count_sides(preferences: Sequence[Preference]) -> dict[str, int]:
    held_out = sum(preference.held_out for preference in preferences)
    return {"trained": len(preferences) - held_out, "held_out": held_out}


def _judge_leak(use: ReadyPreferences, index: EvaluationIndex, item: Item) -> Reject | None:
    return leak_reject(item, index.find(*_values(use, item)))


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


def _values(use: ReadyPreferences, item: Item) -> tuple[list[str], list[str]]:
    """(values of prompt and answers, values of the prompt): what is looked for in evaluation rows."""
    if use.messages is not None:
        told = json.loads(item.columns[use.messages])
        prompt, answers = conversations.asked(told), conversations.answered(told)
    else:
        prompt, answers = [item.columns[name] for name in names_in([use.prompt])], []
    more = names_in([use.chosen, use.rejected, use.chosen_reasoning, use.rejected_reasoning])
    return [*prompt, *answers, *(item.columns[name] for name in more)], prompt
