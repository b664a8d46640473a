"""axolotl: `axolotl train config.yaml`.

best: the settings found fastest here: bf16, eager attention, no gradient checkpointing, no padding to the full length.
"""

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
        "seed": job.seed, "saves_per_epoch": 0, "val_set_size": 0, "logging_steps": 5, "special_tokens": {},
        # Off a GPU `bf16: auto` silently means fp16, and its kernels want Triton.
        "plugins": ["axolotl_on_cpu.OnCpu"],
        "bf16": True, "tf32": False, "attn_implementation": "eager", "gradient_checkpointing": False,
        "sample_packing": False, "pad_to_sequence_len": False,
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
    return _written(keys, job)


def documented(job: Job) -> Command:
    """examples/llama-3/lora-1b.yml of the project, with this model and these rows."""
    keys: dict[str, Any] = {
        "base_model": str(job.base), "load_in_8bit": False, "load_in_4bit": False, "strict": False,
        "datasets": [{"path": str(job.rows / "messages.jsonl"), "ds_type": "json", "type": "chat_template"}],
        "dataset_prepared_path": str(job.out / "prepared"), "val_set_size": 0.1, "output_dir": str(job.out / "adapter"),
        "adapter": "lora", "sequence_len": 2048, "sample_packing": True, "eval_sample_packing": True,
        "pad_to_sequence_len": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
        "lora_target_modules": ["gate_proj", "down_proj", "up_proj", "q_proj", "v_proj", "k_proj", "o_proj"],
        "gradient_accumulation_steps": 2, "micro_batch_size": 2, "num_epochs": 1, "optimizer": "adamw_8bit",
        "lr_scheduler": "cosine", "learning_rate": 0.0002, "bf16": "auto", "tf32": False,
        "gradient_checkpointing": True, "logging_steps": 1, "flash_attention": True,
        "loss_watchdog_threshold": 5.0, "loss_watchdog_patience": 3,
        "warmup_steps": 10, "evals_per_epoch": 4, "saves_per_epoch": 1, "weight_decay": 0.0,
    }
    return _written(keys, job)


def _written(keys: dict[str, Any], job: Job) -> Command:
    job.out.mkdir(parents=True, exist_ok=True)
    config = job.out / "config.yaml"
    config.write_text(json.dumps(keys, indent=1), encoding="utf-8")
    program = str(ROOT / ".venv-bench-axolotl/bin/axolotl")
    environment = {"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}
    return Command([program, "train", str(config), "--launcher", "python"], job.out / "adapter", environment)
