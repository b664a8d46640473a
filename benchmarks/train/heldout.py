"""Mean negative log-likelihood of an adapter on held-out answers, the same code for whoever trained it.

    python benchmarks/train/heldout.py BASE ADAPTER|none TEST.jsonl

The prompt is the one a server would send (the base's own template); the answer includes its end of turn. Float32.
"""

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])


def mean_nll(model: Any, rows: list[tuple[list[int], list[int]]], *, batch: int = 16) -> float:
    """rows: token ids of prompt and answer. The mean is over all answer tokens. Rows are padded on the right."""
    import torch

    total, count = 0.0, 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        width = max(len(prompt) + len(answer) for prompt, answer in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        labels = torch.full((len(part), width), -100)
        seen = torch.zeros(len(part), width, dtype=torch.long)
        for number, (prompt, answer) in enumerate(part):
            end = len(prompt) + len(answer)
            ids[number, :end] = torch.tensor([*prompt, *answer])
            labels[number, len(prompt) : end] = torch.tensor(answer)
            seen[number, :end] = 1
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1].float()
        mask = labels[:, 1:] != -100
        total -= float(logits[mask].log_softmax(-1).gather(-1, labels[:, 1:][mask][:, None]).double().sum())
        count += int(mask.sum())
    return total / count


def read_rows(test: Path, base: Path) -> list[tuple[list[int], list[int]]]:
    from finetune.chat import ChatFormat
    from finetune.corpus.records import Chat

    chat = ChatFormat.read(base)
    rows = []
    for line in test.read_text(encoding="utf-8").splitlines():
        prompt = chat.prompt_ids(Chat.from_json(line).prompt)
        rows.append((prompt, chat.encode(Chat.from_json(line).answer + chat.end_of_turn)))
    return rows


def main(base: Path, adapter: str, test: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter != "none":
        model = PeftModel.from_pretrained(model, adapter)
    rows = read_rows(test, base)
    print(json.dumps({"rows": len(rows), "nll": mean_nll(model.eval(), rows)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
