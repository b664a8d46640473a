"""Rows in a form that the field knows become conversations in the column `messages`.

OpenAI messages, ShareGPT, Alpaca, prompt and completion, chosen and rejected (the worse answer stays in `rejected`). A
row that fits no form, or two, is a problem that says what to type; nothing is guessed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune.config.data import Form
from finetune.corpus.tables import Row


class UncertainFormError(ValueError):
    """What is unclear about a row's form: (rule, fix)."""

    def __init__(self, rule: str, fix: str) -> None:
        super().__init__(rule)
        self.rule, self.fix = rule, fix


def converted(row: Row, form: Form, source_name: str) -> Row:
    """The row with its conversation in `messages`. Raises UncertainFormError."""
    key = f"sources.{source_name}.form"
    if form == "auto":
        fitting = list(recognise(row))
        if len(fitting) != 1:
            said = f"fits {' and '.join(fitting)}" if fitting else "fits no form that is known"
            fix = f"type {key}={fitting[0]}" if fitting else f"drop {key} and write the task's prompt and answer"
            raise UncertainFormError(f"a row {said}", fix)
        form = fitting[0]
    if (lacking := [name for name in _NEEDED.get(form, ()) if name not in row]) or (
        form in _TURNS and _conversation(row) is None
    ):
        wanted = " or ".join(_CONVERSATIONS) if form in _TURNS else lacking[0]
        raise UncertainFormError(f"the form {form} needs the column {wanted}", f"correct {key}, or name the column so")
    return _CONVERT[form](row)


def recognise(row: Row) -> Iterator[Form]:
    """The forms that a row's columns fit."""
    column = _conversation(row)
    turns = _list(row[column]) if column else None
    if turns and isinstance(turns[0], dict) and {"role", "from"} & set(turns[0]):
        yield "sharegpt" if "from" in turns[0] else "messages"
    for form, needed in _NEEDED.items():
        if all(name in row for name in needed):
            yield form


_CONVERSATIONS = ("messages", "conversations", "conversation")
_TURNS = ("messages", "sharegpt")
_NEEDED: Mapping[Form, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
}

def _conversation(row: Row) -> str | None:
    return next((name for name in _CONVERSATIONS if name in row), None)


def _list(text: str) -> list[Any] | None:
    """The turns in a column, or None where it is a text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(turn, dict) for turn in value) else None


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def _with(row: Row, turns: list[Any], **columns: str) -> Row:
    """The row with these turns, after its own system text if it has one in a column of its own."""
    system = row.get("system", "")
    opens = bool(turns) and isinstance(turns[0], dict) and "system" in (turns[0].get("role"), turns[0].get("from"))
    told = [_said("system", system), *turns] if system.strip() and not opens else turns
    return {**row, **columns, "messages": json.dumps(told, ensure_ascii=False)}


def _turns(row: Row) -> Row:
    text = row[str(_conversation(row))]
    turns = _list(text)
    # What is no list of turns is told by conversations.unify, which says what is wrong with it.
    return _with(row, turns) if turns is not None else {**row, "messages": text}


def _alpaca(row: Row) -> Row:
    given = row.get("input", "")
    asked = row["instruction"] + (f"\n\n{given}" if given.strip() else "")
    turns = []
    for pair in _pairs(row.get("history", "")):
        turns += [_said("user", pair[0]), _said("assistant", pair[1])]
    return _with(row, [*turns, _said("user", asked), _said("assistant", row["output"])])


def _pairs(history: str) -> list[list[str]]:
    wrong = UncertainFormError("history is no list of [question, answer]", "write it so, or rename the column")
    try:
        value = json.loads(history) if history.strip() else []
    except (ValueError, RecursionError):
        raise wrong from None
    pairs: list[Any] = value if isinstance(value, list) else [None]
    if not all(isinstance(pair, list) and [type(text) for text in pair] == [str, str] for pair in pairs):
        raise wrong
    return pairs


def _prompt(row: Row) -> Row:
    return _with(row, [*_asked(row["prompt"]), *_answered(row["completion"])])


def _asked(text: str) -> list[Any]:
    turns = _list(text)
    return turns if turns is not None else [_said("user", text)]


def _answered(text: str) -> list[Any]:
    turns = _list(text)
    return turns if turns is not None else [_said("assistant", text)]


def _preference(row: Row) -> Row:
    better, worse = _answered(row["chosen"]), _answered(row["rejected"])
    if len(better) < 2:
        if "prompt" not in row:
            rule = "chosen holds no prompt, and there is no column prompt"
            raise UncertainFormError(rule, "add the column prompt, or write preferences with templates")
        asked = _asked(row["prompt"])
        better, worse = [*asked, *better], [*asked, *worse] if len(worse) < 2 else worse
    if better[:-1] != worse[:-1] or not isinstance(worse[-1].get("content"), str):
        rule = "chosen and rejected are no two answers to one prompt"
        raise UncertainFormError(rule, "give both the same turns before the last, which is a text")
    return _with(row, better, rejected=worse[-1]["content"])


_CONVERT: Mapping[Form, Callable[[Row], Row]] = {
    "messages": _turns, "sharegpt": _turns, "alpaca": _alpaca, "prompt": _prompt, "preference": _preference,
}  # fmt: skip
