"""The main job over two processes: SFT, PAIRS, DPO under ZeRO-3, then merge and hand-over by the first rank alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "recipe=maintenance", "model=tiny_qwen3", "machine=cpu_zero3x2", "tasks.fields.train_rows=24",
    "tasks.fields.valid_rows=4", "tasks.fields.test_rows=8", "tasks.fields.max_new_tokens=6",
    "tasks.place.train_rows=8",
    "tasks.place.valid_rows=2", "tasks.place.test_rows=4", "tasks.place.max_new_tokens=4", "dpo.pairs.prompts=6",
    "score.general_tokens=512", "score.parity_prompts=2", "score.resamples=1000", "handoff.accepted_by=tests",
    "handoff.reason='random weights'",
]  # fmt: skip


def launch(processes: int, work: Path) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, "finetune/train.py", *WORDS, f"work={work}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip


@pytest.mark.distributed
def test_two_processes_under_zero3_go_from_documents_to_a_bundle(tiny_qwen3: Path, tmp_path: Path) -> None:
    result = launch(2, tmp_path / "work")
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert result.stdout.count("bundle: ") == 1, "only the first rank speaks"
    adapter = next((tmp_path / "work").glob("dpo-*/manifest.json"))
    assert json.loads(adapter.read_text())["facts"]["steps"] == 2
    assert (tmp_path / "work" / "bundle" / "SHA256SUMS").exists()


@pytest.mark.distributed
def test_fewer_processes_than_the_machine_says_is_told_before_anything_starts(tmp_path: Path) -> None:
    result = launch(1, tmp_path / "work")
    assert result.returncode != 0
    assert "nproc_per_node" in result.stderr
    assert not (tmp_path / "work").exists()
