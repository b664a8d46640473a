"""The test rows of each task."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.config.data import Task
from finetune.corpus.records import Chat
from finetune.errors import RecipeError


def read(file: Path) -> Iterator[Chat]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield Chat.from_json(line)


def by_task(rows: Iterator[Chat], tasks: Mapping[str, Task]) -> dict[str, list[Chat]]:
    """Task -> its test rows, tasks in the recipe's order. Raises RecipeError for a task without rows to score."""
    found: dict[str, list[Chat]] = {name: [] for name in tasks}
    for row in rows:
        found[row.task].append(row)
    for name, those in found.items():
        if not those:
            raise RecipeError.one(
                f"tasks.{name}", None, "no row of it is left in the test split, so it cannot be scored",
                "raise prepare.split.test, loosen its filters, or take the task out",
            )  # fmt: skip
    return found
