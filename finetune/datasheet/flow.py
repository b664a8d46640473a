"""The ledger as streams: what is read, what becomes examples, running text, replay, general text and preferences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

LANES = ("sources", "tasks", "text", "replay", "preferences", "general")
_OF_TASKS = ("task", "parts", "split", "decontaminate", "cap", "length", "mix", "mix tasks")
_SIDES = ("train", "valid", "test")


@dataclass
class Step:
    """One step of a stream, all its sources or tasks together; rows that it was not given pass by it."""

    name: str
    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    made: int = 0
    """Rows that the step itself made, such as the parts of a text that was too long."""
    changed: int | None = None
    tokens_in: int | None = None
    """Supervised tokens, where they are counted."""
    tokens_out: int | None = None
    into: dict[str, int] = field(default_factory=dict)
    """Side -> rows, where a step deals them out."""


def lane_of(entry: Mapping[str, Any]) -> str:
    """The stream that a ledger entry belongs to, by what its step was given: a source, `task/side`, `text/source`..."""
    step, label = entry["step"], str(entry["source"])
    first = label.partition("/")[0]
    if first in ("text", "general", "preferences") and "/" in label:
        return first
    if step in ("text", "cut replay") or (step == "decontaminate" and label == "replay"):
        return "replay"
    return "tasks" if step in _OF_TASKS else "sources"


def streams(ledger: Sequence[Mapping[str, Any]]) -> dict[str, list[Step]]:
    """Lane -> its steps in order. At each of them rows in = rows out + rows dropped."""
    found: dict[str, dict[str, Step]] = {lane: {} for lane in LANES}
    for entry in ledger:
        step = found[lane_of(entry)].setdefault(entry["step"], Step(entry["step"]))
        step.rows_in += entry["rows_in"]
        step.rows_out += entry["rows_out"]
        for reason, rows in entry["dropped"].items():
            step.dropped[reason] = step.dropped.get(reason, 0) + rows
        if "changed" in entry:
            step.changed = (step.changed or 0) + entry["changed"]
        step.made += entry.get("made", 0)
        if "tokens_supervised_out" in entry:
            step.tokens_in = (step.tokens_in or 0) + entry["tokens_supervised_in"]
            step.tokens_out = (step.tokens_out or 0) + entry["tokens_supervised_out"]
        sides = entry.get("into") or _side(entry)
        for side, rows in sides.items():
            step.into[side] = step.into.get(side, 0) + rows
    return {lane: _joined(lane, list(steps.values())) for lane, steps in found.items() if steps}


def _joined(lane: str, steps: list[Step]) -> list[Step]:
    """Steps in the order in which a row meets them, each given what the one before gave on."""
    if lane == "tasks":
        steps.sort(key=lambda step: _OF_TASKS.index(step.name))
    for before, step in pairwise(steps):
        beside = max(0, before.rows_out - step.rows_in)
        step.rows_in += beside
        step.rows_out += beside
        if before.tokens_out is not None and step.tokens_in is not None and step.tokens_out is not None:
            beside = max(0, before.tokens_out - step.tokens_in)
            step.tokens_in += beside
            step.tokens_out += beside
    return steps


def _side(entry: Mapping[str, Any]) -> dict[str, int]:
    side = str(entry["source"]).rpartition("/")[2]
    return {side: entry["rows_out"]} if side in _SIDES else {}
