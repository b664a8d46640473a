"""Metrics against what their docstrings promise: what is forgiven, what is not, and what a recipe may ask for."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_rows import row, task

from finetune.checks import check
from finetune.config import load
from finetune.errors import RecipeError
from finetune.metrics import METRICS, details, gold_problem, metric, ratios, score
from finetune.metrics.texts import words
from finetune.score.baselines import linear, majority, nearest

TEXT = st.text(alphabet="ab Cd1-.,é'\n中文法", max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, min_size=1, max_size=3)
FLAGS = {"clean": ["no issue"], "flagged": ["issue", "fraud"]}
PLACE = ["recipe=maintenance", "model=smollm2_135m", "machine=cpu"]


def grade(metric: str, answer: str, gold: str, **options: Any) -> float:
    return score(answer, row(gold), task(metric, **options))


def test_words_of_mixed_text_are_latin_words_and_single_characters() -> None:
    assert words("根据《公司法》Article 21, naïve_x") == ["根", "据", "公", "司", "法", "article", "21", "naïve", "x"]


def test_a_label_may_differ_in_case_white_space_and_one_full_stop_only() -> None:
    assert grade("label_accuracy", " Left\n  TRACK. ", "left track") == 1.0
    assert grade("label_accuracy", "左侧。", "左侧") == 1.0
    assert grade("label_accuracy", "It is the left track", "left track") == 0.0
    assert grade("label_accuracy", "left track..", "left track") == 0.0
    assert grade("exact_match", "Left track", "left track") == 0.0
    assert grade("exact_match", "\nleft track ", "left track") == 1.0


@given(OBJECTS, st.booleans(), st.integers(0, 4))
def test_json_is_exact_whatever_the_order_of_keys_and_white_space(
    value: dict[str, Any], sort: bool, indent: int
) -> None:
    turned = dict(reversed(value.items()))
    answer, gold = json.dumps(turned, sort_keys=sort, indent=indent or None), json.dumps(value)
    assert grade("json_exact", f"\n{answer} ", gold) == grade("json_f1", answer, gold) == 1.0
    found = details([answer], [row(gold)], task("json_exact"))
    assert (found["valid"], found["fields"], found["field_f1"]) == (1.0, *[dict.fromkeys(value, 1.0)] * 2)


@given(OBJECTS, OBJECTS)
def test_json_is_exact_only_for_equal_objects(first: dict[str, Any], second: dict[str, Any]) -> None:
    # json.dumps with sorted keys is an independent spelling: equal text, equal value, types included.
    equal = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert grade("json_exact", json.dumps(first), json.dumps(second)) == float(equal)
    assert (grade("json_f1", json.dumps(first), json.dumps(second)) == 1.0) == equal


@pytest.mark.parametrize("answer", [
    "", "{}", "null", '["a"]', '{"a": 1', '```json\n{"a": "1"}\n```', 'Here it is: {"a": "1"}', '{"a": "1"} ',
    '{"a": 1}', '{"a": "1", "b": 2}', '{"a": "1", "a": "1"}', '{"a": NaN}', '{"a": true}', "[" * 100_000,
    '{"a": ' + "1" * 5000 + "}",  # a model that goes round in circles ended SCORE with a traceback, at every start
])  # fmt: skip
def test_what_is_not_the_gold_object_scores_nothing(answer: str) -> None:
    assert grade("json_exact", answer, '{"a": "1"}') == float(answer == '{"a": "1"} ')


def test_details_say_which_field_is_wrong() -> None:
    rows = [row('{"action": "replace", "place": "left"}')] * 2
    found = details(['{"action": "repair", "place": "left"}', "replace"], rows, task("json_exact"))
    assert found["valid"] == 0.5
    assert found["fields"] == {"action": 0.0, "place": 0.5}
    assert found["field_f1"] == {"action": 0.0, "place": pytest.approx(2 / 3)}


def test_names_that_only_the_corpus_knows_stand_in_no_figure_of_a_set() -> None:
    rows = [row("Ada's ward"), row("ward 2")]
    assert "ward" not in json.dumps(details(["Ada's ward", "x"], rows, task("label_accuracy")))
    entity = '[{"type": "Ada", "text": "Ada"}]'
    assert "Ada" not in json.dumps(details([entity], [row(entity)], task("entity_f1")))
    told = details(["WARD 2.", "Ada's ward"], [row("ward 2")] * 2, task("label_accuracy", labels=["Ward 1", "Ward 2"]))
    assert told["confusion"] == [
        {"gold": "Ward 2", "answered": "(other)", "n": 1},
        {"gold": "Ward 2", "answered": "Ward 2", "n": 1},
    ]


GOLD = {
    "json_exact": '{"a": "法"}', "json_f1": '{"a": "法"}', "entity_f1": '[{"type": "law", "text": "民法典"}]',
    "citation": '{"source": "A", "quote": "a word or two"}', "numeric": "-1,200.5 USD", "abstention": "Not in the text",
    "flag_accuracy": "fraud", "multiple_choice": "B",
}  # fmt: skip
OPTIONS = {
    "numeric": {"thousands": ",", "units": ["USD"]}, "flag_accuracy": FLAGS,
    "abstention": {"phrases": ["not in the text"]}, "label_accuracy": {"labels": ["the left track", "down"]},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(METRICS))
@given(answer=TEXT | st.sampled_from(["[]", "{}", "[1]", "12", *GOLD.values()]))
def test_every_score_lies_between_0_and_1_and_gold_itself_scores_1(name: str, answer: str) -> None:
    one = row(GOLD.get(name, "the left track"), {"A": "There is a\nword or two."}, ("A", "B"))
    asked = task(name, **OPTIONS.get(name, {}))
    assert gold_problem(one, asked) is None
    assert 0.0 <= score(answer, one, asked) <= 1.0
    assert score(one.answer, one, asked) == 1.0
    found = details([answer, one.answer], [one, one], asked)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name_, parts in ratios([answer, one.answer], [one, one], asked).items():
        assert len(parts) == 2
        assert all(0.0 <= part[0] <= part[1] for part in parts), name_


@pytest.mark.parametrize(("name", "gold"), [
    ("json_exact", "[1]"), ("entity_f1", '{"type": "a"}'), ("entity_f1", '[{"type": "a"}]'), ("numeric", "about 5"),
    ("numeric", "1,2345"), ("flag_accuracy", "perhaps"), ("multiple_choice", "C"),
    ("label_accuracy", "up"),
    ("citation", '{"source": "A", "quote": "something else"}'), ("citation", '{"source": "A", "quote": "a word"}'),
])  # fmt: skip
def test_a_gold_answer_that_cannot_be_scored_is_told(name: str, gold: str) -> None:
    assert gold_problem(row(gold, {"A": "a word or two"}, ("A", "B")), task(name, **OPTIONS.get(name, {})))


@pytest.mark.parametrize(("answer", "right"), [
    ("1,200 USD", 1), ("1200 USD", 1), ("USD 1,200.00", 1), ("+1200USD", 1), ("1,211.9 USD", 1), ("1,212 USD", 1),
    ("1,212.01 USD", 0), ("1200", 0), ("1200 EUR", 0), ("12,00 USD", 0), ("1,2000 USD", 0), ("1.200,0 USD", 0),
    ("-1200 USD", 0), ("1.2e3 USD", 0), ("(1200) USD", 0), ("１２００ USD", 0), ("一千二百 USD", 0), ("", 0),
    ("1200 usd", 0), ("about 1200 USD", 0),
])  # fmt: skip
def test_a_number_is_strict_in_its_form_and_exact_at_its_tolerance(answer: str, right: int) -> None:
    options = {"relative": 0.01, "thousands": ",", "units": ["USD", "EUR"]}
    assert grade("numeric", answer, "1,200 USD", **options) == right


def test_a_quote_is_held_against_the_passage_it_names() -> None:
    passages = {"第五条": "申请人应当\n如实提交材料。", "Article 6": "The fee is due within thirty days."}
    gold = row('{"source": "第五条", "quote": "申请人应当如实提交材料"}', passages)
    cases = {
        '{"source": "第五条", "quote": "应当如实提交材料。", "answer": "yes"}': 1.0,
        '[{"source": "第五条", "quote": "申请人应当如实提交"}, {"source": "第五条", "quote": "due within"}]': 0.5,
        '{"source": "第六条", "quote": "申请人应当如实提交材料"}': 0.0,
        '{"source": "第五条", "quote": "申请人"}': 0.0,
        "申请人应当如实提交材料": 0.0,
        "[]": 0.0,
    }
    assert {answer: score(answer, gold, task("citation")) for answer in cases} == cases
    found = details(list(cases), [gold] * 6, task("citation"))
    assert (found["found"], found["elsewhere"], found["invented"]) == (2 / 5, 2 / 5, 1 / 5)
    assert (found["same_sources"], found["unreadable"]) == (3 / 6, 1 / 6)
    assert score("[]", row("[]", passages), task("citation")) == 1.0


def test_an_answer_where_there_is_none_and_none_where_there_is_one_both_score_nothing() -> None:
    options = {"phrases": ["Not in the text", "文中未提及"], "otherwise": "rouge_l"}
    assert grade("abstention", "文中未提及。", "Not in the text", **options) == 1.0
    assert grade("abstention", "NOT in  the text.", "thirty days", **options) == 0.0
    assert grade("abstention", "thirty days", "Not in the text", **options) == 0.0
    assert grade("abstention", "thirty", "thirty days", **options) == pytest.approx(2 / 3)
    found = details(["thirty days"], [row("thirty days")], task("abstention", **options))
    assert (found["precision"], found["recall"], found["answered"]) == (None, None, 1.0)


def test_an_unreadable_judgement_is_neither_an_alarm_nor_a_catch() -> None:
    rows = [row("no issue"), row("no issue"), row("fraud"), row("issue")]
    answers = ["I am not sure", "Fraud.", "issue", "I am not sure"]
    found = details(answers, rows, task("flag_accuracy", **FLAGS))
    assert found == {"false_positive_rate": 0.5, "recall": 0.5, "precision": 0.5, "unreadable": 0.5}
    assert [score(a, r, task("flag_accuracy", **FLAGS)) for a, r in zip(answers, rows, strict=True)] == [0, 0, 1, 0]


def problems(*words: str) -> list[str]:
    try:
        return [str(problem) for problem in check(load([*PLACE, *words]))]
    except RecipeError as error:
        return [str(problem) for problem in error.problems]


def test_metrics_and_their_options_are_checked_with_the_recipe_all_at_once() -> None:
    found = problems(
        "tasks.fields.metric=jsonexact", "tasks.place.metric=numeric",
        "tasks.place.metric_options={relativ: 1, absolute: -1, decimal: ';'}",
    )  # fmt: skip
    assert len(found) == 4
    assert "did you mean json_exact?" in found[0]
    assert "tasks.place.metric_options.relativ=1: is not an option of numeric" in "\n".join(found)
    assert problems("tasks.place.metric=abstention")[0].startswith("tasks.place.metric_options.phrases: must be given")
    nested = ["tasks.place.metric=abstention", "tasks.place.metric_options={phrases: [x], otherwise: flag_accuracy}"]
    assert "scores the rows that have an answer" in problems(*nested)[0]
    assert "two different characters" in problems(
        "tasks.place.metric=numeric", "tasks.place.metric_options={thousands: '.'}"
    )[0]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), [
    (["metric=citation"], "looks at passages, which this task does not give"),
    (["metric=multiple_choice"], "looks at choices"),
    (["metric=json_f1"], "looks at answer_json"),
    (["choices=[a, b]"], "is not looked at by label_accuracy: drop tasks.place.choices, or metric: multiple_choice"),
    (["passages={a: '{text}'}"], "is not looked at by label_accuracy: drop tasks.place.passages, or metric: citation"),
    (["metric=citation", "passages={a: '{text'}"], "has a single brace"),
])  # fmt: skip
def test_a_metric_and_what_it_looks_at_go_together(words: list[str], expected: str) -> None:
    found = problems(*(f"tasks.place.{word}" for word in words))
    assert any(expected in problem for problem in found), found


def test_what_is_asked_by_likelihood_is_neither_thought_about_nor_quantised() -> None:
    chosen = ["tasks.place.metric=multiple_choice", "tasks.place.choices=[A, '{location}']"]
    assert problems(*chosen) == []
    thought = problems(*chosen, "tasks.place.reasoning='{text}'")
    assert any("asks how likely each option is at once" in problem for problem in thought)
    assert any("their loss would not be known" in problem for problem in problems(*chosen, "export=[w4a16]"))


def test_a_new_metric_is_one_decorated_function() -> None:
    @metric("same_length")
    def same_length(answer: str, row: Any, options: Any) -> float:
        return float(len(answer) == len(row.answer))

    try:
        recipe = load([*PLACE, "tasks.place.metric=same_length"])
        assert check(recipe) == []
        place = recipe.tasks["place"]
        assert score("left", row("loft"), place) == 1.0
        assert details(["left"], [row("loft")], place) == {}
        rows = [row("left"), row("loft"), row("right")]
        assert majority(rows, place) == "left"
        assert len(linear(["a b", "c d"], ["x", "y"], ["a"], seed=0)) == len(nearest(["a b"], ["x"], ["a"])) == 1
        assert "did you mean same_length?" in problems("tasks.place.metric=same_lenght")[0]
    finally:
        del METRICS["same_length"]


@pytest.mark.parametrize(("given", "said"), [
    (float("nan"), "nan"), (None, "None"), (2.0, "2.0"), (-0.1, "-0.1"), (float("inf"), "inf"), ("left", "a str"),
])  # fmt: skip
def test_a_metric_that_gives_no_number_from_0_to_1_is_named_with_its_row(given: Any, said: str) -> None:
    @metric("broken", ratios=lambda *_: {"rate": (given, 1.0)})
    def broken(answer: str, row: Any, options: Any) -> Any:
        return given

    try:
        with pytest.raises(ValueError, match=re.escape(f"metric broken gave {said} for the row rows.jsonl:7: a score")):
            grade("broken", "left", "left")
        if given not in (2.0, -0.1):
            with pytest.raises(ValueError, match=f"metric broken gave {said} .* a finite number"):
                details(["left"], [row("left")], task("broken"))
    finally:
        del METRICS["broken"]


def test_a_mean_that_rounding_lifts_above_1_is_a_score() -> None:
    @metric("rounded")
    def rounded(answer: str, row: Any, options: Any) -> float:
        return 1.0000000000000002

    try:
        assert grade("rounded", "left", "left") == pytest.approx(1.0)
    finally:
        del METRICS["rounded"]
