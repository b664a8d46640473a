"""Mutated files of every format and compression; benchmarks/corpus/fuzz.json has the same of ten thousand."""

import json
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[2] / "benchmarks" / "corpus" / "fuzz.py"


def test_three_hundred_mutated_files_give_rows_or_problems_and_never_a_crash() -> None:
    """Each property is asserted in the child, case by case; more memory or time than a bound ends it."""
    outcome = subprocess.run([sys.executable, FUZZ, "--cases", "300"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    summary = json.loads(outcome.stdout)
    outcomes = summary["outcomes"]
    assert sum(outcomes.values()) == 300
    assert len({kind.partition(":")[0] for kind in outcomes}) == 34
    assert sum(number for kind, number in outcomes.items() if "rows" in kind) > 60
    assert sum(number for kind, number in outcomes.items() if "problems" in kind) > 100


def test_the_long_run_goes_on_behind_what_is_done(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    block = {"first": 0, "last": 250, "outcomes": {"x: rows": 250}, "reasons": {}, "peak_mib": 1, "slowest_s": 0.1}
    state.write_text(json.dumps({**block, "slowest_case": 3}) + "\n")
    command = [sys.executable, FUZZ, "--cases", "253", "--state", state]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert [json.loads(line)["first"] for line in state.read_text().splitlines()] == [0, 250]
    assert sum(json.loads(outcome.stdout)["outcomes"].values()) == 253
