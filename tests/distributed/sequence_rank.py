"""One rank of a training whose ranks share rows, started by torchrun: `sequence_rank.py LAYOUT SHARED ROOT`."""

import json
import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from finetune import ranks, sft
from finetune.artifacts import Artifact
from finetune.config.machine import Machine
from tests import checkpoints, tiny
from tests.distributed.rank import ZERO3

MODEL = {
    **checkpoints.MODEL, "dtype": "float32", "attn_implementation": "sdpa",
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
}  # fmt: skip


def main(layout: str, shared: int, root: Path) -> list[str]:
    """CPT, then SFT on its adapter, in one process; returns both adapters' folders."""
    world = ranks.world()
    machine = Machine(
        name="test", device="cpu", threads=1, processes=world, layout=layout, sequence_parallel=shared,
        per_device_batch_size=2 if layout == "zero3" else 1, deepspeed=ZERO3 if layout == "zero3" else None,
        gradient_checkpointing=layout == "zero3",  # as on a GPU: the backward pass trades heads once more
    )
    config = tiny.sft_config(
        model=MODEL, method={**tiny.METHOD, "lora": {**tiny.METHOD["lora"], "lora_dropout": 0.0}}, max_steps=3,
        eval_steps=3, log_steps=1, max_length=1024,
    )  # fmt: skip
    base = Artifact(root / "base", {"stage": "base", "digest": "tiny", "facts": {"name": "tests/tiny"}})
    prepared = Artifact(root / "prepared", {"stage": "prepare", "digest": "p", "facts": {}})
    common = {
        "root": root / "work", "machine": machine, "tracker": tiny.Silent(),
        "say": print if ranks.is_first() else (lambda line: None),
    }  # fmt: skip
    inputs = {"base": base, "prepared": prepared}
    plain = {**config, "cpt": {**config["sft"], "max_steps": 2, "eval_steps": 2}}
    del plain["sft"]
    start = ranks.build_together(sft.CPT_STAGE, plain, inputs=inputs, **common)
    after = ranks.build_together(sft.SFT_STAGE, config, inputs={**inputs, "start": start}, **common)
    return [str(start.path), str(after.path)]


if __name__ == "__main__":
    made = main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    if ranks.is_first():
        print("RESULT " + json.dumps(made))
