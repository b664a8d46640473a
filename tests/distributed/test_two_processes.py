"""Two CPU processes train what one trains, publish whole adapters, and stop together at a step that breaks on one."""

import json
import os
import re
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
LOSS, WEIGHTS = 1e-5, 1e-3
"""One process against two, relative: every loss, and the norm of the difference of every tensor (seen: 3e-7, 4e-6)."""


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    inputs = tmp_path_factory.mktemp("inputs")
    tiny.make_base(inputs / "base")
    tiny.make_prepared(inputs / "prepared")
    tiny.make_preferences(inputs / "preferences")

    @cache
    def run(layout: str, processes: int) -> list[dict[str, Any]]:
        """What every rank wrote down."""
        root = tmp_path_factory.mktemp(layout)
        for name in ("base", "prepared", "preferences"):
            (root / name).symlink_to(inputs / name)
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*start, str(ROOT / "tests/distributed/rank.py"), layout, str(root)], cwd=ROOT, capture_output=True,
            text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return [json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(processes)]

    return run


def log_of(adapter: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]


def planned() -> dict[str, tuple[int, int]]:
    """The tensors of an adapter on all linear layers and their shapes, from the architecture and LoRA's rank alone."""
    shape, rank = tiny.MODEL["architecture"], tiny.METHOD["lora"]["r"]
    hidden, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    queries, keys = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    linear = {
        "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, (rows, columns) in linear.items():
            start = f"base_model.model.model.layers.{layer}.{name}.lora"
            tensors |= {f"{start}_A.weight": (rank, columns), f"{start}_B.weight": (rows, rank)}
    return tensors


@pytest.mark.parametrize("method", ["lora", "qlora", "packed"])
@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_two_processes_train_what_one_trains(launch: Any, layout: str, method: str) -> None:
    worst = {"loss": 0.0, "weights": 0.0}
    for alone, together in zip(launch("single", 1)[0][method], launch(layout, 2)[0][method], strict=True):
        one, two = log_of(Path(alone)), log_of(Path(together))
        assert [line["lr"] for line in two] == [line["lr"] for line in one]
        for name in ("loss", "eval_loss"):
            pairs = zip([line[name] for line in one if name in line], [line[name] for line in two if name in line],
                        strict=True)  # fmt: skip
            worst["loss"] = max(worst["loss"], *(abs(a - b) / abs(a) for a, b in pairs), 0.0)
        ours = load_file(Path(alone) / "adapter_model.safetensors")
        theirs = load_file(Path(together) / "adapter_model.safetensors")
        for name, tensor in theirs.items():
            # Not element by element: where a gradient is nearly zero, Adam turns its rounding into a whole step (1e-2).
            apart = torch.linalg.norm(tensor.float() - ours[name]) / torch.linalg.norm(ours[name])
            worst["weights"] = max(worst["weights"], float(apart))
    assert worst["loss"] < LOSS
    assert worst["weights"] < WEIGHTS


@pytest.mark.parametrize("layout", ["single", "ddp", "zero3"])
def test_every_published_adapter_holds_the_planned_tensors_and_nothing_inert(launch: Any, layout: str) -> None:
    """peft#453, peft#2500, accelerate#3508: tensors of shape [0], because nobody gathered them under ZeRO-3."""
    first = launch(layout, 1 if layout == "single" else 2)[0]
    for folder in (*first["lora"], *first["qlora"]):
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == planned()
        assert all(bool(tensor.any()) for tensor in tensors.values())
        visible = {file.name for file in Path(folder).rglob("*") if not file.name.startswith(".")}
        assert visible == {"adapter_model.safetensors", "adapter_config.json", "log.jsonl", "manifest.json"}


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("layout", ["single", "ddp", "zero3"])
def test_a_broken_step_on_one_rank_stops_all_and_costs_that_step_only(launch: Any, layout: str, what: str) -> None:
    ranks = launch(layout, 1 if layout == "single" else 2)
    told = {rank[what]["told"] for rank in ranks}
    assert len(told) == 1, "the ranks disagree"
    (line,) = told
    assert line.startswith("sft.trl.learning_rate=0.01: loss or gradient was not a finite number in step 3;")
    named = re.findall(r"row-\d+", line)
    # A broken loss is seen on its own rank; a broken gradient has been summed over all of them.
    assert len(set(named)) == len(named) == (4 // len(ranks) if what == "loss" else 4)
    for rank in ranks:
        checkpoints = [path for path in rank[what]["sealed"] if "checkpoint-" in path]
        assert [Path(path).parts[-2] for path in checkpoints] == ["checkpoint-1", "checkpoint-2"]
    resumed, undisturbed = Path(ranks[0][what]["path"]), Path(ranks[0]["lora"][0])
    for name in ("adapter_model.safetensors", "log.jsonl"):
        assert (resumed / name).read_bytes() == (undisturbed / name).read_bytes()
