"""Duplicates: MinHash proposes, the real similarity decides, the best copy stays."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.corpus.dedup import bands, find_exact, find_near, jaccard, normalise, shingles

TEXT = "replaced the broken left bucket tooth after the shovel hit a rock in the north pit on monday morning"


def test_case_space_width_and_punctuation_make_no_difference() -> None:
    assert normalise("  Ｗork-Order:\tDONE!!") == normalise("work order done")
    assert [d.dropped for d in find_exact(["Work order: done", "other", "work order done!!"])] == [0]


def test_the_longest_copy_is_kept_and_of_equals_the_first() -> None:
    assert [(d.dropped, d.kept) for d in find_exact(["a b", "a b", "a  b!", "c"])] == [(0, 2), (1, 2)]


def test_an_edited_copy_is_near_and_another_text_is_not() -> None:
    edited = TEXT.replace("monday", "tuesday")
    (found,) = find_near([TEXT, edited, "grease line leaking at the boom pin, called the mechanic"], 0.8)
    assert {found.dropped, found.kept} == {0, 1}
    assert found.similarity == round(jaccard(shingles(TEXT), shingles(edited)), 4)


def test_near_duplicates_are_found_in_chinese_too() -> None:
    text = "当事人应当按照约定全面履行自己的义务,遵循诚实信用原则,根据合同的性质、目的和交易习惯履行通知等义务。"
    assert len(find_near([text, text.replace("按照", "依照"), "国家保护自然人的人身权利。"], 0.75)) == 1


def brute_force(texts: list[str], threshold: float) -> set[int]:
    sets = [shingles(text) for text in texts]
    kept: list[int] = []
    for index in sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i)):
        if all(jaccard(sets[index], sets[other]) < threshold for other in kept):
            kept.append(index)
    return set(range(len(texts))) - set(kept)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95])
def test_it_drops_what_comparing_every_pair_drops(threshold: float) -> None:
    draw = random.Random(int(threshold * 100))
    words = TEXT.split()
    texts = []
    for _ in range(300):
        copy = list(words)
        for _ in range(draw.randrange(6)):
            copy[draw.randrange(len(copy))] = draw.choice(words)
        texts.append(" ".join(copy))
    found = find_near(texts, threshold)
    expected = brute_force(texts, threshold)
    assert len(expected) > 20
    assert {d.dropped for d in found} == expected
    assert all(d.similarity >= threshold - 1e-4 for d in found)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab c", max_size=12), max_size=12), st.sampled_from([0.6, 0.85, 1.0]))
def test_what_stands_for_a_dropped_row_is_kept(texts: list[str], threshold: float) -> None:
    found = find_near(texts, threshold)
    dropped = {d.dropped for d in found}
    assert not dropped & {d.kept for d in found}
    assert found == find_near(texts, threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_nearly_never_missed(threshold: float) -> None:
    count = bands(threshold)
    assert 128 % count == 0
    assert 1 - (1 - threshold ** (128 // count)) ** count >= 0.999
