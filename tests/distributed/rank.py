"""One rank of a distributed training of the tiny model, started by torchrun: `rank.py LAYOUT METHOD ROOT`."""

import json
import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from finetune import dpo, ranks, sft
from finetune.artifacts import Artifact, read
from finetune.config.machine import Machine
from tests import tiny

ZERO3 = {
    "zero_optimization": {"stage": 3, "overlap_comm": False, "contiguous_gradients": True},
    "gradient_clipping": "auto", "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto", "bf16": {"enabled": "auto"},
}


def main(layout: str, method: str, root: Path) -> None:
    world = ranks.world()
    machine = Machine(
        name="test", device="cpu", threads=1, processes=world, layout=layout, per_device_batch_size=4 // world,
        deepspeed=ZERO3 if layout == "zero3" else None,
    )
    plain = {**(tiny.QLORA if method == "qlora" else tiny.METHOD)}
    plain["lora"] = {**plain["lora"], "lora_dropout": 0.0}
    base = Artifact(root / "base", {"stage": "base", "digest": "tiny", "facts": {"name": "tiny/random"}})
    prepared = Artifact(root / "prepared", {"stage": "prepare", "digest": "p", "facts": {}})
    preferences = Artifact(root / "preferences", {"stage": "pairs", "digest": "q", "facts": {}})
    config = tiny.sft_config(method=plain, max_steps=4, log_steps=1)
    say = print if ranks.is_first() else (lambda line: None)
    common = {"root": root / "work", "machine": machine, "tracker": tiny.Silent(), "say": say}
    inputs = {"base": base, "prepared": prepared}
    adapter = ranks.build_together(sft.SFT_STAGE, config, inputs=inputs, **common)
    config["dpo"] = {**config.pop("sft"), "trl": {"learning_rate": 1e-3}}
    after = ranks.build_together(
        dpo.STAGE, config, inputs={**inputs, "preferences": preferences, "adapter": adapter}, **common
    )
    if ranks.is_first():
        print("RESULT " + json.dumps([str(adapter.path), str(after.path)]))
        assert read(after.path).digest == after.digest


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
