"""Repair keeps what was meant, and a ledger that does not add up cannot be written."""

import io
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.prepare import Filters
from finetune.corpus.build import fill
from finetune.corpus.clean import filter_reason, repair_text
from finetune.corpus.ledger import Ledger, Reject


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("The MÃ¼ller caseâ€™s end", "The Müller case’s end"),
        ("cafe\u0301", "café"),
        ("a\u00a0b\u3000c\u200bd\ufeff", "a b cd"),
        ("one  \r\ntwo\r\n\r\n\r\n\r\nthree", "one\ntwo\n\nthree"),
        ("a   b\n    indented   code", "a b\n    indented code"),
        ("合同法，第十二条（一）“约定”", "合同法，第十二条（一）“约定”"),
        ("“quoted” – it’s", "“quoted” – it’s"),
        ("R&amp;D <b> &lt;", "R&amp;D <b> &lt;"),
        ("x\x1b[31mred\x1b[0m", "xred"),
    ],
)
def test_text_is_repaired(broken: str, whole: str) -> None:
    assert repair_text(broken) == whole


def test_a_run_of_spaces_does_not_cost_its_square() -> None:
    begun = time.process_time()
    spaces = " " * 100_000
    assert repair_text(f"x\n{spaces}y") == f"x\n{spaces}y"
    assert repair_text(f"x\u00a0\n{spaces}\ny") == "x\n\ny"
    assert time.process_time() - begun < 2


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_repairing_twice_changes_nothing_more(text: str) -> None:
    once = repair_text(text)
    assert repair_text(once) == once


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abcXYZ019,.;:", min_size=1), min_size=1).map(" ".join))
def test_tidy_text_stays_as_it_is(text: str) -> None:
    assert repair_text(text) == text


def test_lengths_outside_the_filter_have_a_reason() -> None:
    filters = Filters(min_chars=2, max_chars=4)
    reasons = [filter_reason(["x" * (n - 1), "x"], filters) for n in (1, 2, 4, 5)]
    assert reasons == [("under min_chars", "1 characters"), None, None, ("over max_chars", "5 characters")]


def test_a_ledger_entry_that_does_not_add_up_is_our_mistake() -> None:
    reject = Reject("f", 1, "i", "step", "why")
    with pytest.raises(AssertionError):
        Ledger(io.StringIO()).record("step", "source", rows_in=3, rows_out=1, rejects=[reject])


@given(st.lists(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_every_row_is_kept_or_counted(rows: list[int], unwanted: set[int]) -> None:
    listed = io.StringIO()
    ledger = Ledger(listed)

    def judge(n: int) -> Reject | None:
        return Reject("f", n, str(n), "step", f"is {n}") if n in unwanted else None

    kept = list(ledger.keep("step", "s", rows, judge))
    (entry,) = ledger.entries
    assert kept == [n for n in rows if n not in unwanted]
    assert entry["rows_in"] == len(rows) == entry["rows_out"] + sum(entry["dropped"].values())
    rejects = [json.loads(line) for line in listed.getvalue().splitlines()]
    assert [reject["line"] for reject in rejects] == [n for n in rows if n in unwanted]


@given(st.text(), st.text())
def test_a_template_is_filled_with_any_text_unchanged(a: str, b: str) -> None:
    assert fill("<{a}|{{a}}|{b}>", {"a": a, "b": b}) == f"<{a}|{{a}}|{b}>"
