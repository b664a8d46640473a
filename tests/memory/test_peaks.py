"""The planner against what processes really take: the short form of benchmarks/memory/run.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.memory import Here, plan, settle

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "benchmarks" / "memory" / "run.py"
TODAY = (
    "sft-smollm2_135m-bfloat16-lora-single-1x256-sdpa",
    "sft-tiny_qwen3-float32-lora-single-4x512-sdpa",
    "dpo-tiny_qwen3-float32-lora-single-2x256-sdpa",
)

# A float32 base of some size on two processes takes 0.4 GiB more than is planned: not explained yet (docs/planning.md).
TOO_LOW = {
    "sft-smollm2_135m-float32-lora-ddp-2x256-sdpa": 0.849,
    "sft-smollm2_135m-float32-lora-zero3-2x256-sdpa": 0.885,
}


@pytest.mark.slow
def test_peaks_measured_now_are_planned_within_ten_per_cent(tmp_path, smollm2, tiny_qwen3):
    results = tmp_path / "results.json"
    command = [sys.executable, str(RUN), "--results", str(results), "--only", *TODAY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert set(json.loads(results.read_text())) == set(TODAY)


def test_the_committed_measurements_are_planned_within_ten_per_cent_but_for_two_that_are_named(monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    from cases import Case

    laptop = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=500.0)
    results = json.loads(RUN.with_name("results.json").read_text())
    assert len(results) >= 25
    far = {}
    for name, found in results.items():
        case = Case(**{field: found[field] for field in Case.__dataclass_fields__})
        stages = plan(settle(case.recipe(), laptop)).stages
        planned = next(stage.bytes.peak for stage in stages if stage.name == case.stage)
        peak = max(found["load_peak"], found["train_peak"])
        if abs(planned / peak - 1) > 0.10:
            far[name] = round(planned / peak, 3)
    assert far == pytest.approx(TOO_LOW, abs=0.002)
