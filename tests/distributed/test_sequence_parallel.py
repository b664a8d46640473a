"""Ranks that share the tokens of a row train what one process trains on whole rows."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import checkpoints
from tests.distributed import sequence_rank

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with 256 positions extended to 1024 by YaRN; rows up to 701 tokens, with their labels at the end:
    the first slice of a row often has none, and no two ranks or batches have the same number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("inputs")
    checkpoints.make_base(root / "base", dtype=torch.float32)
    (root / "prepared").mkdir()
    draw = random.Random(7)
    rows = []
    for number in range(14):
        ids = [draw.randrange(5, 260) for _ in range(draw.choice([40, 131, 350, 701]))]
        answer = draw.randrange(3, 30)
        labels = [-100] * (len(ids) - answer) + ids[-answer:]
        rows.append({"id": f"row-{number}", "task": "t", "input_ids": ids, "labels": labels, "mode": "plain"})
    for name, part in (("train", rows[:11]), ("valid", rows[11:])):
        pq.write_table(pa.Table.from_pylist(part), root / f"prepared/sft_{name}.parquet")
        texts = [{"id": row["id"], "input_ids": row["input_ids"]} for row in part]
        pq.write_table(pa.Table.from_pylist(texts), root / f"prepared/text_{name}.parquet")
    return root


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return train(inputs, tmp_path_factory.mktemp("alone"), "single", shared=1, processes=1)


def train(inputs: Path, root: Path, layout: str, *, shared: int, processes: int) -> list[Path]:
    for name in ("base", "prepared"):
        (root / name).symlink_to(inputs / name)
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*start, sequence_rank.__file__, layout, str(shared), str(root)], cwd=ROOT, capture_output=True, text=True,
        timeout=400, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return [Path(path) for path in json.loads(line.removeprefix("RESULT "))]


def log_of(adapter: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("layout", "processes"), [("ddp", 4), ("zero3", 2)])  # two groups of two; one group
def test_ranks_that_share_rows_train_what_one_process_trains(
    inputs: Path, alone: list[Path], tmp_path: Path, layout: str, processes: int
) -> None:
    """CPT and then SFT in one process: losses and gradient norms of every step, held-out losses, adapters."""
    for one, many in zip(alone, train(inputs, tmp_path, layout, shared=2, processes=processes), strict=True):
        ours, theirs = log_of(one), log_of(many)
        assert len(ours) == len(theirs)
        for name, near in (("loss", 1e-5), ("eval_loss", 1e-5), ("grad_norm", 1e-4)):
            expected = [line[name] for line in ours if name in line]
            assert [line[name] for line in theirs if name in line] == pytest.approx(expected, rel=near)
        before, after = (load_file(path / "adapter_model.safetensors") for path in (one, many))
        assert set(before) == set(after)
        for name, tensor in after.items():
            # Not element by element: where a gradient is nearly zero, Adam turns its rounding into a whole step (1e-2).
            assert torch.linalg.norm(tensor.float() - before[name]) < 0.01 * torch.linalg.norm(before[name]), name
