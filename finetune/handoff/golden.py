"""golden.jsonl: a few prompts with what the merged model answers, token by token, in each number format.

Whoever serves the bundle asks them and knows in seconds whether weights, template, tokenizer and kernels are in order.
Evaluation rows enter only where `privacy.samples` is `full`; else every prompt is invented: the recipe's own templates
filled with made-up words, and general questions.
"""

import gc
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.artifacts import Artifact, clear, write_whole
from finetune.base import device_of, load_base, set_threads
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.corpus.records import Chat, Message, Mode, write_line
from finetune.exact import compute_in_float32
from finetune.generate import generate
from finetune.parity import logits_of, near_tie
from finetune.shards import read_header, shard_names

if TYPE_CHECKING:
    from finetune.handoff import Config

DTYPES = ("float32", "bfloat16")
COUNT = 8
MOST_TOKENS = 16
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest difference of one log-prob that another implementation may show, in nats. Measured between vLLM 0.32 on CPU
and transformers 5.23: below 1e-4 in float32; in bfloat16 up to 0.27 (legal demo, where the model is unsure),
and a step of bfloat16 is 0.125 at logits of 16 to 32."""
_BATCH_TOKENS = 4096
_FILE = ".golden.json"
_INVENTED = {"en": "invented {name} no. {number}, found in no record", "zh": "虚构的{name}第{number}号,不在任何记录中"}
_GENERAL: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "en": (("Name three colours.",), ("What is two plus two?", "Four.", "And plus three?"), ("Say “naïve – 你好”.",)),
    "zh": (("说出三种颜色。",), ("二加二等于几?", "四。", "再加三呢?"), ("请说:“naïve – 你好”。",)),
}


@dataclass(frozen=True)
class Asked:
    """One golden prompt. `mode` None: the request names none, and the exported template decides."""

    id: str
    origin: str
    mode: Mode | None
    messages: list[Message]
    tools: list[Any]


def write(
    bundle: Path, settings: "Config", *, prepared: Artifact, checkpoint: Artifact, machine: Machine, kept: Path,
    say: Any,
) -> dict[str, Any]:
    """Write bundle/golden.jsonl and return what lineage.json says of it.

    Answers of an attempt that was killed afterwards are taken from `kept`: that folder belongs to one key, hence to one
    model and one set of prompts.
    """
    file = kept / _FILE
    if not file.exists():
        asked = choose(settings, prepared.file("test.jsonl"))
        write_whole(file, json.dumps(_answer(asked, settings.model, checkpoint, machine, say), ensure_ascii=False))
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    write_whole(bundle / "golden.jsonl", "".join(write_line(line) + "\n" for line in found.pop("lines")))
    return found


def clear_but_kept(out: Path) -> None:
    """Empty the stage's folder but for the answers of an attempt that was killed after it had them."""
    clear(out, but=(_FILE,))


def forget(kept: Path) -> None:
    """Remove what was kept for a resumed attempt."""
    (kept / _FILE).unlink(missing_ok=True)


