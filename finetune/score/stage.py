"""Stage SCORE: base and tuned on the same prompts, template and mode, beside what needs no language model at all."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage, write_whole
from finetune.base import device_of, load_adapter, load_base, set_threads
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Method
from finetune.corpus.records import Chat
from finetune.errors import RecipeError
from finetune.generate import Kept, fold_adapter, generate
from finetune.score import baselines, general, prompts
from finetune.score.metrics import NotOneObjectError, json_details, read_object, score
from finetune.score.statistics import mean, paired_difference

SYSTEMS = ("base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline", "tuned")
AGAINST = ("base_zero_shot", "base_few_shot", "majority")
"""The headline difference is taken to the best of these; the classic baselines stand beside it with their own."""


class Asked(Section):
    """What SCORE reads of section `score`: `parity_prompts` is PROOF's."""

    shots: int
    batch_tokens: int
    resamples: int
    general_tokens: int


class Config(Section):
    """What changes the scores."""

    seed: int
    tasks: dict[str, Task]
    score: Asked
    model: Model
    method: Method


@dataclass(frozen=True)
class Scored:
    """One system's answers to the rows of one task, in the order of test.jsonl."""

    answers: list[str]
    scores: list[float]
    prompts_sha256: list[str]
    finished: list[bool]
    """False where a model was cut off at max_new_tokens before it ended its turn."""


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
    """Write answers.jsonl (a line for each row and system) and scores.json; facts: answers generated, seconds."""
    settings = Config.model_validate(config)
    set_threads(machine)
    chat = ChatFormat.read(base.path)
    train = list(_read(prepared.file("train.jsonl")))
    rows_of = _by_task(_read(prepared.file("test.jsonl")), settings)
    timings: dict[str, float] = {}
    scored: dict[tuple[str, str], Scored] = {}
    with _timed(timings, "load"):
        model = load_adapter(load_base(base, settings.model, settings.method, device=device_of(machine)), adapter)
    windows = _general_windows(prepared, settings, chat)
    losses: dict[str, dict[str, list[float]]] = {}
    # One model in memory is both systems: first the base, its adapter switched off, then the two added up.
    with model.disable_adapter():
        for system in ("base_zero_shot", "base_few_shot"):
            with _timed(timings, system):
                scored |= _ask_all(system, rows_of, train, settings, model, chat, out, say)
        with _timed(timings, "general"):
            losses["base"] = _read_general("base", windows, model, out, say)
    fold_adapter(model)
    with _timed(timings, "tuned"):
        scored |= _ask_all("tuned", rows_of, train, settings, model, chat, out, say)
    with _timed(timings, "general"):
        losses["tuned"] = _read_general("tuned", windows, model, out, say)
    with _timed(timings, "baselines"):
        for task, rows in rows_of.items():
            own = [row for row in train if row.task == task]
            for system, answers in _classic(own, rows, settings.tasks[task], settings.seed).items():
                asked = [_sha256(chat.prompt_text(row.prompt, row.mode, row.tools)) for row in rows]
                scores = _score(answers, rows, settings.tasks[task])
                scored[task, system] = Scored(answers, scores, asked, [True] * len(rows))
    lines = [line for task, rows in rows_of.items() for line in _lines(task, rows, scored)]
    write_whole(out / "answers.jsonl", "".join(lines))
    with _timed(timings, "statistics"):
        tasks = [_summarise(task, rows, scored, settings) for task, rows in rows_of.items()]
    result = {
        "tasks": tasks,
        "general": {
            **general.summarise(losses["base"], losses["tuned"]),
            "tokens": {kind: sum(map(len, cut)) for kind, cut in windows.items()},
            "window": general.WINDOW,
        },
        "prompting": {
            "template_sha256": _sha256(chat.template),
            "decoding": "greedy",
            "shots": {
                task: [shot.id for shot in _shots(train, task, mode, settings)]
                for task, rows in rows_of.items()
                for mode in sorted({row.mode for row in rows})
            },
            "modes": {task: dict(sorted(Counter(row.mode for row in rows).items())) for task, rows in rows_of.items()},
        },
    }
    write_whole(out / "scores.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return {"answers": len(lines), "timings": {name: round(seconds, 2) for name, seconds in timings.items()}}


STAGE = Stage("score", 1, run)


def _ask_all(
    system: str,
    rows_of: Mapping[str, Sequence[Chat]],
    train: Sequence[Chat],
    settings: Config,
    model: Any,
    chat: ChatFormat,
    out: Path,
    say: Callable[[str], None],
) -> dict[tuple[str, str], Scored]:
    kept = Kept(out / f".answers-{system}.jsonl")
    return {
        (task, system): _ask(system, task, rows, train, settings, model, chat, kept, say)
        for task, rows in rows_of.items()
    }


def _ask(
    system: str,
    task: str,
    rows: Sequence[Chat],
    train: Sequence[Chat],
    settings: Config,
    model: Any,
    chat: ChatFormat,
    kept: Kept,
    say: Callable[[str], None],
) -> Scored:
    asked = []
    for row in rows:
        shots = _shots(train, task, row.mode, settings) if system == "base_few_shot" else []
        asked.append(chat.prompt_text(prompts.with_shots(row, shots), row.mode, row.tools))
    say(f"score: {system}, {task}, {len(rows)} prompts")
    longest = settings.tasks[task].max_new_tokens
    made = generate(
        model,
        [chat.encode(text) for text in asked],
        max_new_tokens=longest,
        stop_ids=chat.stop_ids,
        pad_id=chat.pad_id,
        batch_tokens=settings.score.batch_tokens,
        seed=settings.seed,
        done=kept.of(task),
        on_batch=lambda batch: kept.add(task, batch),
        say=lambda line: say(f"score: {system}, {task}: {line}"),
    )
    answers = [prompts.answer_text(chat, ids, row.mode) for ids, row in zip(made, rows, strict=True)]
    finished = [ids[-1] in chat.stop_ids for ids in made]
    return Scored(answers, _score(answers, rows, settings.tasks[task]), [_sha256(text) for text in asked], finished)


def _shots(train: Sequence[Chat], task: str, mode: str, settings: Config) -> list[Chat]:
    return prompts.choose_shots(train, task, mode, settings.score.shots, settings.seed)


def _classic(train: Sequence[Chat], rows: Sequence[Chat], task: Task, seed: int) -> dict[str, list[str]]:
    """Answers of the baselines; none where a task has no training rows to learn from."""
    if not train:
        return {}
    known, answers = [prompts.question(row) for row in train], [row.answer for row in train]
    asked = [prompts.question(row) for row in rows]
    return {
        "majority": [baselines.majority(answers, task)] * len(rows),
        "linear_baseline": baselines.linear(known, answers, asked, seed=seed),
        "nearest_baseline": baselines.nearest(known, answers, asked),
    }


def _general_windows(prepared: Artifact, settings: Config, chat: ChatFormat) -> dict[str, list[list[int]]]:
    texts: dict[str, list[str]] = {}
    for line in prepared.file("general.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts.setdefault(row["kind"], []).append(row["text"])
    windows = {
        kind: general.cut_windows(those, chat.encode, chat.eos_id, tokens=settings.score.general_tokens)
        for kind, those in sorted(texts.items())
    }
    return {kind: cut for kind, cut in windows.items() if cut}


def _read_general(
    system: str, windows: Mapping[str, list[list[int]]], model: Any, out: Path, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Kind -> mean nats of each window; read back where a killed attempt already measured it."""
    losses = {}
    for kind, cut in windows.items():
        file = out / f".general-{system}-{_sha256(kind)[:16]}.json"
        if not file.exists():
            say(f"score: perplexity of {kind} text, {system}, {len(cut)} windows")
            write_whole(file, json.dumps(general.negative_log_likelihood(model, cut)))
        losses[kind] = json.loads(file.read_text(encoding="utf-8"))
    return losses


def _summarise(
    task: str, rows: Sequence[Chat], scored: Mapping[tuple[str, str], Scored], settings: Config
) -> dict[str, Any]:
    present = [system for system in SYSTEMS if (task, system) in scored]
    means = {system: mean(scored[task, system].scores) for system in present}
    groups = [row.group for row in rows]
    differences = {
        system: paired_difference(
            scored[task, "tuned"].scores,
            scored[task, system].scores,
            groups,
            resamples=settings.score.resamples,
            seed=settings.seed,
        )
        for system in present
        if system != "tuned"
    }
    against = max((system for system in AGAINST if system in means), key=lambda system: means[system])
    asked = settings.tasks[task]
    return {
        "name": task,
        "title": asked.title,
        "metric": asked.metric,
        "main": asked.main,
        "n": len(rows),
        "groups": len(set(groups)),
        **{system: means.get(system) for system in SYSTEMS},
        "against": against,
        "difference": differences[against].difference,
        "ci95": list(differences[against].ci95),
        "differences": {
            system: {"difference": found.difference, "ci95": list(found.ci95)} for system, found in differences.items()
        },
        "details": {system: _details(rows, scored[task, system], asked) for system in present},
    }


def _details(rows: Sequence[Chat], made: Scored, task: Task) -> dict[str, Any]:
    details: dict[str, Any] = {"cut_off": len(rows) - sum(made.finished)}
    if task.metric == "json_exact":
        found = [json_details(answer, row.answer) for answer, row in zip(made.answers, rows, strict=True)]
        details["valid"] = mean([one.valid for one in found])
        names = dict.fromkeys(name for one in found for name in one.fields)
        details["fields"] = {name: mean([one.fields[name] for one in found if name in one.fields]) for name in names}
    return details


def _lines(task: str, rows: Sequence[Chat], scored: Mapping[tuple[str, str], Scored]) -> Iterator[str]:
    for system in SYSTEMS:
        if (task, system) not in scored:
            continue
        made = scored[task, system]
        for number, row in enumerate(rows):
            line = {
                "task": task,
                "id": row.id,
                "group": row.group,
                "system": system,
                "prompt_sha256": made.prompts_sha256[number],
                "answer": made.answers[number],
                "score": made.scores[number],
                "gold": row.answer,
                "finished": made.finished[number],
            }
            yield json.dumps(line, ensure_ascii=False) + "\n"


def _score(answers: Sequence[str], rows: Sequence[Chat], task: Task) -> list[float]:
    return [score(answer, row.answer, task) for answer, row in zip(answers, rows, strict=True)]


def _read(file: Path) -> Iterator[Chat]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield Chat.from_json(line)


def _by_task(rows: Iterator[Chat], settings: Config) -> dict[str, list[Chat]]:
    """Task -> its test rows, tasks in the recipe's order. Raises RecipeError for a task without rows to score."""
    found: dict[str, list[Chat]] = {name: [] for name in settings.tasks}
    for row in rows:
        found[row.task].append(row)
    for name, those in found.items():
        if not those:
            raise RecipeError.one(
                f"tasks.{name}",
                None,
                "no row of it is left in the test split, so it cannot be scored",
                "raise prepare.split.test, loosen its filters, or take the task out",
            )
        if settings.tasks[name].metric == "json_exact":
            for row in those:
                _check_gold(name, row)
    return found


def _check_gold(task: str, row: Chat) -> None:
    try:
        read_object(row.answer)
    except NotOneObjectError as error:
        raise RecipeError.one(
            f"tasks.{task}.metric",
            "json_exact",
            f"the gold answer of row {row.id} is no JSON object ({error})",
            "give the task `answer_json`, or choose another metric",
        ) from error


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        timings[name] = timings.get(name, 0.0) + time.monotonic() - began


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
