"""The planner against what processes really take: the short form of benchmarks/memory/run.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.memory import Counted, Here, plan, settle

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "benchmarks" / "memory" / "run.py"
TODAY = (
    "sft-smollm2_135m-bfloat16-lora-single-1x256-sdpa",
    "sft-tiny_qwen3-float32-lora-single-4x512-sdpa",
    "dpo-tiny_qwen3-float32-lora-single-2x256-sdpa",
    "sft-smollm2_135m-float32-lora-ddp-2x256-sdpa",  # moves of the base to cpu:0 once took 0.4 GiB more
    "pairs-tiny_qwen3-float32-lora-single-32x128-sdpa",
)


@pytest.mark.slow
def test_peaks_measured_now_are_planned_within_ten_per_cent(tmp_path, smollm2, tiny_qwen3):
    results = tmp_path / "results.json"
    command = [sys.executable, str(RUN), "--results", str(results), "--only", *TODAY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert set(json.loads(results.read_text())) == set(TODAY)


def test_the_committed_measurements_are_planned_within_ten_per_cent(monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    from cases import Case

    laptop = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=500.0)
    results = json.loads(RUN.with_name("results.json").read_text())
    assert len(results) >= 68
    far = {}
    for name, found in results.items():
        case = Case(**{field: found[field] for field in Case.__dataclass_fields__})
        planned = plan(settle(case.recipe(), laptop), counted={"sft": Counted(case.rows, None, case.length)})
        peaks = planned.children | {stage.name: stage.bytes.peak for stage in planned.stages}
        ratio = peaks[case.stage] / max(found["load_peak"], found["train_peak"])
        if abs(ratio - 1) > 0.10:
            far[name] = round(ratio, 3)
    assert far == {}
