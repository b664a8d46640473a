"""The splitter deals groups by hash."""

import random

from hypothesis import given
from hypothesis import strategies as st

from finetune.config.prepare import Split
from finetune.corpus.split import choose, side_of


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
