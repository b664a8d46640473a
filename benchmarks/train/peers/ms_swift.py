"""ms-swift: `swift sft` and `swift rlhf --rlhf_type dpo`."""

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
        "lr_scheduler_type": "linear", "warmup_ratio": 0, "seed": 0, "logging_steps": 5, "report_to": "none",
        "torch_dtype": "bfloat16", "use_cpu": "true", "bf16": "false", "gradient_checkpointing": "false",
        "save_steps": n["steps"], "dataloader_num_workers": 0, "add_version": "false", "use_hf": "true",
        "split_dataset_ratio": 0, "group_by_length": "true",
    }
    if job.kind == "sft":
        keys["dataset"] = job.rows / "messages.jsonl"
    else:
        keys |= {"rlhf_type": "dpo", "beta": n["beta"], "adapters": job.adapter, "ref_adapters": job.adapter}
        keys["dataset"] = job.rows / "pairs_ms_swift.jsonl"
    words = [word for name, value in keys.items() for word in (f"--{name}", str(value))]
    program = str(ROOT / ".venv-bench-ms-swift/bin/swift")
    return Command([program, "sft" if job.kind == "sft" else "rlhf", *words], job.out / "adapter")
