"""Which rows every step sees."""

import random
from collections import Counter

import pytest

from finetune.order import filling, plan_order, steps_of

_DRAW = random.Random(1)
LENGTHS = [_DRAW.randrange(20, 200) for _ in range(100)]


def test_every_row_is_seen_once_before_any_is_seen_twice() -> None:
    order = plan_order(LENGTHS, batch_size=4, steps=25, seed=0)
    assert sorted(order) == list(range(100))


def test_a_step_and_a_half_epochs_sees_half_the_rows_twice() -> None:
    counts = Counter(plan_order(LENGTHS, batch_size=10, steps=15, seed=0))
    assert set(counts) == set(range(100))
    assert sorted(counts.values()) == [1] * 50 + [2] * 50


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    assert plan_order(LENGTHS, batch_size=8, steps=9, seed=3) == plan_order(LENGTHS, batch_size=8, steps=9, seed=3)
    assert plan_order(LENGTHS, batch_size=8, steps=9, seed=3) != plan_order(LENGTHS, batch_size=8, steps=9, seed=4)


def test_batches_hold_rows_of_like_length() -> None:
    order = plan_order(LENGTHS, batch_size=8, steps=24, seed=0)
    shuffled = [row for _ in range(2) for row in random.Random(0).sample(range(100), 96)]
    assert filling(LENGTHS, order, batch_size=8) > 0.85
    assert filling(LENGTHS, order, batch_size=8) > filling(LENGTHS, shuffled, batch_size=8) + 0.2


def test_lengths_of_successive_batches_are_mixed() -> None:
    order = plan_order(LENGTHS, batch_size=4, steps=25, seed=0)
    means = [sum(LENGTHS[row] for row in order[i : i + 4]) for i in range(0, 100, 4)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("rows", "epochs", "max_steps", "steps"),
    [(100, 1, None, 13), (100, 2.5, None, 32), (100, 1, 7, 7), (3, 1, None, 1)],
)
def test_steps_come_from_max_steps_or_from_epochs(rows: int, epochs: float, max_steps: int | None, steps: int) -> None:
    assert steps_of(rows, batch_size=8, epochs=epochs, max_steps=max_steps) == steps
