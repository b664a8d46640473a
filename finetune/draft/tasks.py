"""What could be learned from a table: a recognised form, labels of a text, or its title."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.config.prepare import Split
from finetune.corpus.build import fill
from finetune.corpus.split import SIDES, side_of
from finetune.corpus.tables import Row
from finetune.draft.folder import LINE, ROWS, Found

LEAST = 24
"""Fewer rows make no task: too few to learn from and to judge by."""
_ID = re.compile(r"(?i)(^|_)(id|nr|no|number|code|key)$|编号|序号")
_GROUP = re.compile(
    r"(?i)document|^doc|file|patient|customer|client|asset|machine|equipment|contract|case|project|account|book|speech"
    r"|设备|客户|合同|文件|病人|患者"
)
_PAIRS = (
    (("instruction", "input"), "output"), (("instruction",), "output"), (("question",), "answer"),
    (("prompt",), "completion"), (("prompt",), "response"), (("query",), "response"), (("input",), "output"),
    (("text",), "summary"), (("问题",), "答案"),
)  # fmt: skip
_TARGET = re.compile(r"(?i)title|term|heading|name$|subject|标题|名称")
_NUMBER = re.compile(r"[\d\s.,:/\-+€$¥%]+")


@dataclass(frozen=True)
class Drafted:
    """The tasks that a source could have, in the words of a recipe."""

    source: Found
    id: str
    group: str
    tasks: dict[str, dict[str, Any]]
    why: str
    """What they are made of, for the comment."""
    build: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a built source -> its spec."""
    preferences: dict[str, str] | None = None


@dataclass(frozen=True)
class Column:
    filled: float
    """Share of the rows that have a value."""
    distinct: int
    length: float
    """Mean length of the values in characters."""
    numeric: float
    top: float
    """Share of the most frequent value."""


def of_table(found: Found, chinese: bool) -> Drafted:
    """The task of a table, if it has one; its id and its group in any case."""
    columns = {name: _column([row.get(name, "") for row in found.rows]) for name in found.columns}
    id_, group = _id(found, columns), _group(found, columns)
    task, why, preferences = _of_table(found, columns, group, chinese)
    tasks = {found.name: {"source": found.name, **task}} if task else {}
    return Drafted(found, id_, group, tasks, why, preferences=preferences)


def _of_table(
    found: Found, columns: dict[str, Column], group: str, chinese: bool
) -> tuple[dict[str, Any] | None, str, dict[str, str] | None]:
    named = {name.lower(): name for name in columns}
    conversation = next((named[name] for name in ("messages", "conversations") if name in named), None)
    if not _enough(found.rows, group):
        return None, f"{len(found.rows)} rows are too few for a task", None
    if conversation is not None:
        task = {"title": "Conversations", "messages": conversation, "metric": "rouge_l", "max_new_tokens": 96}
        task |= {"tools": named["tools"]} if "tools" in named else {}
        return task, "whole conversations (OpenAI messages or ShareGPT turns)", None
    if {"prompt", "chosen", "rejected"} <= set(named):
        pairs = {"prompt": f"{{{named['prompt']}}}", "chosen": f"{{{named['chosen']}}}"}
        return None, "better and worse answers", {**pairs, "rejected": f"{{{named['rejected']}}}"}
    for asked, answer in _PAIRS:
        if {*asked, answer} <= set(named):
            prompt = "\n".join(f"{{{named[name]}}}" for name in asked)
            task = {"title": f"{answer.capitalize()} of {asked[0]}", "prompt": prompt, "answer": f"{{{named[answer]}}}"}
            most = 96 if columns[named[answer]].length > 60 else 40
            return {**task, "metric": "rouge_l", "max_new_tokens": most}, f"columns {', '.join((*asked, answer))}", None
    return _labels(columns, len(found.rows), chinese)


