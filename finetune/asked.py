"""Real prompts and the adapter's own greedy answers: on these BASES and PROOF hold one model against another."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact
from finetune.base import give_back_memory
from finetune.chat import ChatFormat
from finetune.corpus.records import Chat
from finetune.errors import RecipeError
from finetune.generate import Kept, generate

LONGEST_ANSWER = 64
"""Positions compared in one answer: logits over the whole vocabulary are kept for each."""


@dataclass(frozen=True)
class Asked:
    """Rows from the shortest prompt to the longest, so that neighbours share a batch with little padding."""

    rows: list[Chat]
    prompts: list[list[int]]
    chat: ChatFormat

    @classmethod
    def choose(cls, prepared: Artifact, base: Artifact, count: int) -> "Asked":
        """At most `count` test rows, every task and mode in turn. Raises RecipeError when there is no test row."""
        rows = choose_rows(prepared.file("test.jsonl"), count)
        if not rows:
            raise RecipeError.one(
                "tasks", None, "there is no test row to hold adapter and merged model against",
                "keep some rows for test",
            )  # fmt: skip
        chat = ChatFormat.read(base.path)
        asked = [(chat.prompt_ids(row.prompt, row.mode, row.tools), row) for row in rows]
        asked.sort(key=lambda pair: len(pair[0]))
        return cls([row for _, row in asked], [prompt for prompt, _ in asked], chat)

    def within(self, tokens: int) -> "Asked":
        """The shortest prompts, as many as pass through a model together in `tokens` places with their answers and
        padding; at least one."""
        lengths = [len(prompt) + LONGEST_ANSWER for prompt in self.prompts]
        count = max([1, *(count for count, longest in enumerate(lengths, start=1) if count * longest <= tokens)])
        return Asked(self.rows[:count], self.prompts[:count], self.chat)

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.rows]

    @property
    def modes(self) -> list[str]:
        return [row.mode for row in self.rows]

    def answers(self, model: Any, batch_tokens: int, kept: Path) -> list[list[int]]:
        """Greedy answers of at most 64 tokens. `kept` holds the batches that a killed attempt has finished."""
        book = Kept(kept)
        done: Mapping[int, list[int]] = book.of("adapter")
        found = generate(
            model, self.prompts, max_new_tokens=LONGEST_ANSWER, stop_ids=self.chat.stop_ids, pad_id=self.chat.pad_id,
            batch_tokens=batch_tokens, done=done, on_batch=lambda rows: book.add("adapter", rows),
        )  # fmt: skip
        give_back_memory()  # what comes next takes larger blocks, which would not fit into the holes
        return found


def choose_rows(file: Path, count: int) -> list[Chat]:
    """The first rows of every task and mode in turn, so that none is left out."""
    kinds: dict[tuple[str, str], list[Chat]] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = Chat.from_json(line)
            kinds.setdefault((row.task, row.mode), []).append(row)
    dealt = [row for turn in zip_longest(*kinds.values()) for row in turn if row is not None]
    return dealt[:count]
