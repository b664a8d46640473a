"""Killed at any instant, the same command again: the adapter is the undisturbed run's, byte for byte."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_victim(script: str, what: str, work: Path, seed: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{script}", what, str(work), str(seed)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    results: list[dict[str, Any]] = json.loads(line.removeprefix("RESULT "))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_run_killed_at_random_instants_ends_with_the_same_bytes(stage: str, tmp_path: Path) -> None:
    results = run_victim("victim", stage, tmp_path, seed=20)
    different = [result for result in results if not result["same"]]
    assert not different
    killed = [code for result in results for code in result["codes"] if code == -9]
    assert len(killed) >= 12, "too few kills hit the run; the test would prove nothing"
    first = {name: [r["codes"][0] for r in results if r["plan"][0][0] == name] for name in ("term", "step")}
    assert first["step"] == [75, 75], "SIGTERM during a step did not end with its own exit code"
    assert set(first["term"]) <= {75, 0, -15}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["single", "ddp", "zero3"])
def test_ranks_killed_and_terminated_end_with_the_same_bytes(layout: str, tmp_path: Path) -> None:
    """Both at once or one alone, in a step, evaluating, while saving: the other ends too, nothing is lost."""
    results = run_victim("pair", layout, tmp_path, seed=20)
    assert [result for result in results if not result["same"]] == []
    stopped = 0
    for result in results:
        for (moment, number, whom, sign), codes, kept in zip(
            result["plan"], result["codes"], result["kept"], strict=False
        ):
            assert 999 not in codes, "a rank went on waiting for one that was killed"
            if sign == 15:
                assert codes[whom or 0] == 75
                assert moment == "operation" or set(codes) == {75}, "SIGTERM to one rank in training stops all"
                assert moment != "step" or kept == number, "the step in which SIGTERM came is lost"
            else:
                assert codes[whom or 0] == -9
                assert 0 not in codes
            stopped += 1
    assert stopped >= 2 * len(results), "too few attempts were stopped; the test would prove little"
