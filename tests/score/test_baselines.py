"""Baselines: what a language model has to beat must itself be right."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from real_rows import row, task
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from finetune.metrics import METRICS, score
from finetune.metrics.texts import words
from finetune.score.baselines import _CLASSES, linear, majority, nearest

LABEL: Any = task("label_accuracy")
ROUGE: Any = task("rouge_l")
PROMPTS = [f"the {colour} {thing} broke" for colour in ("red", "green", "blue") for thing in ("pump", "hose", "belt")]


def test_majority_is_the_most_frequent_answer_and_of_equals_the_alphabetically_first() -> None:
    assert majority(list(map(row, "bacb")), LABEL) == "b"
    assert majority(list(map(row, "cab")), LABEL) == "a"


def test_no_constant_answer_beats_majority_on_the_training_rows() -> None:
    answers = ["right to trial", "right to vote", "right to trial by jury", "power of congress", "power of congress"]
    best = majority(list(map(row, answers)), ROUGE)
    totals = {answer: sum(score(answer, row(gold), ROUGE) for gold in answers) for answer in answers}
    assert totals[best] == max(totals.values())
    assert best != "power of congress", "the most frequent answer is not the best constant here"


def test_linear_puts_fields_together_that_no_training_row_has() -> None:
    rows = [(prompt, prompt.split()) for prompt in PROMPTS]
    answers = [json.dumps({"colour": split[1], "thing": split[2]}) for _, split in rows]
    known = [index for index in range(9) if index != 4]
    asked = linear([PROMPTS[i] for i in known], [answers[i] for i in known], [PROMPTS[4]], seed=0)
    assert json.loads(asked[0]) == {"colour": "green", "thing": "hose"}


def test_linear_learns_labels_and_answers_a_single_class_without_complaint() -> None:
    labels = [prompt.split()[2] for prompt in PROMPTS]
    assert linear(PROMPTS, labels, ["a purple belt broke", "hose!"], seed=0) == ["belt", "hose"]
    assert linear(PROMPTS[:2], ["same", "same"], PROMPTS[3:5], seed=0) == ["same", "same"]


def test_answers_that_hardly_repeat_are_no_classes_without_number() -> None:
    """Memory grew with the square of the rows: 1,200 rows of running text took 1.9 GB, 10,000 were too many."""
    prompts = [f"question {number}" for number in range(_CLASSES + 40)]
    answers = [f"answer {number:04}" for number in range(_CLASSES + 20)] + ["often"] * 20
    given = linear(prompts, answers, [*prompts[:3], *prompts[_CLASSES - 1 : _CLASSES + 20]], seed=0)
    assert given[:3] == answers[:3], "the most frequent answers, then the alphabetically first, are still told apart"
    assert not set(given[3:]) & set(answers[_CLASSES - 1 : _CLASSES + 20])


def test_many_questions_are_held_against_the_training_rows_block_by_block() -> None:
    prompts = [f"word{number} pump" for number in range(3000)]
    tracemalloc.start()
    try:
        found = nearest(prompts, prompts, prompts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == prompts
    assert peak < 50_000_000, "3,000 x 3,000 similarities alone are 72 MB"


def test_nearest_takes_the_row_of_highest_cosine_similarity() -> None:
    asked = ["blue pump", "the hose is green", "belt belt red"]
    answers = [str(number) for number in range(9)]
    vectors = TfidfVectorizer(
        tokenizer=words, lowercase=False, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True
    )
    known = vectors.fit_transform(PROMPTS)
    expected = np.argmax(cosine_similarity(vectors.transform(asked), known), axis=1)
    assert nearest(PROMPTS, answers, asked) == [str(row) for row in expected]


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_has_all_three_baselines_and_majority_is_its_best_constant(metric: str) -> None:
    golds = {
        "numeric": ["12", "13", "12", "900"],
        "abstention": ["none", "left", "none", "right"],
        "flag_accuracy": ["ok", "fraud", "error", "ok"],
        "multiple_choice": list("ABBA"),
        "entity_f1": ['[{"type": "t", "text": "a"}]', "[]"] * 2,
        "citation": ['{"source": "s", "quote": "in this passage"}'] * 3 + ['{"source": "s", "quote": "and no other"}'],
    }.get(metric, ['{"a": "x", "b": "y"}', '{"a": "x", "b": "z"}', '{"a": "x", "b": "y"}', '{"a": "w", "b": "y"}'])
    options: dict[str, Any] = {
        "abstention": {"phrases": ["none"]}, "flag_accuracy": {"clean": ["ok"], "flagged": ["fraud", "error"]},
    }.get(metric, {})  # fmt: skip
    asked = task(metric, **options)
    rows = [row(gold, {"s": "in this passage and no other"}, ("A", "B")) for gold in golds]
    best = majority(rows, asked)
    worth = {gold: sum(score(gold, one, asked) for one in rows) for gold in golds}
    assert worth[best] == max(worth.values())
    for answers in (linear(PROMPTS[:4], golds, PROMPTS[4:6], seed=0), nearest(PROMPTS[:4], golds, PROMPTS[4:6])):
        assert all(0.0 <= score(answer, rows[0], asked) <= 1.0 for answer in answers)
        assert len(answers) == 2


def test_baselines_read_chinese() -> None:
    prompts = ["公司的设立与登记", "婚姻关系的解除", "公司股东的权利", "婚姻家庭的财产"]
    assert linear(prompts, ["公司", "婚姻", "公司", "婚姻"], ["股东设立公司"], seed=0) == ["公司"]
    assert nearest(prompts, ["a", "b", "c", "d"], ["家庭财产"]) == ["d"]
