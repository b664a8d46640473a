"""Intervals: what they cover, what they agree with, and that they cannot be fooled by repeated rows."""

import numpy as np
import pytest
from scipy import stats

from finetune.score.statistics import mean, paired_difference


def coverage(simulations: int, *, groups: int, spread: float, seed: int, clustered: bool = True) -> float:
    """Share of intervals that hold the truth: 0/1 scores of two systems, rows of a group sharing their difficulty."""
    draw = np.random.default_rng(seed)
    held = 0
    for number in range(simulations):
        sizes = draw.integers(1, 5, groups)
        names = np.repeat(np.arange(groups), sizes).astype(str).tolist()
        # The true difference is 0.2 for every row whatever its group's difficulty.
        difficulty = np.repeat(draw.uniform(0.3 - spread, 0.3 + spread, groups), sizes)
        common = draw.random(groups).repeat(sizes)
        own = np.where(draw.random(len(names)) < 0.5, common, draw.random(len(names)))
        first, second = (own < difficulty + 0.2).astype(float), (own < difficulty).astype(float)
        kept = names if clustered else [str(row) for row in range(len(names))]
        found = paired_difference(first.tolist(), second.tolist(), kept, resamples=1000, seed=number)
        held += found.ci95[0] <= 0.2 <= found.ci95[1]
    return held / simulations


@pytest.mark.parametrize("groups", [15, 25, 60])
def test_95_percent_intervals_hold_the_truth_about_95_times_in_100(groups: int) -> None:
    # 1,500 simulations have a standard error of 0.56 points.
    assert 0.935 <= coverage(1500, groups=groups, spread=0.25, seed=groups) <= 0.965


def test_intervals_that_forget_the_groups_hold_the_truth_too_seldom() -> None:
    assert coverage(500, groups=40, spread=0.25, seed=9, clustered=False) < 0.93


def test_the_interval_is_near_students_for_rows_that_are_groups_of_their_own() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.5, 0.2, 200), draw.normal(0.4, 0.2, 200)
    names = [str(number) for number in range(200)]
    found = paired_difference(first.tolist(), second.tolist(), names, resamples=20_000, seed=0)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.difference == pytest.approx(float((first - second).mean()), abs=1e-12)
    assert found.ci95 == pytest.approx((expected.low, expected.high), abs=0.003)


def test_repeating_each_row_within_its_group_makes_nothing_surer() -> None:
    draw = np.random.default_rng(3)
    first, second = draw.random(40).tolist(), draw.random(40).tolist()
    names = [str(number) for number in range(40)]
    once = paired_difference(first, second, names, resamples=2000, seed=5)
    often = paired_difference(first * 7, second * 7, names * 7, resamples=2000, seed=5)
    assert often.ci95 == pytest.approx(once.ci95, abs=1e-12)
    assert (often.n, often.groups) == (280, 40)


def test_a_difference_is_turned_round_when_the_systems_are() -> None:
    draw = np.random.default_rng(4)
    first, second = draw.random(50).tolist(), draw.random(50).tolist()
    names = [str(number // 2) for number in range(50)]
    there = paired_difference(first, second, names, resamples=4000, seed=1)
    back = paired_difference(second, first, names, resamples=4000, seed=1)
    assert back.difference == pytest.approx(-there.difference)
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]), abs=0.005)


def test_one_group_tells_nothing_and_equal_systems_differ_by_nothing() -> None:
    assert paired_difference([1.0, 1.0], [0.0, 0.0], ["a", "a"], resamples=1000, seed=0).ci95 == (-1.0, 1.0)
    same = paired_difference([0.3, 1.0, 0.0], [0.3, 1.0, 0.0], ["a", "b", "c"], resamples=1000, seed=0)
    assert (same.difference, same.ci95) == (0.0, (0.0, 0.0))


def test_memory_limits_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(number) for number in range(30)]
    scores = np.random.default_rng(1).random(30).tolist()
    whole = paired_difference(scores, [0.5] * 30, names, resamples=1000, seed=2)
    monkeypatch.setattr("finetune.score.statistics._CELLS", 100)
    assert paired_difference(scores, [0.5] * 30, names, resamples=1000, seed=2) == whole


def test_the_mean_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(0).random(1000).tolist()
    assert mean(values) == mean(sorted(values)) == mean(values[::-1])
