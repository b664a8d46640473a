"""Two CPU processes train what one trains, and publish whole adapters."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    inputs = tmp_path_factory.mktemp("inputs")
    tiny.make_base(inputs / "base")
    tiny.make_prepared(inputs / "prepared")
    tiny.make_preferences(inputs / "preferences")

    @cache
    def run(layout: str, method: str, processes: int) -> list[Path]:
        root = tmp_path_factory.mktemp(f"{layout}-{method}")
        for name in ("base", "prepared", "preferences"):
            (root / name).symlink_to(inputs / name)
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*start, str(ROOT / "tests/distributed/rank.py"), layout, method, str(root)], cwd=ROOT, capture_output=True,
            text=True, timeout=400, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        return [Path(path) for path in json.loads(line.removeprefix("RESULT "))]

    return run


def log_of(adapter: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_two_processes_train_what_one_trains(launch: Any, layout: str, method: str) -> None:
    for alone, together in zip(launch("single", method, 1), launch(layout, method, 2), strict=True):
        one, two = log_of(alone), log_of(together)
        assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=2e-3)
        held_out = [[line["eval_loss"] for line in log if "eval_loss" in line] for log in (one, two)]
        assert held_out[1] == pytest.approx(held_out[0], rel=2e-3)
        ours, theirs = load_file(alone / "adapter_model.safetensors"), load_file(together / "adapter_model.safetensors")
        assert set(ours) == set(theirs)
        for name, tensor in theirs.items():
            assert tensor.numel() > 0
            assert tensor.shape == ours[name].shape
            # Not element by element: where a gradient is nearly zero, Adam turns its rounding into a whole step (1e-2).
            apart = torch.linalg.norm(tensor.float() - ours[name]) / torch.linalg.norm(ours[name])
            # ZeRO-3 works on a bfloat16 copy, three digits of the float32 weights.
            assert apart < (0.1 if layout == "zero3" else 0.01), name


def test_only_the_policy_is_published_by_several_ranks(launch: Any) -> None:
    for path in launch("ddp", "lora", 2):
        visible = {file.name for file in path.rglob("*") if not file.name.startswith(".")}
        assert visible == {"adapter_model.safetensors", "adapter_config.json", "log.jsonl", "manifest.json"}
