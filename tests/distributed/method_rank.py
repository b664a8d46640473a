"""One rank of trainings with every kind of adapter, alone or started by torchrun: `method_rank.py LAYOUT ROOT`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from finetune import ranks, sft
from finetune.config.machine import Machine
from tests import tiny
from tests.distributed.rank import ZERO3, inputs_in

SMALL_TOO = {**ZERO3, "zero_optimization": {**ZERO3["zero_optimization"], "stage3_param_persistence_threshold": 0}}
"""By default DeepSpeed keeps parameters below 100,000 elements whole once gathered: all of the tiny model's."""
WAYS: dict[str, dict[str, Any]] = {
    "dora, checkpointing": {"use_dora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 2}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "checkpointing, NF4 base": {},
}


def main(layout: str, root: Path) -> dict[str, list[float]]:
    """Way -> training losses of two steps and the evaluation loss."""
    found = {}
    for way, keys in WAYS.items():
        method = {**(tiny.QLORA if "NF4" in way else tiny.METHOD)}
        method["lora"] = {**method["lora"], "lora_dropout": 0.0, **keys}
        machine = Machine(
            name="test", device="cpu", threads=1, processes=ranks.world(), layout=layout,
            deepspeed=SMALL_TOO if layout == "zero3" else None, gradient_checkpointing="checkpointing" in way,
        )  # fmt: skip
        made = ranks.build_together(
            sft.SFT_STAGE, tiny.sft_config(method=method, max_steps=2, eval_steps=2, save_steps=2, log_steps=1),
            inputs=inputs_in(root), root=root / layout / way.replace(" ", "_"), machine=machine, tracker=tiny.Silent(),
            say=lambda _: None,
        )  # fmt: skip
        log = [json.loads(line) for line in made.file("log.jsonl").read_text().splitlines()]
        found[way] = [*(line["loss"] for line in log), log[-1]["eval_loss"]]
    return found


if __name__ == "__main__":
    result = main(sys.argv[1], Path(sys.argv[2]))
    if ranks.is_first():
        print("RESULT " + json.dumps(result))
