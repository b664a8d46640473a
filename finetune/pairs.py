"""Stage PAIRS: preferences out of the SFT model's own mistakes, joined with those that the corpus brought along."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import field_validator

from finetune.artifacts import Artifact, Stage, write_whole
from finetune.base import device_of, load_adapter, load_base, set_threads
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Dpo, Method, Pairs
from finetune.corpus.records import Chat, Preference
from finetune.generate import Kept, fold_adapter, generate
from finetune.score.metrics import NotOneObjectError, read_object, score

_BATCH_TOKENS = 4096
"""Prompt tokens in one generation batch."""


class Sampling(Section):
    """What of section `dpo` decides the pairs: another beta or learning rate must not sample anew."""

    pairs: Pairs | None


class Config(Section):
    """What changes the pairs."""

    seed: int
    tasks: dict[str, Task]
    dpo: Sampling
    model: Model
    method: Method

    @field_validator("dpo", mode="before")
    @classmethod
    def _only_pairs(cls, value: Any) -> Any:
        return {"pairs": value.pairs} if isinstance(value, Dpo) else value


def run(
    config: Mapping[str, Any],
    *,
    out: Path,
    base: Artifact,
    prepared: Artifact,
    adapter: Artifact,
    machine: Machine,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write preferences.jsonl: the model's own worse answers against gold, then the ready-made preferences.

    chosen is the gold answer. rejected is the lowest-scoring of the sampled answers below gold's score; if the model
    is always right, gold with one thing wrong in it (origin `corrupted`). Prompts that give no pair are counted.
    """
    settings = Config.model_validate(config)
    ready = [
        Preference.from_json(line)
        for line in prepared.file("preferences.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    made: list[Preference] = []
    dropped: Counter[str] = Counter()
    asked, seconds = 0, 0.0
    if settings.dpo.pairs is not None:
        name = next(name for name, task in settings.tasks.items() if task.main)
        train = [
            row
            for row in map(Chat.from_json, prepared.file("train.jsonl").read_text(encoding="utf-8").splitlines())
            if row.task == name
        ]
        rows = choose_prompts(train, settings.dpo.pairs.prompts, settings.seed)
        asked = len(rows)
        began = time.monotonic()
        chat = ChatFormat.read(base.path)
        plain = [row for row in rows if row.mode == "plain"]
        dropped["thinking mode: a preference holds an answer without its reasoning"] += len(rows) - len(plain)
        sampled = _sample(plain, settings, chat, base, adapter, machine, Kept(out / ".samples.jsonl"), say)
        for row, answers in zip(plain, sampled, strict=True):
            pair = make_pair(row, answers, settings.tasks[name], train, chat, settings.seed)
            if isinstance(pair, str):
                dropped[pair] += 1
            else:
                made.append(pair)
        seconds = time.monotonic() - began
    write_whole(out / "preferences.jsonl", "".join(f"{pair.to_json()}\n" for pair in [*made, *ready]))
    facts = {
        "prompts": asked,
        "pairs": len(made) + len(ready),
        "origins": dict(sorted(Counter(pair.origin for pair in [*made, *ready]).items())),
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "timings": {"sample": round(seconds, 2)},
    }
    say(f"pairs: {facts['pairs']} preferences {facts['origins']}, dropped {facts['dropped']}")
    return facts


STAGE = Stage("pairs", 1, run)


def choose_prompts(train: Sequence[Chat], count: int, seed: int) -> list[Chat]:
    """The same training rows for the same seed, drawn by a hash of seed and id."""
    return sorted(train, key=lambda row: _draw(seed, row.id))[:count]


def make_pair(
    row: Chat, answers: Sequence[str], task: Task, train: Sequence[Chat], chat: ChatFormat, seed: int
) -> Preference | str:
    """A preference for this prompt, or the reason why there is none."""
    best = score(row.answer, row.answer, task)
    if best == 0.0:
        return "the gold answer scores 0 against itself"
    graded = [(score(answer, row.answer, task), answer) for answer in answers if _usable(answer, chat)]
    worse = [pair for pair in graded if pair[0] < best]
    if worse:
        low, rejected = min(worse, key=lambda pair: pair[0])
        return _preference(row, rejected, "on_policy", best, low)
    corrupted = corrupt(row, task, train, seed)
    if corrupted is None:
        return "the model is always right and no other training answer is worse"
    return _preference(row, corrupted, "corrupted", best, score(corrupted, row.answer, task))


def corrupt(row: Chat, task: Task, train: Sequence[Chat], seed: int) -> str | None:
    """Gold with one thing wrong: one JSON field from another row, else another row's answer; None if all are right."""
    others = [other.answer for other in sorted(train, key=lambda other: _draw(seed, f"{row.id}:{other.id}"))]
    if task.metric == "json_exact":
        gold = read_object(row.answer)
        for field in sorted(gold, key=lambda field: _draw(seed, f"{row.id}:{field}")):
            for other in others:
                try:
                    value = read_object(other).get(field)
                except NotOneObjectError:
                    continue
                if value is not None and value != gold[field]:
                    return json.dumps({**gold, field: value}, ensure_ascii=False, separators=(",", ":"))
        return None
    best = score(row.answer, row.answer, task)
    return next((other for other in others if score(other, row.answer, task) < best), None)


def _sample(
    rows: Sequence[Chat],
    settings: Config,
    chat: ChatFormat,
    base: Artifact,
    adapter: Artifact,
    machine: Machine,
    kept: Kept,
    say: Callable[[str], None],
) -> list[list[str]]:
    assert settings.dpo.pairs is not None
    if not rows:
        return []
    set_threads(machine)
    model = load_adapter(load_base(base, settings.model, settings.method, device=device_of(machine)), adapter)
    fold_adapter(model)
    each = settings.dpo.pairs.samples
    prompts = [chat.prompt_ids(row.prompt, row.mode, row.tools) for row in rows for _ in range(each)]
    ids = generate(
        model,
        prompts,
        max_new_tokens=settings.tasks[rows[0].task].max_new_tokens,
        stop_ids=chat.stop_ids,
        pad_id=chat.pad_id,
        batch_tokens=_BATCH_TOKENS,
        temperature=settings.dpo.pairs.temperature,
        seed=settings.seed,
        done=kept.of("samples"),
        on_batch=lambda batch: kept.add("samples", batch),
        say=lambda line: say(f"pairs: {line}"),
    )
    texts = [chat.decode(answer).strip() for answer in ids]
    return [texts[begin : begin + each] for begin in range(0, len(texts), each)]


def _usable(answer: str, chat: ChatFormat) -> bool:
    # An empty answer would teach not to stop at once, a control token would be read as markup in DPO.
    return bool(answer) and chat.find_control_token(answer) is None


def _preference(row: Chat, rejected: str, origin: Any, high: float, low: float) -> Preference:
    return Preference(row.id, row.task, tuple(row.prompt), row.answer, rejected, origin, high, low)


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
