"""datasheet.json is what datasheet.schema.json says, and docs/corpus.md names every field of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from finetune.datasheet import page
from tests.datasheet.made import collected, shown
from tests.report.test_schema import described

SCHEMA = json.loads(Path(page.__file__).with_name("datasheet.schema.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parents[2]


def faults(sheet: Any) -> list[str]:
    found = Draft202012Validator(SCHEMA).iter_errors(json.loads(json.dumps(sheet)))
    return [f"{error.json_path}: {error.message}" for error in found]


def test_the_schema_is_one_and_says_of_every_field_what_it_is() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    fields = dict(described(SCHEMA))
    assert len(fields) > 50
    assert [name for name, field in fields.items() if not field.get("description")] == []


def test_what_is_written_and_what_is_shown_follow_the_schema() -> None:
    assert faults(collected()) == []
    assert faults(shown()) == []
    assert set(shown()) == set(SCHEMA["properties"]), "the fixture holds every field that there is"
    assert faults(page.permitted(shown(), "none")) == []


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda sheet: sheet.pop("ledger"), "$"),
        (lambda sheet: sheet["rows"].pop("test"), "$.rows"),
        (lambda sheet: sheet["samples"]["repair"][0].update(person="?"), "$.samples.repair[0]"),
        (lambda sheet: sheet["ledger"][0].update(rows_in=-1), "$.ledger[0].rows_in"),
        (lambda sheet: sheet.update(unheard_of=1), "$"),
    ],
)
def test_a_datasheet_that_lacks_or_adds_something_is_noticed(spoil: Any, where: str) -> None:
    sheet = shown()
    spoil(sheet)
    assert [fault.partition(":")[0] for fault in faults(sheet)] == [where]


def test_the_documentation_names_every_field() -> None:
    text = (ROOT / "docs" / "corpus.md").read_text(encoding="utf-8")
    assert [name for name in SCHEMA["properties"] if f"`{name}`" not in text] == []
