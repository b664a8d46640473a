"""What EXPORT is given, on a model of a quarter of a million weights: merged checkpoint, rows, scores, answers."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from checkpoints import MODEL, make_base
from tiny import TEMPLATE

from finetune import checkpoint
from finetune.artifacts import Artifact
from finetune.chat import ChatFormat

TASKS = {
    name: {"title": name, "source": "s", "prompt": "{q}", "answer": "{a}", "metric": "exact_match",
           "main": name == "t0", "train_rows": 8, "valid_rows": 1, "test_rows": 4, "max_new_tokens": 6}
    for name in ("t0", "t1")
}  # fmt: skip


def config(*schemes: str, **quantise: Any) -> dict[str, Any]:
    """EXPORT's config for this model."""
    return {
        "seed": 0, "export": list(schemes), "quantise": quantise, "tasks": TASKS,
        "score": {"batch_tokens": 512},
        "model": {"dtype": "bfloat16", "architecture": MODEL["architecture"]},
    }  # fmt: skip


def inputs(folder: Path, *, kind: str = "qwen3") -> dict[str, Artifact]:
    """The artifacts that `train.run` hands to EXPORT: SCORE's tuned answers are worth 1, half the base's."""
    base = make_base(folder / "base", kind=kind)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    merged = folder / "merged/model"
    merged.mkdir(parents=True)
    for file in base.glob("*.safetensors"):
        shutil.copyfile(file, merged / file.name)
    checkpoint.write_small_files(base, merged, dtypes={"BF16"}, default_mode="plain")
    chat = ChatFormat.read(merged)
    for name in ("prepared", "scores", "proof"):
        (folder / name).mkdir()
    asked, scored = [], []
    for split, count in (("train", 10), ("test", 8)):
        rows = [_row(split, number) for number in range(count)]
        (folder / f"prepared/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        prompt = chat.prompt_text(row["messages"][:1], "plain")
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        known = {"base_zero_shot": 0.0, "base_few_shot": row["line"] // 2 % 2, "majority": 0.0, "tuned": 1.0}
        scored += [
            {"task": row["task"], "id": row["id"], "system": system, "prompt_sha256": digest, "score": float(value)}
            for system, value in known.items()
        ]
        answer = [*chat.encode("certainly"), chat.eos_id]
        asked.append({"id": row["id"], "prompt": chat.encode(prompt), "answer": answer})
    (folder / "scores/answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scored))
    (folder / "proof/answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    stages = {"prepared": "prepare", "checkpoint": "merge", "scores": "score", "proof": "proof"}
    folders = {"checkpoint": "merged"}
    return {
        name: Artifact(folder / folders.get(name, name), {"stage": stage, "digest": name, "facts": {}})
        for name, stage in stages.items()
    }


def _row(split: str, number: int) -> dict[str, Any]:
    return {
        "id": f"{split}{number}", "task": f"t{number % 2}", "source": "s", "line": number, "group": f"g{number}",
        "mode": "plain", "tools": [],
        "messages": [{"role": "user", "content": f"Question {number} of {split}?"},
                     {"role": "assistant", "content": "yes" * (number + 1)}],
    }  # fmt: skip
