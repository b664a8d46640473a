"""ms-swift: `swift sft` and `swift rlhf --rlhf_type dpo`.

best: the settings found fastest here: bf16 weights, eager attention, no gradient checkpointing, rows of like length
together.
"""

from typing import Any

from benchmarks.train.job import LORA, ROOT, SYSTEM, Command, Job

VARIANTS = ("best",)


def command(job: Job) -> Command:
    n = job.numbers
    keys: dict[str, Any] = {
        "model": job.base, "model_type": "llama", "template": "chatml", "system": SYSTEM,
        "tuner_type": "lora", "target_modules": "all-linear", "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"], "lora_dropout": LORA["lora_dropout"], "max_length": n["max_length"],
        "output_dir": job.out / "adapter", "per_device_train_batch_size": n["batch_size"],
        "gradient_accumulation_steps": 1, "max_steps": n["steps"], "learning_rate": n["learning_rate"],
        "lr_scheduler_type": "linear", "warmup_ratio": 0, "seed": job.seed, "logging_steps": 5, "report_to": "none",
        "torch_dtype": "bfloat16", "use_cpu": "true", "bf16": "false", "gradient_checkpointing": "false",
        "save_steps": n["steps"], "dataloader_num_workers": 0, "add_version": "false", "use_hf": "true",
        "split_dataset_ratio": 0, "group_by_length": "true" if job.kind == "sft" else "false",
        "attn_impl": "eager",
    }
    if job.kind == "sft":
        keys["dataset"] = job.rows / "messages.jsonl"
    else:
        keys |= {"rlhf_type": "dpo", "beta": n["beta"], "adapters": job.adapter, "ref_adapters": job.adapter}
        keys["dataset"] = job.rows / "pairs_ms_swift.jsonl"
    return _written("sft" if job.kind == "sft" else "rlhf", keys, job)


def documented(job: Job) -> Command:
    """The README's quick start (`swift sft`, LoRA), with this model and these rows."""
    keys: dict[str, Any] = {
        "model": job.base, "model_type": "llama", "template": "chatml", "tuner_type": "lora",
        "dataset": job.rows / "messages.jsonl", "torch_dtype": "bfloat16", "num_train_epochs": 1,
        "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "learning_rate": 1e-4, "lora_rank": 8,
        "lora_alpha": 32, "target_modules": "all-linear", "gradient_accumulation_steps": 16, "eval_steps": 50,
        "save_steps": 50, "save_total_limit": 2, "logging_steps": 5, "max_length": 2048,
        "output_dir": job.out / "adapter", "warmup_ratio": 0.05, "dataloader_num_workers": 4,
    }
    return _written("sft", keys, job)


def _written(program: str, keys: dict[str, Any], job: Job) -> Command:
    words = [word for name, value in keys.items() for word in (f"--{name}", str(value))]
    return Command([str(ROOT / ".venv-bench-ms-swift/bin/swift"), program, *words], job.out / "adapter")
