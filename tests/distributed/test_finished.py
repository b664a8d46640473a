"""A rank that comes late is told what the first rank found: it never reads what the first is publishing."""

import json
import time
from pathlib import Path

import pytest
import torch

from finetune import loop

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def one_rank(rank: int, root: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    partial = root / "sft.partial"
    if rank == 0:
        told = loop.finished(partial)
        partial.replace(root / "sft")
    else:
        time.sleep(1)
        told = loop.finished(partial)
    (root / f"told-{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def test_a_late_rank_learns_that_training_was_done_although_the_files_have_moved(tmp_path: Path) -> None:
    (tmp_path / "sft.partial").mkdir()
    note = {"files": {}, "facts": {"steps": 8}}
    (tmp_path / "sft.partial" / ".finished.json").write_text(json.dumps(note))
    torch.multiprocessing.spawn(one_rank, args=(tmp_path,), nprocs=2)
    assert [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)] == [{"steps": 8}] * 2
