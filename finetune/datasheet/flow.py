"""The ledger as streams: what is read, what becomes examples, running text, replay, general text and preferences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

LANES = ("sources", "tasks", "text", "replay", "preferences", "general")
_OF_TASKS = ("task", "split", "decontaminate", "cap", "length", "mix")
_SIDES = ("train", "valid", "test")


@dataclass
class Step:
    """One step of a stream, all its sources or tasks together; rows that it was not given pass by it."""

    name: str
    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    changed: int | None = None
    supervised: int | None = None
    """Supervised tokens of the rows that go on, where they are counted."""
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
        if "tokens_supervised_out" in entry:
            step.supervised = (step.supervised or 0) + entry["tokens_supervised_out"]
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
    return steps


def _side(entry: Mapping[str, Any]) -> dict[str, int]:
    side = str(entry["source"]).rpartition("/")[2]
    return {side: entry["rows_out"]} if side in _SIDES else {}


def unbalanced(ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    """`step, source` of every entry whose rows do not add up: none, or the page says so in red."""
    return [
        f"{entry['step']}, {entry['source']}"
        for entry in ledger
        if entry["rows_in"] != entry["rows_out"] + sum(entry["dropped"].values())
    ]
