"""What is found run by run, or without holding the numbers, is what sorting all of them finds."""

from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.corpus import draws, keys, store

KEYS = st.integers(0, 7).map(lambda number: number * (1 << 61) + number)
PARTS = st.lists(st.lists(st.tuples(KEYS, st.integers(0, 3)), max_size=12), max_size=4)
DRAWS = st.one_of(st.sampled_from([0.0, 0.5, 0.5 + 2**-30, 1.0]), st.floats(0, 1))
SMALL = patch.object(keys, "_SORTED", 3)
"""So that a few keys lie in several runs."""


def arrays(parts: list[list[tuple[int, int]]]) -> list[store.Array]:
    return [np.array(part, np.uint64).reshape(-1, 2) for part in parts]


@settings(max_examples=100, deadline=None)
@given(PARTS)
def test_keys_of_several_numbers_are_found_in_whatever_runs_and_parts_they_lie(
    parts: list[list[tuple[int, int]]],
) -> None:
    numbers: dict[int, set[int]] = {}
    for key, number in (pair for part in parts for pair in part):
        numbers.setdefault(key, set()).add(number)
    with SMALL:
        assert keys.mixed(lambda: arrays(parts)).values.tolist() == sorted(k for k, n in numbers.items() if len(n) > 1)
        once = [run.tolist() for run in keys.runs(lambda: [part[:, 0] for part in arrays(parts)])]
        together = [run.tolist() for run in keys.in_runs(lambda: arrays(parts), lambda part: part[:, 0])]
    assert [key for run in once for key in run] == sorted(numbers)
    assert sorted(tuple(pair) for run in together for pair in run) == sorted(pair for part in parts for pair in part)
    assert sum(len({key for key, _ in run}) for run in together) == len(numbers), "all of a key lie in one run"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(DRAWS, max_size=9), max_size=4), st.integers(0, 40))
def test_the_lowest_draws_are_those_that_a_stable_sort_puts_first(parts: list[list[float]], most: int) -> None:
    every = np.array([draw for part in parts for draw in part])
    wanted = np.zeros(len(every), bool)
    wanted[np.argsort(every, kind="stable")[:most]] = True
    found = list(draws.lowest(lambda: (np.array(part, float) for part in parts), most))
    assert [len(mask) for mask in found] == [len(part) for part in parts]
    assert np.concatenate([np.empty(0, bool), *found]).tolist() == wanted.tolist()
