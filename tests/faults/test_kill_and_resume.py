"""Killed at any instant, the same command again: the adapter is the undisturbed run's, byte for byte."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_victim(stage: str, work: Path, seed: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.victim", stage, str(work), str(seed)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    results: list[dict[str, Any]] = json.loads(line.removeprefix("RESULT "))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_run_killed_at_random_instants_ends_with_the_same_bytes(stage: str, tmp_path: Path) -> None:
    results = run_victim(stage, tmp_path, seed=20)
    different = [result for result in results if not result["same"]]
    assert not different
    killed = [code for result in results for code in result["codes"] if code == -9]
    assert len(killed) >= 12, "too few kills hit the run; the test would prove nothing"
    first = {name: [r["codes"][0] for r in results if r["plan"][0][0] == name] for name in ("term", "step")}
    assert first["step"] == [75, 75], "SIGTERM during a step did not end with its own exit code"
    assert set(first["term"]) <= {75, 0, -15}
