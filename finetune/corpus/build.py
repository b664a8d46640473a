"""Rows become items with a name and a group; items become supervised conversations by the task's templates."""

import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.config.build import Built, Headed, given_columns, read_columns
from finetune.config.data import Source, Task, placeholders
from finetune.corpus import conversations
from finetune.corpus.glossary import original
from finetune.corpus.ledger import Reject
from finetune.corpus.patterns import found_in
from finetune.corpus.places import Named, Place, named_texts
from finetune.corpus.records import Chat, Message, mode_of
from finetune.corpus.tables import Row


@dataclass(frozen=True)
class Item:
    """One row of a source with its id and its group. `columns` holds what the recipe uses, `_file` and `_line`."""

    source: str
    id: str
    group: str
    columns: Row
    nested: frozenset[str] = frozenset()
    """Columns that hold JSON (conversations, tools): their texts are looked at one by one."""

    def texts(self, column: str) -> list[str]:
        """The texts of a column: one, or those inside its JSON."""
        value = self.columns[column]
        return list(conversations.texts_in(json.loads(value))) if column in self.nested else [value]

    def named_texts(self, columns: Iterable[str]) -> Iterator[Named]:
        """The texts of these columns, each with the name of its column, or of its place within the JSON there."""
        for column in columns:
            value = self.columns[column]
            yield from named_texts(column, json.loads(value) if column in self.nested else value)

    def filling(self, templates: Iterable[str | None]) -> list[Named]:
        """The columns that fill these templates."""
        return [(name, self.columns[name]) for name in names_in(templates)]

    def read_texts(self, column: str) -> list[str]:
        """Of a conversation what is read and not what is answered, else the texts."""
        if column in self.nested:
            return conversations.asked(json.loads(self.columns[column]))
        return self.texts(column)

    def system_texts(self, columns: Iterable[str]) -> list[str]:
        """What fills system templates (`columns`), and the system turns of conversations."""
        told = [json.loads(self.columns[column]) for column in sorted(self.nested & self.columns.keys())]
        turns = [turns for turns in told if turns and "role" in turns[0]]
        return [self.columns[column] for column in columns] + [
            text for messages in turns for text in conversations.instructed(messages)
        ]

    @property
    def file(self) -> str:
        return self.columns["_file"]

    @property
    def line(self) -> int:
        return int(self.columns["_line"])

    def reject(self, step: str, reason: str, detail: str = "", span: Place | None = None) -> Reject:
        return Reject(self.file, self.line, self.id, step, reason, detail, span)


@dataclass(frozen=True)
class Example:
    """A conversation and the item it was made from."""

    chat: Chat
    item: Item

    def reject(self, step: str, reason: str, detail: str = "") -> Reject:
        return Reject(self.item.file, self.item.line, self.chat.id, step, reason, detail)


def fill(template: str, row: Mapping[str, str]) -> str:
    """The template with its `{column}` placeholders replaced. Braces inside values are just text, `{{` means `{`."""
    return "".join(literal + (row[name] if name else "") for literal, name, _, _ in string.Formatter().parse(template))


def unmet(where: Mapping[str, str], columns: Mapping[str, str]) -> str | None:
    """The first column in which its regular expression is not found, or None. RecipeError for one without end."""
    place = f"{columns['_file']}:{columns['_line']}"
    return next((name for name, pattern in where.items() if not found_in(columns[name], pattern, place)), None)


def build_chat(name: str, task: Task, item: Item) -> Chat:
    """The supervised conversation that the task makes of this item; JSON answers are compact, keys in recipe order."""
    messages: list[Message] = []
    if task.system is not None:
        messages.append({"role": "system", "content": fill(task.system, item.columns)})
    if task.messages is not None:
        told = json.loads(item.columns[task.messages])
        tools = json.loads(item.columns[task.tools]) if task.tools is not None else []
        return Chat(
            id=f"{name}/{item.id}", task=name, messages=(*(messages if told[0]["role"] != "system" else ()), *told),
            source=item.file, line=item.line, group=item.group, mode=mode_of(told[-1]), tools=tuple(tools),
            **_material(task, item.columns),
        )  # fmt: skip
    assert task.prompt is not None, "checks ask for prompt or messages"
    messages.append({"role": "user", "content": fill(task.prompt, item.columns)})
    answer: Message = {"role": "assistant", "content": _answer(task, item.columns)}
    if task.reasoning is not None:
        answer["reasoning_content"] = fill(task.reasoning, item.columns)
    return Chat(
        id=f"{name}/{item.id}", task=name, messages=(*messages, answer), source=item.file, line=item.line,
        group=item.group, mode="plain" if task.reasoning is None else "think", **_material(task, item.columns),
    )  # fmt: skip


