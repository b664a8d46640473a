"""A datasheet with everything in it, as PREPARE and `page.write` make one."""

import copy
import io
from types import SimpleNamespace
from typing import Any

from finetune.corpus import datasheet
from finetune.corpus.ledger import Ledger, Reject

SECRET = "the tenant of flat nine complained about the boiler on the third of May"
CHINESE = "甲方应当在收到货物后十日内付款"
FACTS: dict[str, Any] = {
    "tasks": {"title": {side: {"rows": rows, "groups": rows // 2} for side, rows in
                        (("train", 60), ("valid", 8), ("test", 20))}},
    "rows": {"train": 66, "valid": 8, "test": 20},
    "tokens": {"train": 6000, "valid": 700, "test": 1900},
    "supervised_tokens": {"train": 840, "valid": 80, "test": 200},
    "modes": {"train": {"plain": 50, "think": 16}, "valid": {"plain": 8}, "test": {"plain": 20}},
    "longest": 230,
    "replay": {"rows": 6, "tokens": 240},
    "text_rows": {"train": 30, "valid": 4},
    "text_tokens": {"train": 9000, "valid": 1000},
    "general_chars": {"speeches": 60000},
    "personal": {"email": 4, "cn_mobile": 2, "secret": 1},
    "rejects": 30,
    "near_duplicates": [
        {"source": "letters", "similarity": 0.87, "kept": f"{SECRET}.", "dropped": f"{SECRET}, and again."},
        {"source": "合同", "similarity": 0.9, "kept": f"{CHINESE}。", "dropped": f"{CHINESE.replace('十', '三十')}。"},
    ],
    "source_facts": {
        "letters": {"licence": "internal"}, "合同": {"licence": "MIT"}, "general": {"licence": "US public domain"},
    },
    "preferences": {"trained": 5, "held_out": 1},
    "languages": {"letters": {"Latin": 90, "Greek": 4}, "合同": {"Han": 40}},
    "recognised": {"letters": {"en": 80, "?": 10, "el": 4}, "合同": {"zh": 40}},
    "duplicates": {"exact": {"rows": 0, "clusters": 0, "sizes": {}},
                   "near": {"rows": 3, "clusters": 2, "sizes": {"2": 1, "3": 1}}},
    "built": {"questions": {"builder": "question", "source": "letters", "documents": 9, "rows": 18}},
}  # fmt: skip
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "repair": [{"source": "letters", "file": "a.txt", "line": 3, "before": "cafÃ© at noon", "after": "café at noon"}],
    "redact": [{"source": "合同", "file": "b.docx", "line": 1, "after": "电话 [CN_MOBILE_1]"}],
    "decontaminate": [
        {"source": "title/train", "file": "a.txt", "line": 5, "before": f"as said: {SECRET}", "evaluation": "title/r7",
         "passage": SECRET, "reason": "shared with an evaluation row"}
    ],
    "near duplicates": [
        {"source": "letters", "file": "a.txt", "line": 9, "before": SECRET, "reason": "near duplicate"}
    ],
}
DOCUMENTS = {"letters": {"a.txt": "a" * 64}, "合同": {"b.docx": "b" * 64}}


def ledger() -> Ledger:
    made = Ledger(io.StringIO())

    def step(name: str, source: str, rows: int, lost: int = 0, reason: str = "", tokens: int = 0, **more: Any) -> int:
        """With `tokens` learned ones for each row."""
        rejects = [Reject("a.txt", 9 + i, f"r{i}", name, reason, "why", None, tokens) for i in range(lost)]
        counted = (tokens * rows, tokens * (rows - lost)) if tokens else None
        made.record(name, source, rows, rows - lost, rejects, counted, **more)
        return rows - lost

    for source, rows in (("letters", 104), ("合同", 40), ("general", 12)):
        step("read", source, rows)
        step("repair", source, rows, changed=2)
        rows = step("markup", source, rows, 1, "control token in text")
        step("redact", source, rows, changed=3)
        step("near duplicates", source, rows, 3 if source == "letters" else 0, "near duplicate")
    step("task", "title", 100, tokens=10)
    step("split", "title", 100, tokens=10, into={"train": 70, "valid": 8, "test": 22})
    step("cap", "title/test", 22, 2, "over test_rows", 10)
    step("decontaminate", "title/valid", 8, tokens=10)
    step("cap", "title/valid", 8, tokens=10)
    step("decontaminate", "title/train", 70, 4, "shared with an evaluation row", 10)
    step("cap", "title/train", 66, 5, "over train_rows", 10)
    step("length", "title/train", 61, 1, "over max_length", 10)
    for side, rows in (("valid", 8), ("test", 20)):
        step("length", f"title/{side}", rows, tokens=10)
    step("text", "text/letters", 40, 10, "other side of the split")
    step("decontaminate", "text/letters", 30)
    made.record("cut text", "text/letters", 30, 30, tokens=(10_000, 10_000), pieces=34)
    step("text", "replay", 11)
    step("decontaminate", "replay", 11, 1, "shared with an evaluation row")
    over = {"shorter than replay.tokens": 50, "over replay.share": 1360}
    made.record("cut replay", "replay", 10, 10, (), (1650, 240), over, pieces=40, chosen=6)
    step("text", "general/speeches", 11, 1, "over max_chars")
    step("preference", "preferences/ours", 6)
    return made


def collected(**changes: Any) -> dict[str, Any]:
    """datasheet.json as PREPARE writes it."""
    settings = SimpleNamespace(sft=SimpleNamespace(max_length=256))
    lengths = {"train": [*range(30, 95), 230], "valid": [40] * 8, "test": [90] * 20}
    made = datasheet.collect(FACTS | changes, settings, ledger(), lengths, SAMPLES)
    return copy.deepcopy(made)


def shown(**changes: Any) -> dict[str, Any]:
    """What the page is made of."""
    about = {"name": "letters", "title": "Letters", "description": "Names one.", "licence": "internal", "limits": ""}
    return {**collected(), "about": about, "documents": DOCUMENTS, "kept": ["name"], "digest": "d" * 64,
            "privacy": "redacted", **changes}  # fmt: skip
