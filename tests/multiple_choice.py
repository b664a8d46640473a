"""Real questions of several options: to which branch of the law does a Chinese article belong, and which is its law."""

from pathlib import Path

from real_rows import laws

from finetune.chat import ChatFormat
from finetune.corpus.records import Chat
from finetune.score.answers import Asked


def questions(model_dir: Path) -> list[tuple[Asked, Chat]]:
    """24 prompts as they are served, four options each: branches of the law, or names of laws (of many lengths)."""
    chat = ChatFormat.read(model_dir)
    found = []
    for number, law in enumerate(laws()[:24]):
        key = ("department", "law")[number % 2]
        others = dict.fromkeys(other[key] for other in laws()[number + 1 :] if other[key] != law[key])
        choices = sorted([law[key], *list(others)[:3]])
        asked = f"{law['text']}\n以上条文属于哪一项：{'；'.join(choices)}？"
        row = Chat(
            id=str(number), task="branch", source="laws", line=number + 1, group=law["law"], choices=tuple(choices),
            messages=({"role": "user", "content": asked}, {"role": "assistant", "content": law[key]}),
        )  # fmt: skip
        found.append((Asked.render(chat, row.prompt, "plain", max_new_tokens=8), row))
    return found
