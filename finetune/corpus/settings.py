"""What decides the result of PREPARE, and what its steps share while they run."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.chat import ChatFormat
from finetune.config.data import ReadyPreferences, Replay, Source, Task, TextUse
from finetune.config.prepare import Prepare
from finetune.config.section import Section
from finetune.corpus.build import Example, Item
from finetune.corpus.ledger import Ledger
from finetune.corpus.split import Side

Items = dict[str, list[Item]]
"""Source -> its rows."""
Sides = dict[str, dict[Side, list[Example]]]
"""Task -> side -> examples."""


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
    tasks: dict[str, Task]
    preferences: dict[str, ReadyPreferences] = {}
    text: tuple[TextUse, ...]
    general: dict[str, TextUse]
    replay: Replay | None
    prepare: Prepare
    sft: Longest
    cpt: Longest
    model: Modes


@dataclass
class Job:
    """What every step needs: settings, the chat format, the ledger, and counts for the datasheet."""

    settings: Config
    chat: ChatFormat
    ledger: Ledger = field(default_factory=Ledger)
    content: dict[str, list[str]] = field(default_factory=dict)
    """Source -> the columns whose text ends up in records."""
    compared: dict[str, list[str]] = field(default_factory=dict)
    """Source -> the columns in which near duplicates are looked for."""
    personal: Counter[str] = field(default_factory=Counter)
    clusters: list[dict[str, Any]] = field(default_factory=list)
