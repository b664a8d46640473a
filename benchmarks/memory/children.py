"""The stages that one process runs by itself: what each needs to start with, and the call that does it.

Prompts are all of one length, the adapter was never trained (it seldom ends a turn), and what MERGE wrote is PROOF's.
"""

import hashlib
import importlib
import json
import random
from pathlib import Path
from typing import Any

from cases import Case

from finetune.artifacts import Artifact, build
from finetune.chat import ChatFormat
from finetune.config import Recipe
from finetune.corpus.records import Chat
from finetune.fourbit import RoundTrip
from finetune.libraries import leave_out, unused
from finetune.shards import read_header, shard_names
from finetune.train import identity

_GENERAL_TOKENS, _ANSWER = 2048, 64


def run(case: Case, recipe: Recipe, base: Artifact, folder: Path) -> None:
    """As `finetune.child` runs it; what others have merged and answered was made by processes before it."""
    leave_out(unused(bnb=recipe.method.bnb is not None, zero3=False))
    module = importlib.import_module("finetune.score.stage" if case.stage == "score" else f"finetune.{case.stage}")
    made = {
        name: Artifact(folder / at, {"stage": stage, "digest": "fresh", "facts": {}})
        for name, stage, at in (
            ("prepared", "prepare", "prepared"), ("checkpoint", "merge", "merged"), ("scores", "score", "scores"),
            ("proof", "proof", "proof"),
        )
    }  # fmt: skip
    facts = {"quantised_modules": []}
    if case.stage == "bases":
        facts["four_bit"] = four_bit(recipe, base)
    made |= {"base": base, "adapter": Artifact(folder / "adapter", {"stage": "sft", "digest": "fresh", "facts": facts})}
    read = {
        "merge": ("base", "adapter"), "pairs": ("base", "prepared", "adapter"),
        "bases": ("base", "prepared", "adapter"), "export": ("prepared", "checkpoint", "scores", "proof"),
    }.get(case.stage, ("base", "prepared", "adapter", "checkpoint"))  # fmt: skip
    inputs = {name: made[name] for name in read}
    live = {} if case.stage == "merge" else {"machine": recipe.machine}
    build(module.STAGE, identity(recipe, module.Config), root=folder / "work", inputs=inputs, say=print, **live)


def four_bit(recipe: Recipe, base: Artifact) -> dict[str, Any]:
    """What training records of the 4-bit base: every linear layer but the head."""
    names = [
        name.removesuffix(".weight")
        for shard in shard_names(base.path)
        for name, tensor in read_header(base.path / shard).items()
        if len(tensor.shape) == 2 and name.startswith("model.layers.")
    ]
    return RoundTrip(frozenset(names), from_dtype=recipe.model.dtype).describe()


def merge(base: Path, adapter: Path, out: Path) -> None:
    from finetune.merge import merge_adapter

    merge_adapter(base, adapter, out)


def write_chats(folder: Path, case: Case, recipe: Recipe, base: Path) -> None:
    """train, valid, test and general text; no task but the main one."""
    chat, draw = ChatFormat.read(base), random.Random(0)  # noqa: S311 - data, not a secret
    name = next(name for name, task in recipe.tasks.items() if task.main)
    words = [chat.decode([token]) for token in range(1000, 3000)]
    plain = [word for word in words if word.strip().isalpha() and word.startswith(" ")]
    rows = []
    for number in range(3 * case.rows + 8):
        said = f"{draw.choice(plain)}{number}"  # differs from the first word on: an opening shared by all is read once
        while len(chat.prompt_ids([{"role": "user", "content": said}])) < case.length:
            said += draw.choice(plain)
        turns = ({"role": "user", "content": said}, {"role": "assistant", "content": json.dumps({"action": "none"})})
        rows.append(Chat(f"row-{number}", name, turns, "source", number, f"group-{number}"))
    parts = {"test": rows[: case.rows], "train": rows[case.rows : -8], "valid": rows[-8:]}
    for part, chats in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(f"{row.to_json()}\n" for row in chats), encoding="utf-8")
    text = "".join(draw.choice(plain) for _ in range(_GENERAL_TOKENS))
    general = json.dumps({"id": "text", "kind": "speeches", "text": text})
    (folder / "general.jsonl").write_text(f"{general}\n", encoding="utf-8")
    (folder / "preferences.jsonl").write_text("", encoding="utf-8")


def write_answers(folder: Path, recipe: Recipe, base: Path) -> None:
    """What SCORE and PROOF say of the test rows: the tuned model's score, and an answer of full length."""
    chat, draw = ChatFormat.read(base), random.Random(1)  # noqa: S311 - data, not a secret
    for name in ("scores", "proof"):
        (folder / name).mkdir()
    with (
        (folder / "prepared/test.jsonl").open(encoding="utf-8") as rows,
        (folder / "scores/answers.jsonl").open("w", encoding="utf-8") as scored,
        (folder / "proof/answers.jsonl").open("w", encoding="utf-8") as asked,
    ):
        for row in map(Chat.from_json, rows):
            text = chat.prompt_text(row.prompt, row.mode, row.tools)
            digest = hashlib.sha256(text.encode()).hexdigest()
            line = {"task": row.task, "id": row.id, "system": "tuned", "prompt_sha256": digest, "score": 0.0}
            scored.write(json.dumps(line) + "\n")
            answer = [draw.randrange(1000, 3000) for _ in range(_ANSWER)]
            asked.write(json.dumps({"id": row.id, "prompt": chat.encode(text), "answer": answer}) + "\n")
