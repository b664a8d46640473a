"""What a recipe says of its steps on texts can be done, or is said before any document is read."""

import hashlib

import pytest

from finetune import cli
from finetune.checks.steps import check_key
from finetune.config import load
from finetune.errors import RecipeError
from finetune.train import ready
from tests.checks.composed import SMALL, only, problems, recipe_with

GLOSSARY = {"file": "tags.csv", "code": "token", "words": "meaning", "columns": {"work_orders": ["text"]}}
TIME = {"columns": {"work_orders": "date"}, "valid_from": "2010-01-01", "test_from": "2011-01-01"}
CUT = {"prepare.length": {"policy": "split"}}


def test_a_recipe_with_every_step_has_no_problem() -> None:
    assert (
        problems(
            {
                "sources.handbook.layout": {"furniture": True, "hyphens": True, "lines": True},
                "prepare.repair": {"glossary": GLOSSARY},
                "prepare.filters": {"languages": ["en", "zh"], "repetition": 1.0, "boilerplate": 3},
                "prepare.split": {"time": TIME},
                "prepare.length": {"policy": "split"},
                "tasks.place.split_column": "text",
                "prepare.mix": {"weights": {"fields": 2.0, "place": 1.0}},
            }
        )
        == []
    )


CASES = {
    "layout of a table": ({"sources.work_orders.layout": {"lines": True}}, "sources.work_orders.layout", "no pages"),
    "no glossary": (
        {"prepare.repair": {"glossary": GLOSSARY | {"file": "x.csv"}}},
        "prepare.repair.glossary.file",
        "is not in",
    ),
    "glossary without repair": (
        {"prepare.repair": {"enabled": False, "glossary": GLOSSARY}},
        "prepare.repair.glossary",
        "which is off",
    ),
    "glossary of no source": (
        {"prepare.repair": {"glossary": GLOSSARY | {"columns": {"orders": ["text"]}}}},
        "prepare.repair.glossary.columns.orders",
        "not one of the sources",
    ),
    "glossary of nothing": (
        {"prepare.repair": {"glossary": GLOSSARY | {"columns": {}}}},
        "prepare.repair.glossary.columns",
        "no column",
    ),
    "unknown language": ({"prepare.filters": {"languages": ["en", "cn"]}}, "prepare.filters.languages", "no language"),
    "no language": ({"prepare.filters": {"languages": []}}, "prepare.filters.languages", "leaves no language"),
    "no date": (
        {"prepare.split": {"time": TIME | {"test_from": "1.1.11"}}},
        "prepare.split.time.test_from",
        "ISO 8601",
    ),
    "dates the wrong way": (
        {"prepare.split": {"time": TIME | {"test_from": "2009-01-01"}}},
        "prepare.split.time.test_from",
        "come after",
    ),
    "time of no source": (
        {"prepare.split": {"time": TIME | {"columns": {"orders": "date"}}}},
        "prepare.split.time.columns.orders",
        "sources",
    ),
    "time of nothing": (
        {"prepare.split": {"time": TIME | {"columns": {}}}},
        "prepare.split.time.columns",
        "no column with a time",
    ),
    "cut column not in the prompt": (
        CUT | {"tasks.place.split_column": "date"},
        "tasks.place.split_column",
        "column of the prompt",
    ),
    "cut column in the answer": (
        CUT | {"tasks.place.split_column": "text", "tasks.place.answer": "{text}"},
        "tasks.place.split_column",
        "part of the answer",
    ),
    "cut column without the policy": (
        {"tasks.place.split_column": "text"},
        "tasks.place.split_column",
        "only with prepare.length.policy",
    ),
    "nothing to cut": (CUT, "prepare.length.policy", "no task says"),
    "mix of an unknown task": (
        {"prepare.mix": {"weights": {"fields": 1, "place": 1, "places": 1}}},
        "prepare.mix.weights.places",
        "no task with",
    ),
    "mix that forgets a task": (
        {"prepare.mix": {"weights": {"fields": 1}}},
        "prepare.mix.weights",
        "every trained task",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_names_its_key(case: str) -> None:
    changes, path, rule = CASES[case]
    problem = only(changes)
    assert (problem.path, rule in problem.rule) == (path, True), problem


def test_two_ways_to_mix_exclude_each_other() -> None:
    changes = {"prepare.mix": {"weights": {"fields": 1, "place": 1}}, "prepare.think_share": 0.5}
    assert "cannot be had with" in {problem.path: problem.rule for problem in problems(changes)}["prepare.mix"]


KEY = "0123456789abcdef" * 4
FINGERPRINT = hashlib.sha256(KEY.encode()).hexdigest()


@pytest.mark.parametrize(
    ("given", "rule"),
    [(None, "is not set"), (KEY[::-1], "is another key"), (KEY[1:], "63 characters"), ("x" * 64, "64 hex digits"),
     (f"{KEY}\n", "65 characters")],
)  # fmt: skip
def test_a_key_for_personal_data_that_does_not_fit_is_told_with_the_plan(
    given: str | None, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told at the first row, behind an hour of reading or on a machine with GPUs that waited for it."""
    monkeypatch.delenv("FINETUNE_REDACT_KEY", raising=False)
    if given is not None:
        monkeypatch.setenv("FINETUNE_REDACT_KEY", given)
    words = ["recipe=maintenance", *SMALL, f"prepare.redact.key_sha256={FINGERPRINT}"]
    for command in ("plan", "prepare", "train"):
        with pytest.raises(RecipeError, match="export FINETUNE_REDACT_KEY=") as told:
            run(command, words)
        (problem,) = told.value.problems
        assert rule in problem.rule
        assert not given or given.strip() not in str(problem)


def run(command: str, words: list[str]) -> None:
    if command == "plan":
        cli._plan(cli._parser().parse_args(["plan", *words]))
    else:
        ready(words, elsewhere=command == "prepare")


def test_the_right_key_and_a_recipe_without_one_are_no_problem() -> None:
    recipe = recipe_with({"prepare.redact": {"key_sha256": FINGERPRINT, "scope": "corpus"}})
    assert list(check_key(recipe, {"FINETUNE_REDACT_KEY": KEY})) == []
    assert list(check_key(recipe_with({}), {})) == []


def test_a_recipe_that_holds_the_key_itself_is_told_so_and_the_key_is_not_repeated() -> None:
    recipe = recipe_with({"prepare.redact": {"key_sha256": KEY}})
    (problem,) = check_key(recipe, {"FINETUNE_REDACT_KEY": KEY})
    assert "is the key itself" in problem.rule
    assert KEY not in str(problem)


def test_a_fingerprint_of_another_length_is_told_with_what_makes_one() -> None:
    for wrong in (FINGERPRINT[:-1], FINGERPRINT.upper(), ""):
        with pytest.raises(RecipeError, match="sha256sum"):
            load(["recipe=maintenance", *SMALL, f"prepare.redact.key_sha256='{wrong}'"])
