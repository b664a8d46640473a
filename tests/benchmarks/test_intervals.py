"""The simulations of intervals: whole, of the method that ships, and what was promised was found."""

import json

from benchmarks.intervals import run

TOLD = json.loads(run.RESULTS.read_text(encoding="utf-8"))


def test_the_committed_simulations_are_of_the_method_that_ships() -> None:
    assert TOLD["simulations"] == 10_000
    assert set(TOLD["scenarios"]) == {case.name for case in run.scenarios()}
    for now, then in zip(run.probe(), TOLD["probe"], strict=True):
        assert max(abs(a - b) for a, b in zip(now, then, strict=True)) < 1e-8, "run benchmarks/intervals/run.py again"


def test_every_promised_interval_covers_94_to_96_percent() -> None:
    promised = {
        case.name: TOLD["scenarios"][case.name]["covered"]
        for case in run.scenarios()
        if run.promised(case, TOLD["scenarios"][case.name])
    }
    assert len(promised) > 40
    assert {name: covered for name, covered in promised.items() if not 0.94 <= covered <= 0.96} == {}


def test_the_table_in_the_readme_is_that_of_the_results() -> None:
    assert run.table(TOLD) in run.RESULTS.with_name("README.md").read_text(encoding="utf-8")
