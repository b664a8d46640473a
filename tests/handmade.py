"""A small prepared corpus made by hand and a random adapter, so that scoring is tested without training."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, canonical_json, hash_file, walk
from finetune.config.load import load
from finetune.config.recipe import Recipe
from finetune.corpus.records import Chat

COLOURS = ["red", "green", "blue", "black"]
THINGS = ["pump", "hose", "valve", "belt", "lamp", "seat", "door", "horn"]


def as_artifact(path: Path, stage: str, **facts: Any) -> Artifact:
    files = {str(file.relative_to(path)): hash_file(file) for file in walk(path)}
    digest = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    return Artifact(path, {"stage": stage, "digest": digest, "key": digest[:16], "version": 1, "facts": facts})


def chats(part: str, count: int) -> list[Chat]:
    """Rows of two tasks: a colour and thing as JSON, and the thing alone."""
    rows = []
    for number in range(count):
        colour, thing = COLOURS[number * 7 % 4], THINGS[number * 5 % 8]
        prompt = f"Note {part}{number}: the {colour} {thing} broke."
        for task, answer in (
            ("parts", json.dumps({"colour": colour, "thing": thing}, separators=(",", ":"))),
            ("thing", f"the {colour} {thing}"),
        ):
            messages = (
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": prompt if task == "parts" else f"{prompt} What broke?"},
                {"role": "assistant", "content": answer},
            )
            rows.append(Chat(f"{task}-{part}{number}", task, messages, "notes.csv", number + 2, f"{part}{number // 3}"))
    return rows


def make_prepared(path: Path) -> Artifact:
    for part, count in (("train", 24), ("valid", 4), ("test", 12)):
        (path / f"{part}.jsonl").write_text("".join(f"{row.to_json()}\n" for row in chats(part, count)))
    text = "The {} of the land, number {}, was heard by many. "
    general = [
        {"id": f"{kind}{number}", "kind": kind, "text": text.format(kind, number) * 9}
        for kind in ("speech", "licence")
        for number in range(3)
    ]
    (path / "general.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in general))
    (path / "preferences.jsonl").write_text(json.dumps({
        "id": "ready-1", "task": "thing", "messages": [{"role": "user", "content": "What broke?"}],
        "chosen": {"role": "assistant", "content": "the hose"}, "group": "ready",
        "rejected": {"role": "assistant", "content": "nothing"}, "origin": "ready",
    }) + "\n")  # fmt: skip
    return as_artifact(path, "prepare")


def make_random_adapter(model: Path, path: Path) -> Artifact:
    """A LoRA whose B is not zero, so that tuned and base differ."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(loaded, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(path)
    return as_artifact(path, "sft")


def sections(**changes: Any) -> dict[str, Any]:
    """The sections that scoring reads, with the tiny model in float32; `changes` replaces keys of section score."""
    recipe = _recipe()
    task = {"source": "notes", "prompt": "{text}", "max_new_tokens": 6}
    fields = {"colour": "{colour}", "thing": "{thing}"}
    return {
        "seed": 3,
        "tasks": {
            "parts": {**task, "title": "Parts", "metric": "json_exact", "main": True, "answer_json": fields},
            "thing": {**task, "title": "Thing", "metric": "rouge_l", "answer": "the {colour} {thing}"},
        },
        "score": {
            "batch_tokens": 300, "general_tokens": 90, "shots": 2, "modes": [], "think_tokens": 4,
            "consistency": {"prompts": 3}, "context": {"lengths": [300, 256], "depths": [0.5], "each": 1}, **changes,
        },
        "model": recipe.model.model_copy(update={"dtype": "float32"}).model_dump(mode="json"),
        "method": recipe.method.model_dump(mode="json"),
    }


@cache
def _recipe() -> Recipe:
    return load(["recipe=maintenance", "model=tiny_qwen3"])
