"""Real rows with real answers: passages of data/ and of Chinese laws, answered by the row most like them.

An answer is what the nearest other row has for its own (TF-IDF): right at times, near at others, wrong often, as a
model's are, and the same on every machine. tests/metrics/chinese.jsonl: see the README beside it.
"""

import csv
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from sklearn.feature_extraction.text import TfidfVectorizer

from finetune.metrics import read_options
from finetune.metrics.texts import words

ROOT = Path(__file__).resolve().parents[1]


def row(gold: str, passages: dict[str, str] | None = None, choices: tuple[str, ...] = ()) -> Any:
    """What a metric asks of a row."""
    return SimpleNamespace(answer=gold, passages=passages or {}, choices=choices, source="rows.jsonl", line=7)


def task(metric: str, **options: Any) -> Any:
    """What a metric asks of a task."""
    return SimpleNamespace(metric=metric, metric_options=read_options(metric, options))


class Answered(NamedTuple):
    """A gold answer with its question and the answer of the nearest other row."""

    question: str
    gold: str
    answer: str


@functools.cache
def laws() -> tuple[dict[str, str], ...]:
    """300 articles of Chinese laws: law, department, article, text."""
    lines = (ROOT / "tests/metrics/chinese.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


@functools.cache
def orders() -> tuple[dict[str, str], ...]:
    """400 work orders with their labels."""
    with (ROOT / "data/maintenance/work_orders.csv").open(encoding="utf-8", newline="") as file:
        return tuple(row for row in csv.DictReader(file) if row["labels"] in "123")[:400]


@functools.cache
def articles() -> tuple[dict[str, str], ...]:
    """Articles of a constitution: number, title, text."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup((ROOT / "data/legal/constitution_of_india.html").read_text(encoding="utf-8"), "html.parser")
    found = re.findall(r"^Article (\d+[A-Z]*)\. ([^\n]+)\n+Subject:[^\n]+\n+((?:(?!^Article \d)[^\n]*\n)+)",
                       page.get_text("\n"), re.MULTILINE)  # fmt: skip
    return tuple({"number": number, "title": title, "text": text.strip()} for number, title, text in found)


def nearest(questions: list[str], golds: list[str]) -> list[Answered]:
    features = TfidfVectorizer(analyzer=words, sublinear_tf=True).fit_transform(questions)
    alike = (features @ features.T).toarray()
    alike[range(len(golds)), range(len(golds))] = -1.0
    return [
        Answered(q, gold, golds[int(at)]) for q, gold, at in zip(questions, golds, alike.argmax(axis=1), strict=True)
    ]


@functools.cache
def english() -> tuple[Answered, ...]:
    rows = articles()
    return tuple(nearest([row["text"] for row in rows], [row["title"] for row in rows]))


@functools.cache
def chinese() -> tuple[Answered, ...]:
    """The text of an article against that of the article most like it."""
    texts = [row["text"] for row in laws()]
    return tuple(nearest(texts, texts))
