"""Rows that are conversations already: OpenAI messages or ShareGPT turns, checked and brought to one form.

The form is what a server hands to the chat template: text contents, reasoning in `reasoning_content`, arguments as
objects, and tools with the fields of an OpenAI request in vLLM's order (`ChatCompletionToolsParam.model_dump()`).
A rule says what is wrong and never repeats the row's own text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from finetune.corpus.records import Message, mode_of
from finetune.corpus.tables import Row

_SHAREGPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip
_KEYS = ("role", "reasoning_content", "content", "tool_calls", "tool_call_id", "name")
_OF_ASSISTANT = ("reasoning_content", "tool_calls")
_THOUGHT = re.compile(r"\s*(?:<think>)?(?P<reasoning>(?:(?!</?think>).)*)</think>\s*(?P<content>.*)", re.DOTALL)


class WrongConversationError(ValueError):
    """What is wrong with a conversation: (rule, fix)."""

    def __init__(self, rule: str, fix: str) -> None:
        super().__init__(rule)
        self.rule, self.fix = rule, fix


def unify(row: Row, messages: str, tools: str | None, modes: Sequence[str]) -> Row:
    """The row with its columns `messages` and `tools` as JSON in the one form; `modes` are those that the model has.

    Raises WrongConversationError at the first thing that is wrong.
    """
    turns = [_turn(f"{messages}[{index}]", raw) for index, raw in enumerate(_list(messages, row[messages]))]
    _check_order(messages, turns)
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant" and mode_of(turn) not in modes:
            carries = "carries" if mode_of(turn) == "think" else "lacks"
            rule = f"{messages}[{index}] {carries} reasoning, and the model has no mode {mode_of(turn)}"
            raise WrongConversationError(rule, "leave such rows out with `where`, or choose a model with both modes")
    unified = {**row, messages: _compact(turns)}
    if tools is not None:
        offered = _list(tools, row[tools]) if row[tools].strip() else []
        unified[tools] = _compact([_tool(f"{tools}[{index}]", raw) for index, raw in enumerate(offered)])
    return unified


def asked(messages: Sequence[Message]) -> list[str]:
    """What is read and differs from row to row: the texts of users and tools."""
    return [str(message["content"]) for message in messages if message["role"] in ("user", "tool")]


def instructed(messages: Sequence[Message]) -> list[str]:
    """The texts of system turns, which many rows may share."""
    return [str(message["content"]) for message in messages if message["role"] == "system"]


def answered(messages: Sequence[Message]) -> list[str]:
    """What is learnt: the assistant's texts, reasoning and the values it calls tools with."""
    turns = [message for message in messages if message["role"] == "assistant"]
    return [text for turn in turns for key in _KEYS[1:4] for text in texts_in(turn.get(key)) if text]


def texts_in(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys left out, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)


def with_texts(text: str, changed: Iterator[str]) -> str:
    """The JSON `text` with its strings replaced, in the order of `texts_in`."""

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return next(changed)
        if isinstance(value, dict):
            return {key: replaced(inner) for key, inner in value.items()}
        return [replaced(inner) for inner in value] if isinstance(value, list) else value

    return _compact(replaced(json.loads(text)))


def _turn(at: str, raw: Any) -> Message:
    if not isinstance(raw, dict):
        raise WrongConversationError(f"{at} is no object", 'write turns as {"role": "user", "content": "..."}')
    given = {key: value for key, value in raw.items() if value is not None}
    if "from" in given:
        given = _from_sharegpt(at, given)
    if "reasoning" in given and "reasoning_content" not in given:
        given["reasoning_content"] = given.pop("reasoning")
    unknown = set(given) - set(_KEYS)
    if unknown:
        fix = f"a turn has {', '.join(_KEYS)} (or ShareGPT's from and value): take the others out"
        rule = f"{at} has keys that would not be trained: {len(unknown)} of {len(given)}"
        raise WrongConversationError(rule, fix)
    if given.get("role") not in ("system", "user", "assistant", "tool"):
        raise WrongConversationError(f"{at}.role is none of the known", "use system, user, assistant or tool")
    calls = given.get("tool_calls") or []
    content = given.get("content", "" if calls else None)
    for key, text in (("content", content), ("reasoning_content", given.get("reasoning_content", ""))):
        if not isinstance(text, str):
            raise WrongConversationError(f"{at}.{key} is no text", "write it as one text (images are not trained)")
    turn = {**given, "content": content}
    turn.pop("tool_calls", None)
    if calls:
        turn["tool_calls"] = [_call(f"{at}.tool_calls", call) for call in (calls if isinstance(calls, list) else [0])]
    extra = [key for key in _OF_ASSISTANT if key in turn and turn["role"] != "assistant"]
    if extra:
        raise WrongConversationError(f"{at}.{extra[0]} stands in a {turn['role']} turn", "only assistants have it")
    turn = _apart({key: turn[key] for key in turn if turn[key] or key == "content"})
    return {key: turn[key] for key in _KEYS if key in turn}


