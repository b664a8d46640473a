"""The main job over two processes: SFT, PAIRS, DPO under ZeRO-3, then merge and hand-over by the first rank alone.

The launcher is sent SIGTERM in SFT, as a scheduler does; the same command goes on.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_tracking import logged

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
WORDS = [
    "recipe=maintenance", "model=tiny_qwen3", "machine=cpu_zero3x2", "tasks.fields.train_rows=24",
    "tasks.fields.valid_rows=4", "tasks.fields.test_rows=8", "tasks.fields.max_new_tokens=6",
    "tasks.place.train_rows=8",
    "tasks.place.valid_rows=2", "tasks.place.test_rows=4", "tasks.place.max_new_tokens=4", "dpo.pairs.prompts=6",
    "score.general_tokens=512", "score.parity_prompts=2", "handoff.accepted_by=tests",
    "handoff.reason='random weights'", f"sft.max_steps={STEPS}", "sft.log_steps=1", "dpo.log_steps=1",
]  # fmt: skip


def start(processes: int, work: Path) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    environment.pop("WANDB_SERVICE", None)
    return subprocess.Popen(
        [sys.executable, *launcher, "finetune/train.py", *WORDS, f"work={work}"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.distributed
def test_two_processes_under_zero3_stopped_and_started_again_go_from_documents_to_a_bundle(
    tiny_qwen3: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    with start(2, work) as launcher:
        assert launcher.stdout is not None
        said = []
        for line in launcher.stdout:
            said.append(line)
            if line.startswith("sft: step 1/"):
                launcher.send_signal(signal.SIGTERM)
    assert launcher.returncode != 0
    (stopped,) = [line for line in said if line.startswith("sft: stopped by SIGTERM after step ")]
    assert not list(work.glob("sft-*/manifest.json")), "a half-trained adapter was published"
    with start(2, work) as launcher:
        output, _ = launcher.communicate(timeout=800)
    assert launcher.returncode == 0, output[-4000:]
    step = int(stopped.split()[6])
    assert f"sft: going on after step {step} of {STEPS}\n" in output
    assert output.count("bundle: ") == 1, "only the first rank speaks"
    adapter = next(work.glob("dpo-*/manifest.json"))
    steps = json.loads(adapter.read_text())["facts"]["steps"]
    assert (work / "bundle" / "SHA256SUMS").exists()
    lines = [line for line in logged(work) if "score/samples" not in line[1]]
    assert [step for step, _ in lines] == list(range(1, STEPS + steps + 1)), "one W&B run, every step once"
    assert len({file.name for file in work.rglob("*.wandb")}) == 1
    assert all(("sft/loss" if step <= STEPS else "dpo/loss") in numbers for step, numbers in lines)


@pytest.mark.distributed
def test_fewer_processes_than_the_machine_says_is_told_before_anything_starts(tmp_path: Path) -> None:
    with start(1, tmp_path / "work") as launcher:
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "nproc_per_node" in output
    assert not (tmp_path / "work").exists()
