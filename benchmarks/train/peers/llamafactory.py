"""LLaMA-Factory: `llamafactory-cli train config.yaml`, keys as in its examples/train_lora.

default: its example of LoRA SFT or DPO with this model, these rows, and bf16 off where it refuses a CPU.
best: the settings found fastest here: bf16 weights (`pure_bf16` is refused on CPU, `infer_dtype` is not asked), no
gradient checkpointing, no re-evaluated padding.
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
        "learning_rate": n["learning_rate"], "max_steps": n["steps"], "lr_scheduler_type": "linear", "seed": 0,
        "save_only_model": True, "save_strategy": "no", "logging_steps": 5,
    }
    if job.kind == "dpo":
        keys |= {"adapter_name_or_path": str(job.adapter), "pref_beta": n["beta"], "pref_loss": "sigmoid"}
    if job.variant == "best":
        keys |= {"disable_gradient_checkpointing": True, "bf16": True, "flash_attn": "sdpa"}
    job.out.mkdir(parents=True, exist_ok=True)
    config = job.out / "config.yaml"  # JSON is YAML; its own JSON reader fails
    config.write_text(json.dumps(keys, indent=1), encoding="utf-8")
    python = ROOT / ".venv-bench-llamafactory/bin"
    environment = {"DISABLE_VERSION_CHECK": "1", "USE_MODELSCOPE_HUB": "0"}
    return Command([str(python / "llamafactory-cli"), "train", str(config)], job.out / "adapter", environment)