def choose(settings: "Config", test_rows: Path) -> list[Asked]:
    """COUNT prompts, the same for the same recipe and data; every mode of the model, and no mode, at least once."""
    rows = list(_rows(test_rows)) if settings.privacy.samples == "full" else []
    modes: list[Mode | None] = [None, *settings.model.modes]
    invented = _invented(settings.tasks, settings.language)
    synthetic = [
        Asked(f"synthetic-{number}", "synthetic", mode, messages, [])
        for number, (messages, mode) in enumerate(zip(invented, cycle(modes), strict=False), 1)
    ]
    taken = rows[: COUNT // 2]
    return [*taken, *synthetic[: COUNT - len(taken)]]


def _rows(file: Path) -> Iterator[Asked]:
    """The first test row of every task and mode."""
    seen = set()
    with file.open(encoding="utf-8") as lines:
        for row in map(Chat.from_json, lines):
            if (row.task, row.mode) not in seen:
                seen.add((row.task, row.mode))
                yield Asked(row.id, "test row", row.mode, row.prompt, list(row.tools))


def _invented(tasks: Mapping[str, Task], language: str) -> list[list[Message]]:
    """COUNT conversations: the tasks' own templates filled with invented words (the main task first), general ones."""
    general = [_talk(turns) for turns in _GENERAL[language]]
    templated = [task for task in sorted(tasks.values(), key=lambda task: not task.main) if task.prompt is not None]
    made = [_filled(task, number, language) for number, task in zip(range(1, COUNT), cycle(templated), strict=False)]
    return list(islice(cycle([*made[: COUNT - len(general)], *general]), COUNT))


def _talk(turns: Sequence[str]) -> list[Message]:
    return [{"role": role, "content": turn} for role, turn in zip(cycle(("user", "assistant")), turns, strict=False)]


def _filled(task: Task, number: int, language: str) -> list[Message]:
    texts = {"system": task.system, "user": task.prompt}
    return [{"role": role, "content": _fill(text, number, language)} for role, text in texts.items() if text]


def _fill(template: str, number: int, language: str) -> str:
    """Every `{column}` of a template replaced by words that stand in no document."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name:
            parts.append(_INVENTED[language].format(name=name.replace("_", " "), number=number))
    return "".join(parts)


def _answer(
    asked: Sequence[Asked], model: Model, checkpoint: Artifact, machine: Machine, say: Any
) -> dict[str, Any]:
    set_threads(machine)
    device = device_of(machine)
    chat = ChatFormat.read(checkpoint.file("model"))
    prompts = [chat.prompt_ids(one.messages, one.mode, one.tools) for one in asked]
    say(f"handoff: the merged model answers {len(asked)} golden prompts")
    expected = _expected(model, checkpoint, prompts, chat, device)
    lines = [
        {"id": one.id, "origin": one.origin, "mode": one.mode, "messages": one.messages, "tools": one.tools,
         "prompt_token_ids": prompt, "expected": {dtype: expected[dtype][row] for dtype in DTYPES}}
        for row, (one, prompt) in enumerate(zip(asked, prompts, strict=True))
    ]  # fmt: skip
    return {
        "file": "golden.jsonl", "prompts": len(lines), "made_on": device.type, "max_new_tokens": MOST_TOKENS,
        "tolerance_nats": dict(TOLERANCE), "lines": lines,
    }  # fmt: skip


def _expected(
    model: Model, checkpoint: Artifact, prompts: Sequence[Sequence[int]], chat: ChatFormat, device: Any
) -> dict[str, list[dict[str, Any]]]:
    """Number format -> one entry for each prompt. Stored bfloat16 weights are widened one at a time for float32."""
    import torch

    whole = Artifact(checkpoint.file("model"), checkpoint.manifest)
    plain = model.model_copy(update={"rope_parameters": None})  # YaRN stands in the published config
    loaded = load_base(whole, plain, None, device=device, dtype=torch.bfloat16)
    found = {"bfloat16": _read(loaded, prompts, chat, "bfloat16")}
    headers = [read_header(whole.path / name) for name in shard_names(whole.path)]
    if {tensor.dtype for header in headers for tensor in header.values()} != {"BF16"}:
        del loaded
        gc.collect()
        loaded = load_base(whole, plain, None, device=device, dtype=torch.float32)
    compute_in_float32(loaded)
    return found | {"float32": _read(loaded, prompts, chat, "float32")}


def _read(model: Any, prompts: Sequence[Sequence[int]], chat: ChatFormat, dtype: str) -> list[dict[str, Any]]:
    """Greedy answers, read once more in one forward for their log-probs."""
    import torch

    answers = generate(
        model, prompts, max_new_tokens=MOST_TOKENS, stop_ids=chat.stop_ids, pad_id=chat.pad_id,
        batch_tokens=_BATCH_TOKENS,
    )  # fmt: skip
    found = []
    for answer, logits in zip(answers, logits_of(model, prompts, answers, _BATCH_TOKENS), strict=True):
        chosen = torch.tensor(answer, device=logits.device)[:, None]
        logprobs = logits.double().log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        best = logits.topk(2, dim=-1).values.tolist()
        taken = logits.gather(1, chosen)[:, 0].tolist()
        near = [
            place for place, ((first, second), ours) in enumerate(zip(best, taken, strict=True))
            if ours < first or near_tie(first, second, dtype, tolerance=TOLERANCE[dtype])
        ]  # fmt: skip
        found.append({
            "token_ids": list(answer), "logprobs": [round(value, 5) for value in logprobs],
            "margins": [round(first - second, 5) for first, second in best], "near_ties": near,
        })  # fmt: skip
    return found
