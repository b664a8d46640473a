"""TRL as its documentation shows it: a plain script, run in our own environment.

default: what SFTConfig and DPOConfig give, plus the batch, the steps and `use_cpu` (without it they refuse a CPU).
best: the settings found fastest here: bf16 weights, eager attention, no gradient checkpointing, rows of like length
together (packing gains nothing over that for rows this short).
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[3])

from benchmarks.train.job import LORA, ROOT, Command, Job  # noqa: E402

VARIANTS = ("default", "best")


_BEST = {"dtype": "bfloat16", "attn_implementation": "eager"}
"""Eager attention takes fewer CPU seconds than sdpa here: sdpa's CPU kernel is slow on short rows with a mask."""


def command(job: Job) -> Command:
    n = job.numbers
    keys: dict[str, Any] = {
        "output_dir": str(job.out), "use_cpu": True, "max_steps": n["steps"], "learning_rate": n["learning_rate"],
        "per_device_train_batch_size": n["batch_size"], "max_length": n["max_length"], "report_to": "none",
        "seed": job.seed,
    }
    if job.kind == "dpo":
        keys["beta"] = n["beta"]
    if job.variant != "default":
        keys |= {"bf16": False, "gradient_checkpointing": False, "save_strategy": "no"}
    if job.variant == "best" and job.kind == "sft":  # refused for pairs
        keys["train_sampling_strategy"] = "group_by_length"
    told = {
        "kind": job.kind, "base": str(job.base), "adapter": str(job.adapter), "keys": keys,
        "weights": {"dtype": "float32"} if job.variant == "default" else _BEST,
        "rows": str(job.rows / ("prompt_completion.jsonl" if job.kind == "sft" else "pairs_trl.jsonl")),
    }
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "told.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    words = [str(ROOT / ".venv/bin/python"), __file__, str(job.out / "told.json")]
    return Command(words, adapter=job.out / "adapter")


def documented(job: Job) -> Command:
    """TRL's quick start: a model's name and a data set, everything else as it comes."""
    asked = command(job)
    file = job.out / "told.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told |= {"keys": {"output_dir": str(job.out)}, "weights": {}}
    file.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return asked


def main(file: Path) -> None:
    from datasets import load_dataset
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    told = json.loads(file.read_text(encoding="utf-8"))
    rows = load_dataset("json", data_files=told["rows"], split="train")
    if told["kind"] == "sft":
        trainer = SFTTrainer(
            model=told["base"],
            args=SFTConfig(model_init_kwargs=told["weights"] or None, **told["keys"]),
            train_dataset=rows,
            peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **LORA),
        )
    else:
        base = AutoModelForCausalLM.from_pretrained(told["base"], **told["weights"])
        model = PeftModel.from_pretrained(base, told["adapter"], is_trainable=True)
        trainer = DPOTrainer(model=model, args=DPOConfig(**told["keys"]), train_dataset=rows)
    trainer.train()
    trainer.save_model(str(file.parent / "adapter"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
