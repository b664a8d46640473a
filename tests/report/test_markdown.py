"""REPORT.md: the same numbers as report.json, and nothing of the evaluation rows."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from finetune.report import markdown
from tests.report.synthetic_facts import make_facts

_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e-?\d+)?")


def numbers(value: Any) -> Iterator[float]:
    """Every number of a JSON value; the length of a list counts as one (how many near ties there were)."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        yield float(len(value))
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def spelled(text: str) -> list[str]:
    """The numbers of a text as Python would write them."""
    text = re.sub(r"\u00a0×\u00a010([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda found: "e" + found[1].translate(_RAISED), text)
    return _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text.replace("−", "-")))


def stands_in(word: str, known: list[float]) -> bool:
    """Is `word` one of `known` (or that times 100) rounded to the digits shown?"""
    digits, _, power = word.partition("e")
    half = 0.5000001 * 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return any(abs(scale * value - float(word)) <= half for value in known for scale in (1.0, 100.0))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("gate", ["pass", "fail", "not_measured"])
def test_every_number_stands_in_the_facts(language: str, gate: str) -> None:
    facts = json.loads(json.dumps(make_facts(language, gate=gate, accepted=gate == "fail")))
    text = markdown.render(facts)
    # Names and versions are quoted as they are, the sentences of the verdict are facts themselves.
    quoted = ("recipe", "title", "model", "verdict", "environment", "command", "export")
    for quote in sorted(strings([facts[name] for name in quoted]), key=len, reverse=True):
        text = text.replace(quote, "")
    for name in ("float32", "w4a16", "w8a8"):
        text = text.replace(name, "")
    for quote in strings([row["dropped"] | {"": list(row["dropped"])} for row in facts["ledger"]]):
        text = text.replace(quote, "")
    known = [*numbers({key: facts[key] for key in facts if key not in ("samples", "config")}), 1.0]
    found = spelled(text)
    assert len(found) > 80
    assert [word for word in found if not stands_in(word, known)] == []


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
    assert "w4a16 is not in the bundle: it loses 0.0620 of title" in markdown.render(facts)
    assert "w8a8 is not" not in markdown.render(facts)
    del facts["export"]
    assert "Quantised" not in markdown.render(facts)
