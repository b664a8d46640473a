"""Where in a row something stands: the `span` of rejects. Never what stands there."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.corpus.dedup import normalise
from finetune.corpus.personal.recognisers import find_personal

_FORM = frozenset({
    "role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "type", "id", "function", "arguments",
    "description", "parameters",
})  # fmt: skip
"""Keys of conversations and tools. Any other key may be personal data itself: its position stands for it."""
_WORD = re.compile(r"[^\W_]+")
_WHOLE = ("the whole prompt", "nearly the whole row")


@dataclass(frozen=True)
class Place:
    """Characters `start` to before `end` of a column, as it came to the step that dropped the row.

    In a column of conversations `column` names the text within it: `messages[2].content`, where a key that is not of
    the form stands as its position.
    """

    column: str
    start: int
    end: int


Named = tuple[str, str]
"""Name of a column, or of a text within it, and the text."""


def named_texts(name: str, value: Any) -> Iterator[Named]:
    """Every string in a JSON value with its name, keys left out, in order."""
    for inner, _, text, kind in _leaves(name, "", value):
        if kind is str:
            yield inner, text


def asked(column: str, messages: Sequence[Mapping[str, Any]]) -> list[Named]:
    """Of conversations.asked, each with its name; so are `instructed` and `answered`."""
    return _contents(column, messages, ("user", "tool"))


def instructed(column: str, messages: Sequence[Mapping[str, Any]]) -> list[Named]:
    return _contents(column, messages, ("system",))


def answered(column: str, messages: Sequence[Mapping[str, Any]]) -> list[Named]:
    turns = [(f"{column}[{at}]", turn) for at, turn in enumerate(messages) if turn["role"] == "assistant"]
    keys = ("reasoning_content", "content", "tool_calls")
    found = (named for at, turn in turns for key in keys for named in named_texts(f"{at}.{key}", turn.get(key)))
    return [(name, text) for name, text in found if text]


def _contents(column: str, messages: Sequence[Mapping[str, Any]], roles: Collection[str]) -> list[Named]:
    return [
        (f"{column}[{at}].content", str(turn["content"])) for at, turn in enumerate(messages) if turn["role"] in roles
    ]


def find_text(wanted: str, texts: Iterable[Named]) -> Place | None:
    """The first place of a text in others."""
    found = ((name, text.find(wanted), wanted) for name, text in texts)
    return next((Place(name, at, at + len(wanted)) for name, at, _ in found if at >= 0), None)


def find_value(kind: str, row: Mapping[str, Any], kinds: Collection[str]) -> Place | None:
    """The first value of this kind of personal data; `row`: column -> its text, or what its JSON holds.

    None where it showed only when another value was replaced.
    """
    for column, value in row.items():
        for name, label, text, _ in _leaves(column, column, value):
            for finding in find_personal(text, kinds, label):
                if finding.kind == kind:
                    return Place(name, finding.start, finding.end)
    return None


def find_passage(passage: str, texts: Iterable[Named]) -> Place | None:
    """The first place of a passage as leaks.EvaluationIndex tells it: in words without case, width or punctuation.

    None for what is no passage but the whole row.
    """
    wanted = "".join(passage.split())
    for name, text in texts if passage not in _WHOLE else ():
        words = [(match.start(), _plain(match.group())) for match in _WORD.finditer(text)]
        at = "".join(word for _, word in words).find(wanted)
        if at >= 0:
            last = at + len(wanted) - 1
            return Place(name, _character(text, words, at), _character(text, words, last) + 1)
    return None


def _plain(text: str) -> str:
    return "".join(normalise(text, signs=False).split())


def _character(text: str, words: Sequence[tuple[int, str]], at: int) -> int:
    """The character of the text that letter `at` of its words comes from."""
    for start, word in words:
        if at < len(word):
            ends = (end for end in range(start + 1, len(text) + 1) if len(_plain(text[start:end])) > at)
            same = _plain(text[start : start + at + 1]) == word[: at + 1]
            return start + at if same else next(ends, len(text)) - 1
        at -= len(word)
    raise AssertionError("a letter behind the last word")


def _leaves(name: str, label: str, value: Any) -> Iterator[tuple[str, str, str, type]]:
    """(name, nearest key, text, its type) of keys (`bytes`), strings and numbers in a JSON value."""
    if isinstance(value, Mapping):
        for at, (key, inner) in enumerate(value.items()):
            below = f"{name}.{key}" if key in _FORM else f"{name}[{at}]"
            yield below, "", key, bytes
            yield from _leaves(below, key, inner)
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from _leaves(f"{name}[{at}]", label, inner)
    elif isinstance(value, str):
        yield name, label, value, str
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, label, str(value), type(value)
