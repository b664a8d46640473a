"""One interface to generate: what is asked, what came back, and the book in which answers are kept.

Whoever asks prompts (tasks, consistency, context, modes) sees an `Answerer` and not whether a model in this process or
a server behind HTTP answers. Answers are greedy and are kept by model, prompt and decoding: an evaluation that was
interrupted goes on, and one whose metric changed asks nothing again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.artifacts import canonical_json, write_whole
from finetune.chat import ChatFormat
from finetune.corpus.records import Message, Mode
from finetune.kept import append_lines, read_lines
from finetune.score.prompts import after_thoughts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """One prompt: its text as the chat template renders it, and the token ids that the model is to read."""

    text: str
    ids: tuple[int, ...]
    mode: Mode
    max_new_tokens: int
    messages: tuple[Message, ...] = ()
    """The same as messages, for a server that takes nothing else."""
    tools: tuple[dict[str, Any], ...] = ()

    @classmethod
    def render(
        cls, chat: ChatFormat, messages: Sequence[Message], mode: Mode, tools: Sequence[dict[str, Any]] = (), *,
        max_new_tokens: int,
    ) -> "Asked":  # fmt: skip
        text = chat.prompt_text(messages, mode, tools)
        return cls(text, tuple(chat.encode(text)), mode, max_new_tokens, tuple(messages), tuple(tools))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a model made of a prompt."""

    raw: str
    """Everything it wrote, thoughts included, without special tokens."""
    text: str
    """What a user of the served model gets: in think mode what follows the thoughts, '' where these never ended."""
    ids: tuple[int, ...] | None
    """Token ids, the end of turn included; None where a server does not tell them."""
    finished: bool
    """False where it was cut off at max_new_tokens before it ended its turn."""
    tokens: int
    """Tokens written; of a server that counts none, as our tokenizer counts its text."""
    seconds: float
    """From the request to its last token; in process a batch's time divided by its rows."""


class Answerer(Protocol):
    """A model that can be asked."""

    model: str
    """Digest of everything that decides its answers: weights, adapter, number format, or what an endpoint says."""

    def answer(self, prompts: Sequence[Asked], *, repeat: int = 0) -> list[Answer]:
        """A greedy answer to each prompt, kept ones first. Raises RecipeError when a server cannot be asked.

        repeat: 0 asks once; each other number asks anew, in process in batches of another composition, and is kept
        apart.
        """

    def likelihoods(self, prompts: Sequence[Asked], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-probability (nats, summed over tokens) of each choice as the beginning of the answer to its prompt."""


class Book:
    """Answers of one model, a line for each in an append-only file; a line that a kill tore is skipped.

    Several processes may append at once: a line is one write, and lines are never changed.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """`about`: everything that decides this model's answers; its digest is the name of the file."""
        self.about = about
        self.model = hashlib.sha256(canonical_json(about).encode()).hexdigest()
        self.file = folder / f"{self.model[:16]}.jsonl"
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        for line in read_lines(self.file):
            if "prompt" in line:
                self._known[line["prompt"], canonical_json(line["decoding"])] = line

    def __len__(self) -> int:
        return len(self._known)

    def find(self, asked: Asked, repeat: int) -> Answer | None:
        line = self._known.get((asked.sha256, canonical_json(_decoding(asked, repeat))))
        if line is None or "raw" not in line:
            return None
        ids = None if line["ids"] is None else tuple(line["ids"])
        return Answer(
            line["raw"], after_thoughts(line["raw"], asked.mode), ids, line["finished"], line["tokens"], line["seconds"]
        )

    def noted(self, asked: Asked) -> dict[str, Any]:
        """What was noted beside an answer that is kept."""
        return self._known[asked.sha256, canonical_json(_decoding(asked, 0))]

    def add(
        self, answers: Sequence[tuple[Asked, Answer]], repeat: int, noted: Mapping[str, Any] | None = None
    ) -> None:
        """`noted`: how it was asked, for the reader of a result."""
        self._append([
            {"prompt": asked.sha256, "decoding": _decoding(asked, repeat), "raw": made.raw,
             "ids": None if made.ids is None else list(made.ids), "finished": made.finished, "tokens": made.tokens,
             "seconds": round(made.seconds, 4), **(noted or {})}
            for asked, made in answers
        ])  # fmt: skip

    def find_value(self, asked: Asked, what: str) -> Any:
        """Something else that was computed of this prompt, such as a likelihood; None where it was not."""
        line = self._known.get((asked.sha256, canonical_json({"what": what})))
        return None if line is None else line["value"]

    def add_values(self, values: Sequence[tuple[Asked, str, Any]]) -> None:
        self._append([
            {"prompt": asked.sha256, "decoding": {"what": what}, "value": value} for asked, what, value in values
        ])  # fmt: skip

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """A measured value of this model as plain JSON, made once. `name` holds all that decides it but the model."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        file = self.file.with_suffix(f".{digest}.json")
        if not file.exists():
            made = make()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(made))
        return json.loads(file.read_text(encoding="utf-8"))

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        if not lines:
            return
        append_lines(self.file, lines, {"about": self.about})
        for line in lines:
            self._known[line["prompt"], canonical_json(line["decoding"])] = line


def _decoding(asked: Asked, repeat: int) -> dict[str, Any]:
    return {"temperature": 0, "max_new_tokens": asked.max_new_tokens, "repeat": repeat}
