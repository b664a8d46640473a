"""Rows in a known form become conversations without code, and what is not certain says what to type."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.checks import check
from finetune.checks.forms import recognised
from finetune.config import load
from finetune.config.data import Source
from finetune.corpus.conversations import unify
from finetune.corpus.read import BadInput, SourceFile, pieces, rows
from finetune.errors import RecipeError
from tests.corpus.conftest import orders

ASKED, SAID = {"role": "user", "content": "Which unit?"}, {"role": "assistant", "content": "Unit 7."}
BRIEF = {"role": "system", "content": "Be brief."}
FORMS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "messages": ({"messages": [ASKED, SAID]}, [ASKED, SAID]),
    "messages called conversations": ({"conversations": [ASKED, SAID], "id": 1}, [ASKED, SAID]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Which unit?"}, {"from": "gpt", "value": "Unit 7."}]},
        [ASKED, SAID],
    ),
    "sharegpt with a system column": (
        {"conversations": [{"from": "human", "value": "Which unit?"}, {"from": "gpt", "value": "Unit 7."}],
         "system": "Be brief."},
        [BRIEF, ASKED, SAID],
    ),
    "alpaca": ({"instruction": "Which unit?", "input": "", "output": "Unit 7."}, [ASKED, SAID]),
    "alpaca with input": (
        {"instruction": "Which", "input": "unit?", "output": "Unit 7.", "system": "Be brief."},
        [BRIEF, {"role": "user", "content": "Which\n\nunit?"}, SAID],
    ),
    "alpaca with a history": (
        {"instruction": "Which unit?", "output": "Unit 7.", "history": [["Hello", "Good day"]]},
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}, ASKED, SAID],
    ),
    "prompt": ({"prompt": "Which unit?", "completion": "Unit 7."}, [ASKED, SAID]),
    "prompt as turns": ({"prompt": [BRIEF, ASKED], "completion": [SAID]}, [BRIEF, ASKED, SAID]),
    "preference": ({"prompt": "Which unit?", "chosen": "Unit 7.", "rejected": "No."}, [ASKED, SAID]),
    "preference as turns": (
        {"prompt": "Which unit?", "chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "No."}]},
        [ASKED, SAID],
    ),
}  # fmt: skip


def read(tmp_path: Path, row: dict[str, Any], form: Any = "auto") -> tuple[list[dict[str, str]], list[BadInput]]:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False))
    source, bad = Source(path="a.jsonl", form=form), list[BadInput]()
    (part,) = pieces(SourceFile("a.jsonl", path), source, "talks")
    return list(rows(part, source, "talks", bad)), bad


@pytest.mark.parametrize("name", FORMS)
def test_a_known_form_is_recognised_and_becomes_messages(name: str, tmp_path: Path) -> None:
    given, expected = FORMS[name]
    for form in ("auto", name.split()[0]):
        ((row,), bad) = read(tmp_path, given, form)
        assert not bad
        assert json.loads(unify(row, "messages", None, ("plain",))["messages"]) == expected
    if name.startswith("preference"):
        assert row["rejected"] == "No."


SAYING = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(SAYING, SAYING), min_size=1, max_size=3), st.sampled_from(["", "Be brief.", "请简短。"]))
def test_one_conversation_is_the_same_in_every_form(pairs: list[tuple[str, str]], system: str) -> None:
    turns = [turn for asked, said in pairs for turn in ({**ASKED, "content": asked}, {**SAID, "content": said})]
    told = [{"role": "system", "content": system}] if system else []
    shared = [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]} for turn in turns]
    written: dict[str, dict[str, Any]] = {
        "messages": {"messages": [*told, *turns]},
        "sharegpt": {"conversations": shared, "system": system},
        "alpaca": {"instruction": pairs[-1][0], "output": pairs[-1][1], "history": pairs[:-1], "system": system},
        "prompt": {"prompt": [*told, *turns[:-1]], "completion": turns[-1:]},
        "preference": {"chosen": [*told, *turns], "rejected": [*told, *turns[:-1], {**SAID, "content": "No."}]},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, row in written.items():
            for form in ("auto", name):
                (found,), bad = read(Path(folder), row, form)
                assert not bad
                assert json.loads(unify(found, "messages", None, ("plain",))["messages"]) == [*told, *turns], name


@pytest.mark.parametrize(
    ("given", "form", "said"),
    [
        ({"question": "a", "reply": "b"}, "auto", ("fits no form", "drop sources.talks.form")),
        ({"messages": [ASKED, SAID], "chosen": "a", "rejected": "b"}, "auto", ("messages and pref", "form=messages")),
        ({"instruction": "a"}, "alpaca", ("needs the column output", "correct sources.talks.form")),
        ({"text": "a"}, "sharegpt", ("needs the column messages or", "correct sources.talks.form")),
        ({"chosen": "a", "rejected": "b"}, "auto", ("holds no prompt", "add the column prompt")),
        ({"chosen": [ASKED, SAID], "rejected": [BRIEF, ASKED, SAID]}, "auto", ("no two answers", "same")),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "auto", ("history is no list", "write it so")),
    ],
)
def test_what_is_not_certain_says_what_to_type(given: Any, form: Any, said: tuple[str, str], tmp_path: Path) -> None:
    found, (wrong,) = read(tmp_path, given, form)
    assert not found
    assert (wrong.reason, wrong.line) == ("uncertain form", 1)
    assert said[0] in wrong.problem.rule
    assert said[1] in wrong.problem.fix


def words(tmp_path: Path, row: dict[str, Any]) -> list[str]:
    (tmp_path / "talks.jsonl").write_text(json.dumps(row) + "\n")
    talks = f"+sources.talks={{path: {tmp_path}/talks.jsonl, form: auto}}"
    return ["recipe=legal", talks, "+tasks.talk={title: Talk, source: talks, metric: exact_match}"]


def test_a_task_that_names_only_a_source_takes_its_conversations(tmp_path: Path) -> None:
    better = "+preferences.better={source: talks}"
    recipe = load([*words(tmp_path, FORMS["preference"][0]), better])
    assert recipe.tasks["talk"].messages == "messages"
    assert (recipe.preferences["better"].messages, recipe.preferences["better"].rejected) == ("messages", "{rejected}")
    assert not [problem for problem in check(recipe) if "talk" in problem.path or "better" in problem.path]
    (said,) = recognised(recipe)
    assert said.startswith("sources.talks: preferences, chosen and rejected (recognised at ")
    assert said.endswith("talks.jsonl:1)")


def test_a_plan_stops_where_the_form_is_not_certain(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fits no form that is known"):
        list(recognised(load(words(tmp_path, {"question": "a"}))))


def test_a_plan_goes_on_behind_a_bad_first_row_where_preparing_does(tmp_path: Path) -> None:
    typed = [*words(tmp_path, {}), "prepare.bad_input=reject"]
    lines = ["{", json.dumps({"question": "a"}), json.dumps(FORMS["prompt"][0])]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    (said,) = recognised(load(typed))
    assert said.startswith("sources.talks: prompts with completions")
    assert said.endswith("talks.jsonl:3)")


def test_a_task_that_says_nothing_of_its_rows_is_told_of_forms(tmp_path: Path) -> None:
    recipe = load([*words(tmp_path, FORMS["prompt"][0]), "sources.talks.form=null"])
    assert any("sources.talks.form=auto" in problem.fix for problem in check(recipe))


def test_rows_in_a_form_train_what_templates_of_the_same_columns_train(corpus: Any) -> None:
    told = [{**row, "prompt": f"Order: {row['text']}", "completion": row["action"]} for row in orders(120)]
    corpus.write_rows("orders.jsonl", told)
    task = {"title": "Action", "source": "orders", "metric": "exact_match", "main": True}
    corpus.config["tasks"] = {"action": {**task, "prompt": "{prompt}", "answer": "{completion}"}}
    by_templates = corpus.prepare()
    corpus.config["tasks"] = {"action": {**task, "messages": "messages"}}
    corpus.config["sources"]["orders"]["form"] = "auto"
    by_form = corpus.prepare()
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl"):
        assert by_form.lines(name) == by_templates.lines(name)
    assert by_form.table("sft_train.parquet") == by_templates.table("sft_train.parquet")
