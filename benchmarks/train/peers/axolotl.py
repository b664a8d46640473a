"""axolotl: `axolotl train config.yaml`."""

import json
from typing import Any

from benchmarks.train.job import LORA, ROOT, Command, Job

VARIANTS = ("best",)


def command(job: Job) -> Command:
    n = job.numbers
    keys: dict[str, Any] = {
        "base_model": str(job.base), "adapter": "lora", "lora_r": LORA["r"], "lora_alpha": LORA["lora_alpha"],
        "lora_dropout": LORA["lora_dropout"], "lora_target_linear": True, "sequence_len": n["max_length"],
        "output_dir": str(job.out / "adapter"), "dataset_prepared_path": str(job.out / "prepared"),
        "micro_batch_size": n["batch_size"], "gradient_accumulation_steps": 1, "max_steps": n["steps"], "num_epochs": 1,
        "optimizer": "adamw_torch", "lr_scheduler": "linear", "learning_rate": n["learning_rate"], "warmup_steps": 0,
        "seed": 0, "saves_per_epoch": 0, "val_set_size": 0, "logging_steps": 5, "special_tokens": {},
        # Off a GPU: `bf16: auto` would silently mean fp16, and kernels for it are missing.
        "bf16": True, "tf32": False, "flash_attention": False, "sdp_attention": True, "gradient_checkpointing": False,
        "sample_packing": False, "pad_to_sequence_len": False, "use_cpu": True,
        "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,
    }
    if job.kind == "sft":
        keys["datasets"] = [
            {"path": str(job.rows / "messages.jsonl"), "ds_type": "json", "type": "chat_template",
             "field_messages": "messages", "roles_to_train": ["assistant"], "train_on_eos": "turn"}
        ]  # fmt: skip
    else:
        keys |= {"rl": "dpo", "rl_beta": n["beta"], "lora_model_dir": str(job.adapter)}
        keys["datasets"] = [
            {"path": str(job.rows / "pairs_llamafactory.jsonl"), "ds_type": "json", "split": "train",
             "type": "chat_template.default", "field_messages": "messages", "field_chosen": "chosen",
             "field_rejected": "rejected"}
        ]  # fmt: skip
    job.out.mkdir(parents=True, exist_ok=True)
    config = job.out / "config.yaml"
    config.write_text(json.dumps(keys, indent=1), encoding="utf-8")
    program = str(ROOT / ".venv-bench-axolotl/bin/axolotl")
    environment = {"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}
    return Command([program, "train", str(config), "--launcher", "python"], job.out / "adapter", environment)
