"""REPORT.md: the same numbers as report.json, and nothing of the evaluation rows."""

import json
import re

import pytest

from finetune.report import markdown, page
from tests.report.spelling import numbers, spelled, stands_in, strangers
from tests.report.synthetic_facts import make_facts


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("gate", ["pass", "fail", "not_measured"])
def test_every_number_stands_in_the_facts(language: str, gate: str) -> None:
    facts = json.loads(json.dumps(make_facts(language, gate=gate, accepted=gate == "fail")))
    unknown, looked_up = strangers(markdown.render(facts), facts)
    assert looked_up > 300
    assert unknown == []


def test_a_number_that_is_not_in_the_facts_is_noticed() -> None:
    known = list(numbers({"a": 0.3264, "b": [3.214e-6], "c": 12_480, "d": -0.0204}))
    right = spelled("0.326 3.21\u00a0×\u00a010⁻⁶ 12,480 −2.0 32.6")
    assert right == ["0.326", "3.21e-6", "12480", "-2.0", "32.6"]
    assert all(stands_in(word, known) for word in right)
    assert not any(stands_in(word, known) for word in ("0.327", "3.22e-6", "12481", "2.0", "33.6"))


def test_no_text_of_an_evaluation_row_is_in_it() -> None:
    facts = make_facts()
    text = markdown.render(facts)
    assert all(row["prompt"] not in text and row["gold"] not in text for row in facts["samples"])


def test_tables_survive_a_bar_in_a_name() -> None:
    facts = make_facts()
    facts["ledger"][0]["source"] = "a|b"
    line = next(line for line in markdown.render(facts).splitlines() if "a\\|b" in line)
    assert len(re.findall(r"(?<!\\)\|", line)) == 6


def test_who_accepted_a_failed_gate_is_named() -> None:
    text = markdown.render(make_facts(gate="fail", accepted=True))
    assert "R. Okafor, model risk" in text
    assert "| fail |" in text


def test_a_vetoed_quantised_model_is_named_with_its_number_and_none_is_told_of_where_none_was_made() -> None:
    facts = make_facts()
    assert "4 bit is not in the bundle: it loses 0.0620 of title" in markdown.render(facts)
    assert "8 bit is not" not in markdown.render(facts)
    del facts["export"]
    assert "Quantised" not in markdown.render(facts)


@pytest.mark.parametrize(("language", "much", "little"), [
    ("en", "speeches (measured on 19,968 tokens, read 512 at a time) |",
     "glosses (measured on 200 tokens, read 200 at a time; so little text that the change is uncertain) |"),
    ("zh", "speeches (在 19,968 个词元上测得，每次读取 512 个) |",
     "glosses (在 200 个词元上测得，每次读取 200 个；文本过少，变化值并不可靠) |"),
])  # fmt: skip
def test_on_how_much_text_forgetting_was_measured_is_said(language: str, much: str, little: str) -> None:
    """A gate passed on one window of 200 tokens, and nobody was told."""
    facts = make_facts(language)
    told = markdown.render(facts)
    assert much in told
    assert little in told
    assert all(said.partition(" (")[2].removesuffix(") |") in page.render(facts) for said in (much, little))
