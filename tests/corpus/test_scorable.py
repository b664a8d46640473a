"""What a metric needs of a row comes through PREPARE, and gold that it cannot score is told before any training."""

import json
from typing import Any

import pytest

from finetune.errors import RecipeError


def rows_of(corpus: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text(encoding="utf-8").splitlines()]


def test_gold_answers_that_the_metric_cannot_score_are_told_with_their_lines_and_not_their_text(corpus: Any) -> None:
    rows = rows_of(corpus)
    for row in rows:
        row["action"] = f"{row['order']} h"
    rows[3]["action"], rows[5]["action"] = "secret hours", "5 min"
    corpus.write_rows("orders.jsonl", rows)
    corpus.config["tasks"]["action"] |= {"metric": "numeric", "metric_options": {"units": ["h"]}}
    with pytest.raises(RecipeError) as told:
        corpus.prepare()
    assert [problem.path for problem in told.value.problems] == ["orders.jsonl:4", "orders.jsonl:6"]
    assert "tasks.action.metric=numeric cannot score this row's gold answer" in str(told.value)
    assert "secret" not in str(told.value)


def test_passages_and_choices_are_repaired_and_redacted_with_the_answer_that_quotes_them(corpus: Any) -> None:
    rows = rows_of(corpus)
    for row in rows:
        row["note"] = f"Call ada{row['order']}@example.org\u00a0before the order {row['order']} is closed."
        row["quote"] = f"Call ada{row['order']}@example.org before the order"
    corpus.write_rows("orders.jsonl", rows)
    task = corpus.config["tasks"]["action"]
    del task["answer"]
    task |= {"metric": "citation", "answer_json": {"source": "note {order}", "quote": "{quote}"}}
    task["passages"] = {"note {order}": "{note}"}
    made = corpus.prepare().lines("test.jsonl")
    assert made
    for row in made:
        number = json.loads(row["messages"][-1]["content"])["source"].removeprefix("note ")
        assert row["passages"] == {f"note {number}": f"Call [EMAIL_1] before the order {number} is closed."}

    task |= {"metric": "multiple_choice", "choices": ["{action}", " none "], "answer": "{action}", "passages": {}}
    del task["answer_json"]
    for row in corpus.prepare().lines("test.jsonl"):
        assert row["choices"] == [row["messages"][-1]["content"], "none"]
        assert "passages" not in row