def _material(task: Task, columns: Row) -> dict[str, Any]:
    """What a metric looks at beside the answer, and of a built row who built it out of what. Passages of one name are
    one passage, a line for each."""
    passages: dict[str, str] = {}
    for name, text in task.passages.items():
        known, filled = fill(name, columns).strip(), fill(text, columns)
        passages[known] = f"{passages[known]}\n{filled}" if known in passages else filled
    return {
        "choices": tuple(fill(template, columns).strip() for template in task.choices), "passages": passages,
        "builder": columns.get("_builder", ""), "span": columns.get("_span", ""),
    }  # fmt: skip


def _answer(task: Task, columns: Row) -> str:
    if task.answer_json is not None:
        filled = {key: fill(template, columns) for key, template in task.answer_json.items()}
        return json.dumps(filled, ensure_ascii=False, separators=(",", ":"))
    assert task.answer is not None, "checks ask for answer or answer_json"
    return fill(task.answer, columns).strip()


def empty_part(task: Task, item: Item) -> str | None:
    """`empty prompt`, `empty answer` or `empty reasoning` when all columns of that part are blank, else None."""
    if task.messages is not None:
        told = json.loads(item.columns[task.messages])
        if not any(text.strip() for text in conversations.asked(told)):
            return "empty prompt"
        taught = [turn for turn in told if turn["role"] == "assistant"]
        said = all(turn["content"].strip() or turn.get("tool_calls") for turn in taught)
        return None if said else "empty answer"
    parts = {"prompt": [task.prompt or ""], "answer": answer_templates(task), "reasoning": [task.reasoning or ""]}
    for part, templates in parts.items():
        names = names_in(templates)
        if names and not any(item.columns[name].strip() for name in names):
            return f"empty {part}"
    return None


def answer_templates(task: Task) -> list[str]:
    return [task.answer] if task.answer is not None else list((task.answer_json or {}).values())


def names_in(templates: Iterable[str | None]) -> list[str]:
    """The columns that templates name, sorted."""
    return sorted({name for template in templates if template for name in placeholders(template)})


def used_columns(name: str, source: Source, settings: Any) -> tuple[list[str], list[str]]:
    """(columns whose text ends up in a record, every column needed) of a source, `settings` being prepare's Config."""
    tasks = _uses(name, settings)
    uses = [*settings.text, *settings.general.values(), *([settings.replay] if settings.replay else [])]
    texts = names_in(use.template for use in uses if use.source == name)
    content = {column for task in tasks for column in task.columns} | set(texts)
    conditions = {*source.where, *(column for task in tasks for column in task.where)}
    needed = content | conditions | set(names_in([source.id, source.group]))
    for built, spec in _built_from(name, settings):
        own = {column for task in _uses(built, settings) for column in (*task.columns, *task.where)}
        content |= {spec.text} | ({spec.heading} if isinstance(spec, Headed) and spec.heading else set())
        needed |= {*read_columns(spec), *(own - set(given_columns(spec)))}
    needed |= content
    glossary, time = settings.prepare.repair.glossary, settings.prepare.split.time
    if time is not None and name in time.columns and needed:
        needed.add(time.columns[name])
    expanded = set(glossary.columns.get(name, ())) if glossary is not None and content else set()
    needed = (needed - set(map(original, expanded))) | expanded
    return sorted(content), sorted(needed)


def compared_columns(name: str, settings: Any) -> list[str]:
    """The columns in which near duplicates are looked for: what is read, not what is answered.

    Equal labels would make short, different texts look alike (a work order for the bucket and one for the steps). Of a
    preference the answers count as well: several worse answers to one prompt are several rows.
    """
    uses = [*settings.text, *settings.general.values(), *([settings.replay] if settings.replay else [])]
    tasks = [task for task in settings.tasks.values() if task.source == name]
    named = names_in([*(task.prompt for task in tasks), *(use.template for use in uses if use.source == name)])
    pairs = [use for use in settings.preferences.values() if use.source == name]
    preferred = {column for use in pairs for column in use.columns if column != use.tools}
    read = {spec.text for _, spec in _built_from(name, settings)}
    return sorted({*named, *read, *(task.messages for task in tasks if task.messages), *preferred})


def system_columns(name: str, settings: Any) -> list[str]:
    """The columns that fill the system turns of tasks."""
    return names_in(task.system for task in settings.tasks.values() if task.source == name)


def nested_columns(name: str, settings: Any) -> list[tuple[str, str | None]]:
    """(column of conversations, column of their tools) of each use that takes whole conversations from a source."""
    return list(dict.fromkeys((use.messages, use.tools) for use in _uses(name, settings) if use.messages))


def _built_from(name: str, settings: Any) -> list[tuple[str, Built]]:
    """Name and section of the built sources that are made of this source and used by a task."""
    used = {task.source for task in settings.tasks.values()}
    return [(built, spec) for built, spec in settings.build.items() if spec.source == name and built in used]


def _uses(name: str, settings: Any) -> list[Any]:
    """Tasks and ready-made preferences of a source."""
    uses = [*settings.tasks.values(), *settings.preferences.values()]
    return [use for use in uses if use.source == name]
