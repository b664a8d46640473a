"""The stages that one process runs by itself: what each needs to start with, and the call that does it.

Prompts are all of one length, the adapter was never trained (it seldom ends a turn), and what MERGE wrote is PROOF's.
"""

import importlib
import json
import random
from pathlib import Path

from cases import Case

from finetune.artifacts import Artifact, build
from finetune.chat import ChatFormat
from finetune.config import Recipe
from finetune.corpus.records import Chat
from finetune.libraries import leave_out, unused
from finetune.train import identity

MODULES = {
    "score": "finetune.score.stage", "pairs": "finetune.pairs", "merge": "finetune.merge", "proof": "finetune.proof",
}  # fmt: skip
_GENERAL_TOKENS = 2048


def run(case: Case, recipe: Recipe, base: Artifact, prepared: Artifact, adapter: Artifact, folder: Path) -> None:
    """As `finetune.child` runs it; PROOF reads what a process before it has merged (`merge`)."""
    leave_out(unused(bnb=recipe.method.bnb is not None, zero3=False))
    module = importlib.import_module(MODULES[case.stage])
    inputs = {"base": base, "prepared": prepared, "adapter": adapter}
    if case.stage == "merge":
        del inputs["prepared"]
    if case.stage == "proof":
        merged = folder / "merged"
        inputs["checkpoint"] = Artifact(merged, {"stage": "merge", "digest": "fresh", "facts": {}})
    live = {} if case.stage == "merge" else {"machine": recipe.machine}
    build(module.STAGE, identity(recipe, module.Config), root=folder / "work", inputs=inputs, say=print, **live)


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
