"""What is wrong with a built source is said before any document is read: path, value, rule, fix."""

import pytest

from finetune.errors import RecipeError
from tests.checks.composed import only, problems

TEACHER = {
    "source": "work_orders",
    "builder": "teacher",
    "endpoint": "http://10.0.0.5:8000#wise",
    "send_documents": True,
}
FIELDS = {"labels": {"part": ["Part"], "fault": ["Fault"]}}


def built(builder: str, **options) -> dict:
    return {"build.x": {"source": "handbook", "builder": builder, **options}}


@pytest.mark.parametrize(
    ("changes", "path", "rule", "fix"),
    [
        (
            built("heading") | {"build.x.source": "handbok"},
            "build.x.source",
            "not one of the sources",
            "did you mean handbook",
        ),
        (
            {"build.handbook": {"source": "handbook", "builder": "heading"}},
            "build.handbook",
            "source already",
            "handbook_built",
        ),
        (built("heading", document="{"), "build.x.document", "single brace", "{{"),
        (built("fields"), "build.x", "nowhere what to look for", "build.x.labels"),
        (built("fields", patterns={"a": "("}), "build.x.patterns.a", "no regular expression", "mend"),
        (
            built("fields", labels={"a": ["A"]}, patterns={"a": "x"}),
            "build.x.patterns.a",
            "by labels as well",
            "one of the",
        ),
        (built("definition", pattern="(?P<term>x)"), "build.x.pattern", "no group definition", "(?P<definition>"),
        (built("grounded_question", heading=None), "build.x.ask", "column of headings", "ask: [definition]"),
        (built("grounded_question", ask=["field"], **FIELDS), "build.x.ask", "no question names one", "questions"),
        (
            built("grounded_question", questions={"headng": "{heading}?"}),
            "build.x.questions.headng",
            "nothing",
            "heading",
        ),
        (
            built("grounded_question", questions={"heading": "What?"}),
            "build.x.questions.heading",
            "{heading}",
            "name it",
        ),
        (
            built("grounded_question", ask=["field"], questions={"fault": "What fault?"}, **FIELDS),
            "build.x.questions.fault",
            "which row",
            "name one",
        ),
        (
            {"build.x": TEACHER | {"send_documents": False}},
            "build.x.send_documents",
            "documents leave this machine",
            "true",
        ),
        ({"build.x": TEACHER | {"text": "story"}}, "build.x.prompt", "does not show the text", "name the column"),
        (
            {"build.x": TEACHER, "prepare.redact": {"email": "keep"}},
            "prepare.redact.email",
            "leave this machine",
            "redact.email=replace",
        ),
    ],
)
def test_each_rule_of_a_built_source_is_told_with_its_fix(changes, path, rule, fix) -> None:
    found = only(changes)
    assert found.path == path
    assert rule in found.rule
    assert fix in found.fix


def test_a_task_takes_a_built_source_by_its_columns() -> None:
    task = {"tasks.fields.source": "x", "tasks.fields.prompt": "{clause}", "tasks.fields.answer": "{answer}",
            "tasks.fields.answer_json": None, "tasks.fields.metric": "rouge_l", "tasks.fields.where": {}}  # fmt: skip
    assert problems(built("heading") | task) == []
    missing = problems(built("heading") | {"tasks.fields.source": "y"})
    assert [problem.path for problem in missing] == ["tasks.fields.source"]
    assert "x" in missing[0].fix


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (built("heding"), r"build\.x\.builder=heding: .*did you mean heading"),
        ({"build.x": {"source": "handbook"}}, r"build\.x\.builder: .*one of"),
        (built("heading", headng=None), r"build\.x\.headng.*did you mean heading"),
        (built("citation", passages=1), r"build\.x\.passages=1"),
        ({"build.x": TEACHER | {"endpoint": "http://10.0.0.5:8000"}}, r"build\.x\.endpoint.*#MODEL"),
    ],
)
def test_a_wrong_key_or_builder_is_named_as_it_was_written(changes, told) -> None:
    with pytest.raises(RecipeError, match=told):
        problems(changes)
