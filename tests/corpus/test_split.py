"""The splitter deals groups by hash, and the evaluation index finds what leaks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.prepare import Split
from finetune.corpus.split import EvaluationIndex, choose, ngrams, side_of, words

PASSAGE = (
    "the borrower shall repay the principal amount of the loan together with accrued interest in twelve equal monthly "
    "instalments beginning on the first day of march"
)


@given(st.text(), st.integers(0, 5), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_group_always_goes_to_the_same_side(group: str, seed: int, valid: float, test: float) -> None:
    split = Split(valid=valid, test=test)
    assert side_of(group, seed, split) == side_of(group, seed, split)


@given(st.text(), st.floats(0, 0.4), st.floats(0, 0.5))
def test_a_larger_test_share_only_adds_groups_to_the_test(group: str, small: float, more: float) -> None:
    if side_of(group, 0, Split(test=small)) == "test":
        assert side_of(group, 0, Split(test=small + more)) == "test"


def test_shares_come_out_as_asked() -> None:
    sides = [side_of(f"group {i}", 3, Split(valid=0.1, test=0.25)) for i in range(20_000)]
    assert abs(sides.count("test") / 20_000 - 0.25) < 0.01
    assert abs(sides.count("valid") / 20_000 - 0.10) < 0.01


def test_the_side_of_a_group_is_frozen() -> None:
    """A change here would move rows between train and test of every corpus that was ever prepared."""
    sides = "".join(side_of(f"patient {i}", 0, Split())[0] for i in range(24))
    assert sides == "tttttttvvttttvvtttttvttt"


@given(st.lists(st.text(), unique=True), st.integers(0, 20), st.randoms())
def test_a_choice_depends_on_no_order(ids: list[str], count: int, order: random.Random) -> None:
    chosen = choose(ids, count, 0, "x")
    shuffled = list(ids)
    order.shuffle(shuffled)
    assert choose(shuffled, count, 0, "x") == chosen
    assert len(chosen) == min(count, len(ids))
    assert choose(ids, max(0, count - 1), 0, "x") <= chosen


def edited(text: str, share: float) -> str:
    """Every n-th word replaced, so that `share` of the words differ."""
    step = round(1 / share)
    return " ".join("changed" if i % step == step - 1 else word for i, word in enumerate(text.split()))


@pytest.mark.parametrize(
    "leak",
    [
        PASSAGE,
        PASSAGE.upper(),
        PASSAGE.replace(" ", "  \n"),
        f"As agreed, {PASSAGE}; and so on.",
        PASSAGE.replace("the ", "The, "),
    ],
    ids=["verbatim", "recased", "respaced", "embedded", "punctuated"],
)
def test_a_leak_is_found_however_it_is_dressed(leak: str) -> None:
    index = EvaluationIndex(13)
    index.add("test/1", [PASSAGE], [PASSAGE])
    hit = index.find([leak], [leak])
    assert hit is not None
    assert hit[0] == "test/1"


def test_ten_per_cent_of_edited_words_are_seen_through_with_shorter_ngrams() -> None:
    index = EvaluationIndex(8)
    index.add("test/1", [PASSAGE])
    assert index.find([edited(PASSAGE, 0.1)]) is not None


def test_a_short_row_leaks_by_its_whole_prompt() -> None:
    index = EvaluationIndex(13)
    index.add("test/1", ["bucket broken"], ["bucket broken"])
    assert index.find(["Bucket  BROKEN"], ["Bucket  BROKEN"]) == ("test/1", "the whole prompt")
    assert index.find(["bucket broken again"], ["bucket broken again"]) is None


def test_an_unrelated_text_passes() -> None:
    index = EvaluationIndex(13)
    index.add("test/1", [PASSAGE], [PASSAGE])
    assert index.find(["the tenant shall keep the premises in good repair at all times"] * 2, ["x"]) is None


def test_chinese_counts_characters() -> None:
    assert words("第12条 合同法") == ["第", "12", "条", "合", "同", "法"]
    assert ("合", "同", "法") in ngrams("第12条 合同法", 3)
