"""report.json is what report.schema.json says, and docs/report.md names every field of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from finetune.report import facts as collecting
from tests.report.synthetic_facts import make_facts
from tests.report.test_facts import collect

SCHEMA = json.loads(Path(collecting.__file__).with_name("report.schema.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parents[2]


def faults(facts: Any) -> list[str]:
    found = Draft202012Validator(SCHEMA).iter_errors(json.loads(json.dumps(facts)))
    return [f"{error.json_path}: {error.message}" for error in found]


def described(schema: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in schema.get("properties", {}).items():
        yield f"{where}.{name}", inner
        yield from described(inner, f"{where}.{name}")
    for below in (schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", ())):
        if isinstance(below, dict):
            yield from described(below, where)


def test_the_schema_is_one_and_says_of_every_field_what_it_is() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    fields = dict(described(SCHEMA))
    assert len(fields) > 120
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_report_with_everything_in_it_follows_the_schema(language: str) -> None:
    facts = make_facts(language)
    assert faults(facts) == []
    assert set(facts) == set(SCHEMA["properties"]), "the fixture holds every field that there is"


@pytest.mark.parametrize("privacy", ["none", "redacted", "full"])
def test_what_is_collected_from_artifacts_follows_the_schema(tmp_path: Path, privacy: str) -> None:
    assert faults(collect(tmp_path, privacy)) == []


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda facts: facts.pop("lineage"), "$"),
        (lambda facts: facts["tasks"][0].pop("ci95"), "$.tasks[0]"),
        (lambda facts: facts["tasks"][0].update(ci95=[0.1]), "$.tasks[0].ci95"),
        (lambda facts: facts["gates"][0].update(status="ok"), "$.gates[0].status"),
        (lambda facts: facts["samples"][0].update(note="?"), "$.samples[0]"),
        (lambda facts: facts["context"]["rows"][0].update(right=-1), "$.context.rows[0].right"),
        (lambda facts: facts.update(unheard_of=1), "$"),
    ],
)
def test_a_report_that_lacks_or_adds_something_is_noticed(spoil: Any, where: str) -> None:
    facts = make_facts()
    spoil(facts)
    assert [fault.partition(":")[0] for fault in faults(facts)] == [where]


def test_the_documentation_names_every_field() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert [name for name in SCHEMA["properties"] if f"`{name}" not in text and f", `{name}`" not in text] == []
