"""A model in this process, asked in batches."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from finetune import parity
from finetune.chat import ChatFormat
from finetune.generate import generate
from finetune.score.answers import Answer, Asked, Book, Say
from finetune.score.prompts import after_thoughts


class InProcess:
    """An `Answerer` around a causal LM of transformers; the model is loaded when something has to be computed."""

    def __init__(
        self, loaded: Callable[[], AbstractContextManager[Any]], chat: ChatFormat, book: Book, *, batch_tokens: int,
        say: Say,
    ) -> None:  # fmt: skip
        """`loaded()` gives the model in the state in which it is to be asked (its adapter off, added up ...)."""
        self._loaded, self._chat, self._batch_tokens, self._say = loaded, chat, batch_tokens, say
        self.book = book
        self.model = book.model

    def answer(
        self, prompts: Sequence[Asked], *, repeat: int = 0, drafts: Sequence[Answer] | None = None
    ) -> list[Answer]:
        """As `Answerer` says. drafts: answers of a model that is nearly this one. They are read in one pass, without
        decoding, and where every token is this model's own greedy choice the draft is its answer."""
        kept = [self.book.find(asked, repeat) for asked in prompts]
        if drafts is not None and not all(kept):
            self._confirm(prompts, drafts, [row for row, one in enumerate(kept) if one is None])
            kept = [self.book.find(asked, repeat) for asked in prompts]
        for limit in sorted({asked.max_new_tokens for asked in prompts}):
            rows = [row for row, asked in enumerate(prompts) if asked.max_new_tokens == limit]
            if any(kept[row] is None for row in rows):
                done = [(number, one) for number, row in enumerate(rows) if (one := kept[row]) is not None]
                if drafts is not None:  # a draft was confirmed row by row: there are no batches to keep whole
                    rows, done = [row for row in rows if kept[row] is None], []
                self._generate([prompts[row] for row in rows], dict(done), limit, repeat)
        found = [self.book.find(asked, repeat) for asked in prompts]
        assert all(one is not None for one in found), "every prompt was asked"
        return [one for one in found if one is not None]

    def likelihoods(self, prompts: Sequence[Asked], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        pairs = {(a.sha256, c): (a, c) for a, own in zip(prompts, choices, strict=True) for c in own}
        missing = [(a, c) for a, c in pairs.values() if self.book.find_value(a, f"likelihood of {c}") is None]
        if missing:
            ids = [(asked.ids, self._chat.encode(choice)) for asked, choice in missing]
            order = sorted(range(len(ids)), key=lambda row: sum(map(len, ids[row])))
            with self._loaded() as model:
                logits = parity.logits_of(
                    model, [list(ids[row][0]) for row in order], [ids[row][1] for row in order], self._batch_tokens
                )
                for row, own in zip(order, logits, strict=True):
                    chosen = own.double().log_softmax(-1).cpu()[range(len(ids[row][1])), ids[row][1]]
                    asked, choice = missing[row]
                    self.book.add_values([(asked, f"likelihood of {choice}", float(chosen.sum()))])
        return [
            [self.book.find_value(asked, f"likelihood of {choice}") for choice in own]
            for asked, own in zip(prompts, choices, strict=True)
        ]

    def _generate(self, prompts: Sequence[Asked], done: dict[int, Answer], limit: int, repeat: int) -> None:
        began = time.monotonic()

        def keep(batch: dict[int, list[int]]) -> None:
            nonlocal began
            each = (time.monotonic() - began) / len(batch)
            self.book.add([(prompts[row], self._read(prompts[row], ids, each)) for row, ids in batch.items()], repeat)
            began = time.monotonic()

        with self._loaded() as model:
            began = time.monotonic()
            generate(
                model, [asked.ids for asked in prompts], max_new_tokens=limit, stop_ids=self._chat.stop_ids,
                pad_id=self._chat.pad_id, batch_tokens=max(1, self._batch_tokens >> (repeat + 1) // 2),
                done={row: list(one.ids or ()) for row, one in done.items()}, on_batch=keep, say=self._say,
            )  # fmt: skip

    def _confirm(self, prompts: Sequence[Asked], drafts: Sequence[Answer], rows: list[int]) -> None:
        order = sorted(
            (row for row in rows if drafts[row].finished or drafts[row].tokens == prompts[row].max_new_tokens),
            key=lambda row: len(prompts[row].ids) + len(drafts[row].ids or ()),
        )
        began, agreed = time.monotonic(), []
        with self._loaded() as model:
            read = parity.logits_of(
                model, [prompts[row].ids for row in order], [drafts[row].ids or () for row in order], self._batch_tokens
            )
            for row, logits in zip(order, read, strict=True):
                if tuple(logits.argmax(-1).tolist()) == drafts[row].ids:
                    agreed.append(row)
        each = (time.monotonic() - began) / max(1, len(order))
        self.book.add([(prompts[row], self._read(prompts[row], drafts[row].ids or (), each)) for row in agreed], 0)
        self._say(f"{len(agreed)} of {len(rows)} answers are those of the model before, read in one pass")

    def _read(self, asked: Asked, ids: Sequence[int], seconds: float) -> Answer:
        raw = self._chat.decode(ids)
        finished = ids[-1] in self._chat.stop_ids
        return Answer(raw, after_thoughts(raw, asked.mode), tuple(ids), finished, len(ids), seconds)
