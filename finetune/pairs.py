"""Stage PAIRS: preferences out of the SFT model's own mistakes, joined with those that the corpus brought along."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage, write_whole
from finetune.base import device_of, load_adapter, load_base, set_threads
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Method, Pairs
from finetune.corpus.records import Chat, Message, Preference
from finetune.errors import RecipeError
from finetune.generate import Kept, fold_adapter, generate
from finetune.metrics import score
from finetune.metrics.objects import NotOneObjectError, read_object

_BATCH_TOKENS = 4096
"""Prompt tokens in one generation batch."""
_THINKING_ENDS = "</think>"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


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

    chosen is the gold answer. rejected is the lowest-scoring of the sampled answers below gold's score, the first
    sampled of equals; if the model is always right, gold with one thing wrong in it (origin `corrupted`). Prompts of
    the valid side give the pairs that DPO measures on. Prompts without a pair and unusable answers are counted.
    """
    settings = Config.model_validate(config)
    ready = [Preference.from_json(line) for line in _lines(prepared, "preferences.jsonl")]
    made: list[Preference] = []
    dropped: Counter[str] = Counter()
    unusable: Counter[str] = Counter()
    asked, seconds = 0, 0.0
    if settings.dpo.pairs is not None:
        name = next(name for name, task in settings.tasks.items() if task.main)
        train, valid = (
            [row for row in map(Chat.from_json, _lines(prepared, f"{side}.jsonl")) if row.task == name]
            for side in ("train", "valid")
        )
        rows = choose_prompts(train, settings.dpo.pairs.prompts, settings.seed)
        held_out = choose_prompts(valid, settings.dpo.pairs.eval_prompts, settings.seed)
        asked = len(rows) + len(held_out)
        began = time.monotonic()
        chat = ChatFormat.read(base.path)
        sampled = _sample([*rows, *held_out], settings, chat, base, adapter, machine, Kept(out / ".samples.jsonl"), say)
        for number, (row, texts) in enumerate(zip([*rows, *held_out], sampled, strict=True)):
            answers = [read_answer(text, row, chat) for text in texts]
            unusable.update(answer for answer in answers if isinstance(answer, str))
            usable = [answer for answer in answers if not isinstance(answer, str)]
            pair = make_pair(row, usable, settings.tasks[name], train, settings.seed)
            if isinstance(pair, str):
                dropped[pair] += 1
            else:
                made.append(replace(pair, held_out=number >= len(rows)))
        seconds = time.monotonic() - began
    both = [*made, *ready]
    write_whole(out / "preferences.jsonl", "".join(f"{pair.to_json()}\n" for pair in both))
    facts = {
        "prompts": asked,
        "pairs": len(both),
        "held_out": sum(pair.held_out for pair in both),
        "origins": dict(sorted(Counter(pair.origin for pair in both).items())),
        "dropped": dict(sorted(dropped.items())),
        "unusable": dict(sorted(unusable.items())),
        "timings": {"sample": round(seconds, 2)},
    }
    held = f"{facts['held_out']} of them to measure on"
    say(f"pairs: {facts['pairs']} preferences {facts['origins']}, {held}, dropped {facts['dropped']}")
    return facts


STAGE = Stage("pairs", 3, run)


def choose_prompts(rows: Sequence[Chat], count: int, seed: int) -> list[Chat]:
    """The same rows for the same seed, drawn by a hash of seed and id."""
    return sorted(rows, key=lambda row: _draw(seed, row.id))[:count]


def read_answer(text: str, row: Chat, chat: ChatFormat) -> Message | str:
    """The message that a sampled text is, or why it cannot be learnt from: what is learnt is what it renders to.

    In thinking mode the reasoning ends with </think>; where the row offers tools, <tool_call> blocks are calls.
    """
    message: Message = {"role": "assistant", "content": ""}
    reasoning = ""
    if row.mode == "think":
        reasoning, closed, text = text.rpartition(_THINKING_ENDS)
        reasoning = reasoning.strip().removeprefix("<think>").strip()
        if not closed or not reasoning:
            return "the reasoning is empty or never ended"
        message["reasoning_content"] = reasoning
    calls = []
    if row.tools:
        try:
            calls = [json.loads(found) for found in _CALL.findall(text)]
            made = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        except (ValueError, KeyError, TypeError):
            return "a tool call that is no JSON object with name and arguments"
        if made:
            message["tool_calls"] = [{"type": "function", "function": call} for call in made]
        text = _CALL.sub("", text)
    message["content"] = text.strip()
    if not message["content"] and not calls:
        return "empty"  # it would teach not to stop at once
    if chat.find_control_token(message["content"] + reasoning + json.dumps(calls, ensure_ascii=False)):
        return "a control token in the text"  # it would be read as markup
    try:
        chat.answer_text([*row.prompt, message], row.mode, row.tools)
    except RecipeError:
        return "the chat template does not render it as it is"
    return message


def make_pair(row: Chat, answers: Sequence[Message], task: Task, train: Sequence[Chat], seed: int) -> Preference | str:
    """A preference for this prompt, or the reason why there is none."""
    best = score(row.answer, row, task)
    if best == 0.0:
        return "the gold answer scores 0 against itself"
    graded = [(score(_text(answer, row), row, task), answer) for answer in answers]
    worse = [pair for pair in graded if pair[0] < best]
    if worse:
        low, rejected = min(worse, key=lambda pair: pair[0])
        return _preference(row, rejected, "on_policy", best, low)
    corrupted = corrupt(row, task, train, seed)
    if corrupted is None:
        return "the model is always right and no other training answer is worse"
    return _preference(row, corrupted, "corrupted", best, score(_text(corrupted, row), row, task))


def corrupt(row: Chat, task: Task, train: Sequence[Chat], seed: int) -> Message | None:
    """Gold with one thing wrong: one JSON field from another row, else another row's answer; None if all are right.

    Reasoning stays gold's, so that what differs is what is wrong.
    """
    others = sorted(train, key=lambda other: _draw(seed, f"{row.id}:{other.id}"))
    gold_message = row.messages[-1]
    if task.metric in ("json_exact", "json_f1"):
        gold = read_object(row.answer)
        for field in sorted(gold, key=lambda field: _draw(seed, f"{row.id}:{field}")):
            for other in others:
                try:
                    value = read_object(other.answer).get(field)
                except NotOneObjectError:
                    continue
                if value is not None and value != gold[field]:
                    wrong = json.dumps({**gold, field: value}, ensure_ascii=False, separators=(",", ":"))
                    return {**gold_message, "content": wrong}
        return None
    best = score(row.answer, row, task)
    found = next((other for other in others if score(other.answer, row, task) < best), None)
    if found is None:
        return None
    answered = {key: value for key, value in found.messages[-1].items() if key in ("content", "tool_calls")}
    kept = {key: value for key, value in gold_message.items() if key not in ("content", "tool_calls")}
    return {**kept, **answered}


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


def _text(answer: Message, row: Chat) -> str:
    """What is scored of an answer, as for the row's own."""
    return replace(row, messages=(*row.prompt, answer)).answer


def _preference(row: Chat, rejected: Message, origin: Any, high: float, low: float) -> Preference:
    return Preference(
        row.id, row.task, tuple(row.prompt), row.messages[-1], rejected, origin, row.group, mode=row.mode,
        tools=row.tools, score_chosen=high, score_rejected=low,
    )  # fmt: skip


def _lines(prepared: Artifact, name: str) -> list[str]:
    # Not splitlines(): JSON leaves U+2028 in a text as it is, and that ends a line there.
    return prepared.file(name).read_text(encoding="utf-8").split("\n")[:-1]


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
