"""The rows that PREPARE and PAIRS made, in each contender's own format, so that each renders them with its own code."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def export_chats(chats: list[dict[str, Any]], folder: Path) -> None:
    """`train.jsonl` of PREPARE: messages for LLaMA-Factory, axolotl and ms-swift; prompt and completion for TRL.

    TRL supervises only the answer when prompt and completion are given apart; SmolLM2's template has no generation
    markers for its `assistant_only_loss`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "messages.jsonl", ({"messages": chat["messages"]} for chat in chats))
    write(
        folder / "prompt_completion.jsonl",
        ({"prompt": chat["messages"][:-1], "completion": chat["messages"][-1:]} for chat in chats),
    )
    registry = {
        "rows": {"file_name": "messages.jsonl", **_OPENAI},
        "pairs": {"file_name": "pairs_llamafactory.jsonl", "ranking": True, **_OPENAI},
    }
    registry["pairs"]["columns"] = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    (folder / "dataset_info.json").write_text(json.dumps(registry, indent=1), encoding="utf-8")


def export_pairs(pairs: list[dict[str, Any]], folder: Path) -> None:
    """`preferences.jsonl` of PAIRS as TRL, LLaMA-Factory, axolotl and ms-swift want their preferences."""
    folder.mkdir(parents=True, exist_ok=True)
    turns = [(pair["messages"], pair["chosen"], pair["rejected"]) for pair in pairs]
    write(
        folder / "pairs_trl.jsonl",
        ({"prompt": prompt, "chosen": [chosen], "rejected": [rejected]} for prompt, chosen, rejected in turns),
    )
    write(
        folder / "pairs_llamafactory.jsonl",
        ({"messages": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in turns),
    )
    write(
        folder / "pairs_ms_swift.jsonl",
        (
            {"messages": [*prompt, chosen], "rejected_response": rejected["content"]}
            for prompt, chosen, rejected in turns
        ),
    )


_OPENAI: dict[str, Any] = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "system_tag": "system",
    },
}
"""How LLaMA-Factory is told that a file holds OpenAI messages."""

