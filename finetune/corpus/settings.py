"""What decides the result of PREPARE, and what its steps share while they run."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from finetune.chat import ChatFormat
from finetune.config.build import Built
from finetune.config.data import ReadyPreferences, Replay, Source, Task, TextUse
from finetune.config.prepare import Prepare
from finetune.config.section import Section
from finetune.corpus import redact
from finetune.corpus.build import Item, compared_columns, nested_columns, used_columns
from finetune.corpus.engine import Engine
from finetune.corpus.glossary import Codes
from finetune.corpus.latest import read_times
from finetune.corpus.ledger import Ledger
from finetune.corpus.read import capped
from finetune.corpus.split import Side, side_of
from finetune.errors import Problem


class Longest(Section):
    """What PREPARE reads of a training section: another learning rate must not prepare anew."""

    max_length: int


class Modes(Section):
    """What PREPARE reads of the model; its tokenizer and template are known by the digest of the base."""

    modes: tuple[Literal["plain", "think"], ...]
    default_mode: Literal["plain", "think"]


class Config(Section):
    """What decides the result of this stage."""

    seed: int
    sources: dict[str, Source]
    build: dict[str, Built] = {}
    tasks: dict[str, Task]
    preferences: dict[str, ReadyPreferences] = {}
    text: tuple[TextUse, ...]
    general: dict[str, TextUse]
    replay: Replay | None
    prepare: Prepare
    sft: Longest
    cpt: Longest
    model: Modes


@functools.lru_cache(maxsize=2)
def read_chat(model: Path) -> ChatFormat:
    """The chat format of a model directory, read once in a process."""
    return ChatFormat.read(model)


@dataclass(frozen=True)
class Plan:
    """What a unit of work needs to know, in whatever process it runs."""

    settings: Config
    model: Path
    codes: Codes | None = None
    """The glossary of prepare.repair.glossary."""
    times: Path | None = None
    """Where the latest time of each group lies (see latest.Times); None while nobody knows, or without such a split."""

    @property
    def chat(self) -> ChatFormat:
        return read_chat(self.model)

    @property
    def used(self) -> dict[str, Source]:
        """The sources that something uses."""
        return {name: source for name, source in self.settings.sources.items() if self.content(name)}

    @property
    def built(self) -> dict[str, Built]:
        """The built sources that a task uses."""
        used = {task.source for task in self.settings.tasks.values()}
        return {name: spec for name, spec in self.settings.build.items() if name in used}

    def origin(self, source: str) -> str:
        """The source that a built one is made of; of others, itself."""
        spec = self.settings.build.get(source)
        return spec.source if spec else source

    def content(self, source: str) -> list[str]:
        """The columns of a source whose text ends up in records."""
        if source in self.settings.build:
            tasks = (task for task in self.settings.tasks.values() if task.source == source)
            return sorted({column for task in tasks for column in task.columns})
        return used_columns(source, self.settings.sources[source], self.settings)[0]

    def needed(self, source: str) -> list[str]:
        """Every column of a source that the recipe uses."""
        return used_columns(source, self.settings.sources[source], self.settings)[1]

    def compared(self, source: str) -> list[str]:
        """The columns in which near duplicates are looked for."""
        return compared_columns(source, self.settings)

    def nested(self, source: str) -> frozenset[str]:
        """The columns that hold JSON."""
        return frozenset(column for pair in nested_columns(source, self.settings) for column in pair if column)

    def side_of(self, item: Item) -> Side:
        latest = None if self.times is None else read_times(self.times).of(item.group)
        return side_of(item.group, self.settings.seed, self.settings.prepare.split, latest)

    def hide_key(self, key: str, columns: Mapping[str, str] | None = None) -> str:
        """An id, group or file name without personal data; `columns`: the row as it was read."""
        return redact.redact_key(key, self.settings.prepare.redact, self.settings.seed, columns)

    def hide(self, item: Item, columns: Iterable[str]) -> str:
        """The texts of these columns, joined, without personal data: of what only the column's name tells, too."""
        taken = {column: item.columns[column] for column in columns}
        given = {**taken, "_file": item.file}
        shown, _ = redact.redact_row(given, self.settings.prepare.redact, item.nested & taken.keys())
        hidden = replace(item, columns=shown)
        return "\n".join(text for column in taken for text in hidden.texts(column))

    def hide_text(self, text: str) -> str:
        """A text that stands in no column, without personal data."""
        return redact.redact_texts([text], self.settings.prepare.redact.kinds)[0][0]


@dataclass(frozen=True)
class Job:
    """What every step shares: the plan, the ledger, where and how units of work are worked off."""

    plan: Plan
    ledger: Ledger
    scratch: Path
    engine: Engine
    say: Callable[[str], None]
    limit: int | None = None
    """Rows of each source that are read, for a look at what would come out; None: all."""

    @property
    def settings(self) -> Config:
        return self.plan.settings

    def refuse(self, problems: Sequence[Problem]) -> None:
        """RecipeError if there is one; a look at a few rows goes on, and says what they are too few for."""
        if not problems:
            return
        if self.limit is None:
            raise capped(problems)
        for problem in problems:
            self.say(f"  among these rows: {problem}")

    @property
    def chat(self) -> ChatFormat:
        return self.plan.chat
