"""LLaMA-Factory: `llamafactory-cli train config.yaml`, keys as in its examples/train_lora.

default: its own defaults (float32, gradient checkpointing) with `use_cpu`.
best: the settings found fastest here: bf16, eager attention, no gradient checkpointing, rows of like length together.
"""

import json
from typing import Any

from benchmarks.train.job import LORA, ROOT, SYSTEM, Command, Job

VARIANTS = ("default", "best")


def command(job: Job) -> Command:
    n = job.numbers
    keys: dict[str, Any] = {
        "model_name_or_path": str(job.base), "stage": job.kind, "do_train": True, "finetuning_type": "lora",
        "lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_dropout": LORA["lora_dropout"],
        "lora_target": "all", "dataset_dir": str(job.rows), "dataset": "rows" if job.kind == "sft" else "pairs",
        # Its template ends the system turn with a full stop that the model's own template does not have.
        "template": "smollm2", "default_system": SYSTEM, "cutoff_len": n["max_length"],
        "output_dir": str(job.out / "adapter"), "overwrite_output_dir": True, "report_to": "none",
        "per_device_train_batch_size": n["batch_size"], "gradient_accumulation_steps": 1,
        "learning_rate": n["learning_rate"], "max_steps": n["steps"], "lr_scheduler_type": "linear", "seed": job.seed,
        "save_only_model": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 5,
    }
    if job.kind == "dpo":
        keys |= {"adapter_name_or_path": str(job.adapter), "pref_beta": n["beta"], "pref_loss": "sigmoid"}
    if job.variant == "best":
        keys |= {"bf16": True, "disable_gradient_checkpointing": True, "flash_attn": "disabled"}
        if job.kind == "sft":  # refused for pairs
            keys["train_sampling_strategy"] = "group_by_length"
    return _written(keys, job)


def documented(job: Job) -> Command:
    """examples/train_lora/qwen3_lora_sft.yaml of the project, with this model and these rows."""
    keys: dict[str, Any] = {
        "model_name_or_path": str(job.base), "trust_remote_code": True, "stage": "sft", "do_train": True,
        "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "dataset_dir": str(job.rows),
        "dataset": "rows", "template": "smollm2", "cutoff_len": 2048, "max_samples": 1000,
        "preprocessing_num_workers": 16, "dataloader_num_workers": 4, "output_dir": str(job.out / "adapter"),
        "logging_steps": 10, "save_steps": 500, "plot_loss": True, "overwrite_output_dir": True,
        "save_only_model": False, "report_to": "none", "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8, "learning_rate": 1e-4, "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "ddp_timeout": 180000000,
        "resume_from_checkpoint": None,
    }
    return _written(keys, job)


def _written(keys: dict[str, Any], job: Job) -> Command:
    job.out.mkdir(parents=True, exist_ok=True)
    config = job.out / "config.yaml"  # JSON is YAML; its own JSON reader fails
    config.write_text(json.dumps(keys, indent=1), encoding="utf-8")
    python = ROOT / ".venv-bench-llamafactory/bin"
    environment = {"DISABLE_VERSION_CHECK": "1", "USE_MODELSCOPE_HUB": "0"}
    return Command([str(python / "llamafactory-cli"), "train", str(config)], job.out / "adapter", environment)
