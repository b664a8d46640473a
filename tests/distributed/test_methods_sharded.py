"""What of PEFT is not refused under ZeRO-3 trains there as in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def losses(layout: str, processes: int, root: Path) -> dict[str, list[float]]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*start, str(ROOT / "tests/distributed/method_rank.py"), layout, str(root)], cwd=ROOT, capture_output=True,
        text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return dict(json.loads(line.removeprefix("RESULT ")))


def test_every_kind_of_adapter_trains_under_zero3_as_in_one_process(tmp_path: Path) -> None:
    """Gradient checkpointing over partitioned weights included (trl#2514, transformers#47254)."""
    tiny.make_base(tmp_path / "base")
    tiny.make_prepared(tmp_path / "prepared")
    alone, sharded = losses("single", 1, tmp_path), losses("zero3", 2, tmp_path)
    assert set(alone) == set(sharded)
    for way, numbers in alone.items():
        assert sharded[way] == pytest.approx(numbers, rel=1e-5), way
