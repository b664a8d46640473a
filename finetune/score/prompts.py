"""The prompts of an evaluation: the chat template and mode that training and serving use, with or without shots."""

import hashlib
from collections.abc import Sequence
from typing import Any

from finetune.corpus.records import Chat, Message

_THINKING_ENDS = "</think>"


def choose_shots(train: Sequence[Chat], task: str, mode: str, count: int, seed: int) -> list[Chat]:
    """The same few training rows for every prompt of a task and mode, drawn by a hash of seed and id.

    A hash, not a generator: a row that joins or leaves the training set then changes at most one shot. At most one row
    of each group, while there are enough groups, so that the examples differ.
    """
    rows = sorted((row for row in train if row.task == task and row.mode == mode), key=lambda row: _draw(seed, row.id))
    firsts: dict[str, Chat] = {}
    for row in rows:
        firsts.setdefault(row.group, row)
    others = [row for row in rows if firsts[row.group] is not row]
    return [*firsts.values(), *others][:count]


def with_shots(row: Chat, shots: Sequence[Chat]) -> list[Message]:
    """The row's prompt with worked examples as earlier turns; the system message, if any, stays first."""
    system = [message for message in row.prompt if message["role"] == "system"]
    asked = [message for message in row.prompt if message["role"] != "system"]
    turns: list[Message] = []
    for shot in shots:
        assert shot.id != row.id, "an example must not give the answer away"
        turns += [message for message in shot.messages if message["role"] != "system"]
    return [*system, *turns, *asked]


def question(row: Chat) -> str:
    """What a baseline reads: the text of the user's last message."""
    return str(next(message["content"] for message in reversed(row.prompt) if message["role"] == "user"))


def answer_text(chat: Any, ids: Sequence[int], mode: str) -> str:
    """What a user of the served model gets for these token ids."""
    return after_thoughts(chat.decode(ids), mode)


def after_thoughts(text: str, mode: str) -> str:
    """In think mode what follows the reasoning, nothing if that never ended; else the text."""
    if mode == "think":
        _reasoning, closed, text = text.rpartition(_THINKING_ENDS)
        text = text if closed else ""
    return text.strip()


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