def _apart(turn: Message) -> Message:
    """Reasoning that stands in the content, between think tags or before the closing one, gets its own field."""
    found = _THOUGHT.fullmatch(turn["content"]) if turn["role"] == "assistant" else None
    if found is None or "think>" in found["content"] or "reasoning_content" in turn:
        return turn
    thought = {"reasoning_content": found["reasoning"].strip()} if found["reasoning"].strip() else {}
    return {**turn, **thought, "content": found["content"]}


def _from_sharegpt(at: str, raw: Mapping[str, Any]) -> Message:
    role, value = raw["from"], raw.get("value")
    if role not in _SHAREGPT or set(raw) != {"from", "value"} or not isinstance(value, str):
        fix = f"ShareGPT turns have from ({', '.join(_SHAREGPT)}) and value, a text"
        raise WrongConversationError(f"{at} is no ShareGPT turn", fix)
    if role != "function_call":
        return {"role": _SHAREGPT[role], "content": value}
    called = _parse(at, value)
    return {"role": "assistant", "tool_calls": called if isinstance(called, list) else [called]}


def _call(at: str, raw: Any) -> dict[str, Any]:
    inner = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        fix = 'write calls as {"function": {"name": "...", "arguments": {...}}}'
        raise WrongConversationError(f"{at} holds something that is no call", fix)
    arguments = inner.get("arguments") or {}
    if isinstance(arguments, str):
        # A server parses them before it renders the history, so that the template sees an object.
        arguments = _parse(f"{at}.arguments", arguments)
    if not isinstance(arguments, dict):
        raise WrongConversationError(f"{at}.arguments is no object", 'write arguments as {"name": value}')
    named = {"id": raw["id"]} if isinstance(raw.get("id"), str) else {}
    return {**named, "type": "function", "function": {"name": inner["name"], "arguments": arguments}}


def _tool(at: str, raw: Any) -> dict[str, Any]:
    inner = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        fix = 'write tools as {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        raise WrongConversationError(f"{at} is no tool", fix)
    always = {key: inner.get(key) for key in ("name", "description", "parameters")}
    more = {key: value for key, value in inner.items() if key not in (*always, "type")}
    return {"type": "function", "function": {**always, **more}}


def _check_order(column: str, turns: Sequence[Message]) -> None:
    """A system turn first if any, then a user; calls are followed by results and results follow calls; an answer last.

    Two assistant turns in a row have no prompt that a server would send between them.
    """
    roles = [turn["role"] for turn in turns]
    before = ["start", *roles]
    for index, (last, role) in enumerate(zip(before, roles, strict=False)):
        calls = index > 0 and bool(turns[index - 1].get("tool_calls"))
        allowed = {
            "start": ("system", "user"), "system": ("user",), "user": ("user", "assistant"),
            "tool": ("tool", "assistant", "user"), "assistant": ("tool",) if calls else ("user",),
        }[last]  # fmt: skip
        if role not in allowed:
            follows = "is the first turn" if last == "start" else f"follows a {last} turn" + (" with calls" * calls)
            rule = f"{column}[{index}] of role {role} {follows}"
            raise WrongConversationError(rule, f"there may stand {' or '.join(allowed)}")
    if not roles or roles[-1] != "assistant":
        rule = f"{column} does not end with an answer of the assistant"
        raise WrongConversationError(rule, "take the turns after the last answer out")


def _list(column: str, text: str) -> list[Any]:
    value = _parse(column, text)
    if not isinstance(value, list):
        raise WrongConversationError(f"{column} is no list", "write it as a JSON list of objects")
    return value


def _parse(at: str, text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse)
        _compact(value).encode("utf-8")  # half of a surrogate pair could be written to no file
        return value
    except (ValueError, RecursionError) as error:
        raise WrongConversationError(f"{at} is not valid JSON", "write it as JSON") from error


def is_json(text: str) -> bool:
    """Whether it is a JSON list or object."""
    try:
        return text[:1] in ("[", "{") and bool(_parse("", text))
    except WrongConversationError:
        return False


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
