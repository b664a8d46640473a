"""The rows of the report: what each system answered, what training did to it, and how much of its text may be shown."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from finetune.artifacts import Artifact
from finetune.corpus.redact import RECOGNISERS, redact_texts
from finetune.tracking.told import mark

SHOWN = ("base_zero_shot", "base_few_shot", "tuned")
OUTCOMES = ("learned", "lost", "same", "wrong")
RIGHT = 0.5
_EVEN = 1e-9
_KINDS = sorted({recogniser.kind for recogniser in RECOGNISERS})
Outcome = Literal["learned", "lost", "same", "wrong"]


def outcome(base: float | None, tuned: float | None) -> Outcome:
    """What training did to one row: compare the tuned score with the base model's, then ask whether both are right."""
    before, after = base or 0.0, tuned or 0.0
    if abs(after - before) > _EVEN:
        return "learned" if after > before else "lost"
    return "same" if after >= RIGHT else "wrong"


def count_outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Task -> outcome -> rows, with every outcome present."""
    counts = Counter((str(row["task"]), str(row["outcome"])) for row in rows)
    tasks = dict.fromkeys(task for task, _ in counts)
    return {task: {name: counts[task, name] for name in OUTCOMES} for task in tasks}


def join(prepared: Artifact, scores: Artifact) -> list[dict[str, Any]]:
    """One row for each evaluated prompt with the answers of base and tuned side by side, in the order of test.jsonl."""
    prompts = {row["id"]: row["messages"] for row in lines(prepared.file("test.jsonl"))}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for answer in lines(scores.file("answers.jsonl")):
        if answer["system"] not in SHOWN:
            continue
        key = (answer["task"], answer["id"])
        row = rows.setdefault(key, {
            "task": answer["task"], "id": answer["id"], "prompt": prompts[answer["id"]][-2]["content"],
            "gold": answer["gold"],
        })
        row[answer["system"]] = answer["answer"]
        row[f"score_{answer['system']}"] = answer["score"]
    order = {name: number for number, name in enumerate(prompts)}
    return [
        {**row, "outcome": outcome(row.get("score_base_few_shot", row.get("score_base_zero_shot")), row["score_tuned"])}
        for row in sorted(rows.values(), key=lambda row: order[row["id"]])
    ]


def show(rows: Sequence[Mapping[str, Any]], privacy: str) -> list[dict[str, Any]]:
    """The rows as `privacy.samples` lets them be shown: none at all, with personal data replaced, or as they are.

    Every kind of personal data that we know is replaced, whatever the recipe asked of PREPARE: a model may write an
    address that was never in its data.
    """
    if privacy == "none":
        return []
    if privacy == "full":
        return [dict(row) for row in rows]
    shown = []
    for row in rows:
        names = [name for name in ("prompt", "gold", *SHOWN) if row.get(name) is not None]
        texts, _ = redact_texts([str(row[name]) for name in names], _KINDS)
        shown.append({**row, **dict(zip(names, texts, strict=True))})
    return shown


def numbered(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    """Id of a row -> (its task, its place among the rows of that task, from 1): what a reader calls it by."""
    counts: Counter[str] = Counter()
    found = {}
    for row in rows:
        counts[row["task"]] += 1
        found[row["id"]] = (row["task"], counts[row["task"]])
    return found


def shown_id(name: str, privacy: str, tasks: Collection[str]) -> str:
    """The id of a row as `privacy.samples` lets it leave the work folder: as it is; as the mark by which W&B is told
    of it; or nothing. What stands before it is the name of its task, which the recipe gave.

    A record number or a bare name is personal data that no pattern knows, and an id is what such columns are used for.
    """
    if privacy == "full":
        return name
    task, slash, _ = name.partition("/")
    return (f"{task}/" if slash and task in tasks else "") + (mark(name) if privacy == "redacted" else "")


def hide_ids(part: Any, hide: Callable[[str], str]) -> Any:
    """`part` of a result with every row called by what `hide` makes of its id."""
    if isinstance(part, Mapping):
        return {
            key: hide(value) if key == "id" and isinstance(value, str) else hide_ids(value, hide)
            for key, value in part.items()
        }
    return [hide_ids(value, hide) for value in part] if isinstance(part, list) else part


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