def _labels(
    columns: dict[str, Column], rows: int, chinese: bool
) -> tuple[dict[str, Any] | None, str, dict[str, str] | None]:
    """Short values that few rows share are labels of the longest text; or a title that each row has of its own."""
    texts = [name for name, one in columns.items() if one.distinct > rows / 3 and one.length >= (6 if chinese else 12)]
    if not texts:
        return None, "no column with text", None
    text = max(texts, key=lambda name: columns[name].length)
    asked = f"{{{text}}}"
    labels = [
        name for name, one in columns.items()
        if name != text and not _GROUP.search(name) and not _ID.search(name) and one.filled >= 0.5 and one.numeric < 0.5
        and 2 <= one.distinct <= max(2, min(60, rows // 6)) and one.length <= 40 and one.top <= 0.9
    ]  # fmt: skip
    if len(labels) == 1:
        task = {"title": f"{text} to {labels[0]}", "prompt": f"{asked}\n{labels[0]}:", "answer": f"{{{labels[0]}}}"}
        return {**task, "metric": "label_accuracy", "max_new_tokens": 24}, f"label {labels[0]} of column {text}", None
    if labels:
        keys = sorted(labels, key=lambda name: columns[name].top)[:3]
        said = ", ".join(keys)
        fields = {
            "title": f"{text} to fields", "prompt": f"{asked}\n{said}, JSON:",
            "answer_json": {name: f"{{{name}}}" for name in keys}, "metric": "json_exact", "max_new_tokens": 64,
        }  # fmt: skip
        return fields, f"columns {said} of column {text}", None
    titles = [name for name in columns if name != text and _TARGET.search(name) and 2 <= columns[name].length <= 80]
    if titles:
        task = {"title": f"{text} to {titles[0]}", "prompt": f"{asked}\n{titles[0]}:", "answer": f"{{{titles[0]}}}"}
        return {**task, "metric": "rouge_l", "max_new_tokens": 32}, f"{titles[0]} of column {text}", None
    return None, f"running text of column {text}", None


def text_column(drafted: Drafted) -> str:
    """The column with the longest values: the running text of a source."""
    found = drafted.source
    if found.cut is not None:
        return "text"
    return max(found.columns, key=lambda name: _column([row.get(name, "") for row in found.rows]).length)


def enough(groups: Sequence[str]) -> bool:
    """Whether the split of a new recipe leaves groups to train on, two groups to test on and one to watch."""
    if len(groups) < LEAST:
        return False
    dealt = Counter(side_of(one, 0, Split()) for one in set(groups))
    return all(dealt[side] >= (2 if side == "test" else 1) for side in SIDES)


def _enough(rows: Sequence[Row], group: str) -> bool:
    return enough([fill(group, row) for row in rows])


def _column(values: Sequence[str]) -> Column:
    said = [value for value in values if value.strip()]
    counts = Counter(said)
    return Column(
        filled=len(said) / max(1, len(values)), distinct=len(counts), length=sum(map(len, said)) / max(1, len(said)),
        numeric=sum(_NUMBER.fullmatch(value) is not None for value in said) / max(1, len(said)),
        top=max(counts.values(), default=0) / max(1, len(said)),
    )  # fmt: skip


def _id(found: Found, columns: dict[str, Column]) -> str:
    rows = len(found.rows)
    if rows >= ROWS:
        return LINE  # nobody looked whether the rest are unique too
    unique = [name for name, one in columns.items() if one.filled == 1 and one.distinct == rows and _ID.search(name)]
    return f"{{{unique[0]}}}" if unique else LINE


def _group(found: Found, columns: dict[str, Column]) -> str:
    rows = len(found.rows)
    fitting = [
        name for name, one in columns.items()
        if _GROUP.search(name) and one.filled == 1 and 8 <= one.distinct <= 0.8 * rows
    ]  # fmt: skip
    return next((f"{{{name}}}" for name in fitting if _enough(found.rows, f"{{{name}}}")), LINE)
