"""Metrics against independent libraries and against what their docstrings promise."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from finetune.score.metrics import METRICS, json_details, json_exact, label_accuracy, rouge_l, score, words

TASK: Any = SimpleNamespace(metric="rouge_l")
TEXT = st.text(alphabet="ab Cd1-.,é'\n中文法", max_size=30)
WORDS = st.lists(st.sampled_from(["the", "Pump", "left", "leaks", "oil,", "-", "3.5", "don't"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, min_size=1, max_size=3)


@given(WORDS.map(" ".join) | TEXT.filter(lambda t: t.isascii()), WORDS.map(" ".join))
def test_rouge_l_equals_googles_library(answer: str, gold: str) -> None:
    expected = RougeScorer(["rougeL"], use_stemmer=False).score(gold, answer)["rougeL"].fmeasure
    assert rouge_l(answer, gold, TASK) == pytest.approx(expected, abs=1e-12)


class Characters(Tokenizer):
    def tokenize(self, text: str) -> list[str]:
        return [character for character in text if "\u4e00" <= character <= "\u9fff"]


CHINESE = st.text("民法典第一条为了保护", min_size=1, max_size=20)


@given(CHINESE, CHINESE)
def test_rouge_l_of_chinese_counts_characters(answer: str, gold: str) -> None:
    scorer = RougeScorer(["rougeL"], tokenizer=Characters())
    assert rouge_l(answer, gold, TASK) == pytest.approx(scorer.score(gold, answer)["rougeL"].fmeasure, abs=1e-12)


def test_words_of_mixed_text_are_latin_words_and_single_characters() -> None:
    assert words("根据《公司法》Article 21, naïve_x") == ["根", "据", "公", "司", "法", "article", "21", "naïve", "x"]


@given(st.lists(st.sampled_from(["pump", "hose", "left track"]), min_size=1), st.randoms())
def test_label_accuracy_and_exact_match_equal_scikit_learns_accuracy(gold: list[str], chance: Any) -> None:
    given_ = [chance.choice(["pump", "hose", "left track"]) for _ in gold]
    expected = sklearn.metrics.accuracy_score(gold, given_)
    for name in ("label_accuracy", "exact_match"):
        own = [METRICS[name](answer, right, TASK) for answer, right in zip(given_, gold, strict=True)]
        assert sum(own) / len(own) == pytest.approx(expected)


def test_a_label_may_differ_in_case_white_space_and_one_full_stop_only() -> None:
    assert label_accuracy(" Left\n  TRACK. ", "left track", TASK) == 1.0
    assert label_accuracy("It is the left track", "left track", TASK) == 0.0
    assert label_accuracy("left track..", "left track", TASK) == 0.0
    assert METRICS["exact_match"]("Left track", "left track", TASK) == 0.0
    assert METRICS["exact_match"]("\nleft track ", "left track", TASK) == 1.0


@given(OBJECTS, st.booleans(), st.integers(0, 4))
def test_json_is_exact_whatever_the_order_of_keys_and_white_space(
    value: dict[str, Any], sort: bool, indent: int
) -> None:
    turned = dict(reversed(value.items()))
    answer = json.dumps(turned, sort_keys=sort, indent=indent or None)
    assert json_exact(f"\n{answer} ", json.dumps(value), TASK) == 1.0
    assert json_details(answer, json.dumps(value)) == (1.0, dict.fromkeys(value, 1.0))


@given(OBJECTS, OBJECTS)
def test_json_is_exact_only_for_equal_objects(first: dict[str, Any], second: dict[str, Any]) -> None:
    # json.dumps with sorted keys is an independent spelling: equal text, equal value, types included.
    equal = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert json_exact(json.dumps(first), json.dumps(second), TASK) == float(equal)


@pytest.mark.parametrize("answer", [
    "", "{}", "null", '["a"]', '{"a": 1', '```json\n{"a": "1"}\n```', 'Here it is: {"a": "1"}', '{"a": "1"} ',
    '{"a": 1}', '{"a": "1", "b": 2}', '{"a": "1", "a": "1"}', '{"a": NaN}', '{"a": true}', "[" * 100_000,
])  # fmt: skip
def test_what_is_not_the_gold_object_scores_nothing(answer: str) -> None:
    assert json_exact(answer, '{"a": "1"}', TASK) == float(answer == '{"a": "1"} ')


def test_details_say_which_field_is_wrong() -> None:
    gold = '{"action": "replace", "place": "left"}'
    assert json_details('{"action": "repair", "place": "left"}', gold) == (1.0, {"action": 0.0, "place": 1.0})
    assert json_details("replace", gold) == (0.0, {"action": 0.0, "place": 0.0})


@given(TEXT, TEXT, st.sampled_from(sorted(METRICS.keys() - {"json_exact"})))
def test_every_score_lies_between_0_and_1_and_gold_itself_scores_1(answer: str, gold: str, metric: str) -> None:
    task: Any = SimpleNamespace(metric=metric)
    assert 0.0 <= score(answer, gold, task) <= 1.0
    if words(gold) and gold.isascii():
        assert score(gold, gold, task) == 1.0
