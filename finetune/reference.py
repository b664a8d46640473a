"""DPO's reference: what the policy said of every answer before its first step, scored once and kept by content.

TRL keeps a frozen second adapter and runs it beside every training step. Before its first step the policy is the
reference, so its scores are taken then, in the very batches of training: the first margin is zero to the last bit,
later epochs and runs with another learning rate or beta read them from a file, and no second adapter is held.
A batch is named by its tokens and the file by everything else that may change a bit of a score, so that a score is
either exactly the one wanted or is computed.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from finetune.artifacts import canonical_json

Item = TypeVar("Item")
FOLDER = ".reference"
"""In the work folder, beside the stages."""

Pair = tuple[float, float]
"""Summed log-probabilities of the chosen and the rejected answer."""
Row = Mapping[str, Any]
"""A tokenised pair: id, prompt_ids, chosen_ids and rejected_ids."""


class Scores:
    """The file of one policy on one machine: a line for each batch, appended and synced as it is scored."""

    def __init__(self, work: Path, identity: Mapping[str, Any]) -> None:
        name = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
        self.file = work / FOLDER / f"{name}.jsonl"

    def read(self) -> dict[str, list[Pair]]:
        """Batch name -> scores of its rows. A line torn by a kill is cut off, and its batch is scored again."""
        if not self.file.exists():
            return {}
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.file, whole)
        lines = map(json.loads, content[:whole].splitlines())
        return {line["batch"]: [(chosen, rejected) for chosen, rejected in line["scores"]] for line in lines}

    def add(self, batches: Mapping[str, Sequence[Pair]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            for name, scores in batches.items():
                file.write(json.dumps({"batch": name, "scores": scores}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def plan_batches(order: Sequence[int], per_device: int) -> list[list[int]]:
    """Row numbers of the device batches of `order` in which some row comes for the first time."""
    batches: list[list[int]] = []
    seen: set[int] = set()
    for start in range(0, len(order), per_device):
        batch = list(order[start : start + per_device])
        if not seen.issuperset(batch):
            batches.append(batch)
        seen.update(batch)
    return batches


def name_of(batch: Sequence[Row]) -> str:
    """A batch by its content: the tokens of its pairs, in order."""
    tokens = [[list(row["prompt_ids"]), list(row["chosen_ids"]), list(row["rejected_ids"])] for row in batch]
    return hashlib.sha256(canonical_json(tokens).encode()).hexdigest()


def plan_rounds(batches: Sequence[list[Item]], world: int) -> list[list[list[Item]]]:
    """Batches for all ranks at once, of equal size in a round; where not enough are left every rank takes the same."""
    sizes = sorted({len(batch) for batch in batches}, reverse=True)
    rounds: list[list[list[Item]]] = []
    for size in sizes:
        alike = [batch for batch in batches if len(batch) == size]
        whole = len(alike) - len(alike) % world
        rounds += [alike[start : start + world] for start in range(0, whole, world)]
        rounds += [[batch] * world for batch in alike[whole:]]
    return rounds
