"""Intervals: what they cover, what they agree with, and that they cannot be fooled by repeated rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.intervals.run import Scenario, draw_rows, simulate
from finetune.score.statistics import holm, interval, mean, paired_difference

INSPECT_AI = json.loads(Path(__file__).with_name("inspect_ai_errors.json").read_text(encoding="utf-8"))


def names_of(sizes: np.ndarray) -> list[str]:
    return np.repeat(np.arange(len(sizes)), sizes).astype(str).tolist()


@pytest.mark.parametrize(
    "case",
    [
        Scenario("0/1", 30, "1-7", 0.3, 0.5, 0.3, 0.45),
        Scenario("0/1", 60, "skewed", 0.6, 0.7, 0.1, 0.2),
        Scenario("continuous", 30, "4", 0.3, 0.7, 0.85, 0.93),
        Scenario("continuous", 60, "1", 0.0, 0.5, 0.4, 0.4),
    ],
    ids=lambda case: case.name,
)
def test_95_percent_intervals_hold_the_truth_about_95_times_in_100(case: Scenario) -> None:
    """The short form of benchmarks/intervals: 2,500 simulations have a standard error of 0.44 points."""
    assert 0.94 <= simulate(case, 2500, seed=3)["covered"] <= 0.96


def test_intervals_that_forget_the_groups_hold_the_truth_too_seldom() -> None:
    draw, held = np.random.default_rng(9), 0
    for _ in range(400):
        rows = draw_rows(Scenario("0/1", 40, "4", 0.6, 0.5, 0.3, 0.45), draw)
        alone = [str(row) for row in range(len(rows.groups))]
        found = paired_difference(rows.first.tolist(), rows.second.tolist(), alone)
        held += found.ci95[0] <= 0.15 <= found.ci95[1]
    assert held / 400 < 0.9


def test_standard_errors_are_those_of_inspect_ai() -> None:
    assert INSPECT_AI["made_by"].startswith("inspect_ai ")
    assert len(INSPECT_AI["cases"]) == 12
    for case in INSPECT_AI["cases"]:
        first, second, groups = case["first"], case["second"], case["groups"]
        ones, alone = [1.0] * len(first), [str(row) for row in range(len(first))]
        assert interval(first, ones, groups).standard_error == pytest.approx(case["of_first"], rel=0, abs=1e-9)
        assert interval(first, ones, alone).standard_error == pytest.approx(case["free"], rel=0, abs=1e-9)
        found = paired_difference(first, second, groups).standard_error
        assert found == pytest.approx(case["of_difference"], rel=0, abs=1e-9)


def test_rows_that_are_groups_of_their_own_have_students_interval_and_p() -> None:
    draw = np.random.default_rng(0)
    first = draw.uniform(0.2, 0.8, 200)
    second = first - draw.uniform(-0.2, 0.25, 200)  # flatter than normal: no degree of freedom is taken off for it
    found = paired_difference(first.tolist(), second.tolist(), [str(number) for number in range(200)])
    expected = stats.ttest_rel(first, second)
    assert found.difference == pytest.approx(float((first - second).mean()), abs=1e-12)
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-9)
    assert found.p == pytest.approx(float(expected.pvalue), abs=1e-9)


def test_spread_and_degrees_of_freedom_are_those_of_the_matrices_that_they_never_build() -> None:
    """CR2 by its definition (each group's residuals times the inverse root of I - H) and Satterthwaite's formula."""
    draw = np.random.default_rng(1)
    sizes = draw.integers(1, 9, 40)
    groups = names_of(sizes)
    x = np.clip(draw.normal(0.5, 0.1, 40).repeat(sizes) + draw.normal(0, 0.1, len(groups)), 0, 1)
    found = interval(x.tolist(), [1.0] * len(x), groups)
    place, n = np.array(groups).astype(int), len(groups)
    u, total = x - x.mean(), 0.0
    for g in range(40):
        values, vectors = np.linalg.eigh(np.eye(sizes[g]) - 1 / n)
        total += (vectors @ np.diag(values**-0.5) @ vectors.T @ u[place == g]).sum() ** 2
    variance = total / n**2

    sums = np.bincount(place, weights=u)
    rho = ((sums**2).sum() - (u**2).sum()) / (sizes**2 - sizes).sum() / ((u**2).sum() / n)
    assert 0.2 < rho < 0.8
    q, share = np.diag((1 - rho) * sizes + rho * sizes**2), sizes / n
    left = np.eye(40) - np.outer(share, np.ones(40))
    matrix = np.diag((1 - share) ** -0.5) @ left @ q @ left.T @ np.diag((1 - share) ** -0.5)
    by_model = np.trace(matrix) ** 2 / np.trace(matrix @ matrix)
    edge = (found.high - found.value) / np.sqrt(variance)
    assert found.high - found.value == pytest.approx(found.value - found.low, rel=1e-9)
    assert stats.t.ppf(0.975, by_model) * (1 - 1e-9) <= edge  # never more degrees than the model has
    parts = sums**2 / (1 - share)
    expected = np.diag(matrix) * parts.sum() / np.trace(matrix)
    by_data = 2 * parts.sum() ** 2 / ((parts**2).sum() - (expected**2).sum())
    assert edge == pytest.approx(stats.t.ppf(0.975, min(by_model, by_data)), rel=1e-9)


def test_rare_differences_leave_fewer_degrees_of_freedom() -> None:
    """Six groups of sixty decide: Student's 59 degrees would trust their spread too much (93 % instead of 95)."""
    first = [1.0] * 6 + [0.0] * 54
    found = paired_difference(first, [0.0] * 60, [str(number) for number in range(60)])
    assert found.standard_error is not None
    assert found.ci95[1] - found.difference > 1.05 * found.standard_error * stats.t.ppf(0.975, 59)


def test_repeating_each_row_within_its_group_makes_nothing_surer() -> None:
    draw = np.random.default_rng(3)
    first, second = draw.random(40).tolist(), draw.random(40).tolist()
    names = [str(number) for number in range(40)]
    once = paired_difference(first, second, names)
    often = paired_difference(first * 7, second * 7, names * 7)
    assert often.ci95 == pytest.approx(once.ci95, abs=1e-12)
    assert (often.n, often.groups) == (280, 40)


def test_a_difference_is_turned_round_when_the_systems_are_and_no_order_changes_it() -> None:
    draw = np.random.default_rng(4)
    first, second = draw.random(50), draw.random(50)
    names = np.array([str(number // 2) for number in range(50)])
    there = paired_difference(first.tolist(), second.tolist(), names.tolist())
    back = paired_difference(second.tolist(), first.tolist(), names.tolist())
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]), abs=1e-12)
    mixed = draw.permutation(50)
    again = paired_difference(first[mixed].tolist(), second[mixed].tolist(), names[mixed].tolist())
    assert again.ci95 == pytest.approx(there.ci95, abs=1e-12)
    assert again.difference == there.difference


def test_p_is_below_5_percent_exactly_where_the_interval_leaves_zero() -> None:
    draw, both = np.random.default_rng(6), set()
    for _ in range(60):
        rows = draw_rows(Scenario("0/1", 30, "1-7", 0.3, 0.5, 0.3, 0.42), draw)
        found = paired_difference(rows.first.tolist(), rows.second.tolist(), [str(name) for name in rows.groups])
        outside = found.ci95[0] > 0 or found.ci95[1] < 0
        assert found.p is not None
        assert (found.p < 0.05) == outside
        both.add(outside)
    assert both == {True, False}


def test_the_smallest_effect_is_found_in_80_percent_of_evaluations() -> None:
    draw, seen = np.random.default_rng(8), 0
    names = [str(number) for number in range(40)]
    one = paired_difference(draw.normal(0.5, 0.1, 40).tolist(), [0.5] * 40, names)
    assert one.smallest_effect is not None
    assert one.standard_error is not None
    assert one.smallest_effect == pytest.approx(one.standard_error * (2.02 + 0.85), rel=0.02)
    effect = 0.1 / np.sqrt(40) * (2.023 + 0.851)
    for _ in range(1000):
        seen += paired_difference(draw.normal(0.5 + effect, 0.1, 40).tolist(), [0.5] * 40, names).p < 0.05
    assert seen / 1000 == pytest.approx(0.8, abs=0.03)


def test_groups_that_are_all_alike_leave_open_what_the_others_may_be() -> None:
    """Nothing seen in 40 groups is no proof of nothing: up to 8.8 % of all groups may differ (Clopper-Pearson)."""
    names = [str(number) for number in range(40)]
    same = paired_difference([0.3] * 40, [0.3] * 40, names)
    unseen = stats.binomtest(0, 40).proportion_ci(0.95, "exact").high
    assert (same.difference, same.p, same.smallest_effect, same.few_groups) == (0.0, 1.0, None, True)
    assert same.ci95 == pytest.approx((-unseen, unseen), abs=1e-12)
    always = paired_difference([1.0] * 40, [0.0] * 40, names)
    assert always.ci95 == pytest.approx((1 - 2 * unseen, 1.0), abs=1e-12)
    assert always.p == pytest.approx(stats.binomtest(40, 40).pvalue)


def test_one_group_tells_nothing_and_few_are_called_few() -> None:
    alone = paired_difference([1.0, 1.0], [0.0, 0.0], ["a", "a"])
    assert alone.ci95 == (-1.0, 1.0)
    assert (alone.p, alone.standard_error, alone.smallest_effect, alone.few_groups) == (None, None, None, True)
    draw = np.random.default_rng(2)
    for count, few in ((29, True), (30, False)):
        ones = names_of(np.ones(count, int))
        assert paired_difference(draw.random(count).tolist(), [0.5] * count, ones).few_groups is few
    rare = [1.0] * 7 + [0.0] * 93
    assert paired_difference(rare, [0.0] * 100, names_of(np.ones(100, int))).few_groups
    assert not paired_difference([1.0, *rare[1:99], 1.0], [0.0, *[0.0] * 99], names_of(np.ones(100, int))).few_groups


def test_a_ratio_is_that_of_the_sums_and_groups_without_a_denominator_do_not_count() -> None:
    draw = np.random.default_rng(5)
    d = draw.integers(1, 6, 60).astype(float)
    x = draw.binomial(d.astype(int), 0.6).astype(float)
    names = [str(number // 2) for number in range(60)]
    found = interval(x.tolist(), d.tolist(), names)
    assert found.value == x.sum() / d.sum()
    more = interval([*x, 0.0, 0.0], [*d, 0.0, 0.0], [*names, "new", "0"])
    assert (more.low, more.high, more.groups) == pytest.approx((found.low, found.high, 30))
    assert 0 < found.low < found.value < found.high < 1
    with pytest.raises(ZeroDivisionError):
        interval([0.0], [0.0], ["a"])


def test_p_values_are_adjusted_as_statsmodels_does() -> None:
    """Reference: statsmodels 0.15.0, multipletests(method="holm")."""
    found = holm([0.01, 0.04, None, 0.03, 0.005, 0.9])
    assert found == pytest.approx([0.04, 0.09, None, 0.09, 0.025, 0.9])
    assert holm([]) == []
    assert holm([None]) == [None]


def test_the_mean_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(0).random(1000).tolist()
    assert mean(values) == mean(sorted(values)) == mean(values[::-1])
