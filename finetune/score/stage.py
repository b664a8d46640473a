"""Stage SCORE: every model there is on the same prompts, template and mode, beside what needs no language model."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage, canonical_json, write_whole
from finetune.base import set_threads
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.config.evaluation import Consistency, Context, Harness
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Method
from finetune.corpus.records import Mode
from finetune.score import consistency, context, general, harness, leaks, modes
from finetune.score.answers import Answer, Book, Say
from finetune.score.inprocess import InProcess
from finetune.score.questions import Questions
from finetune.score.summary import Scored, lines, summarise, with_adjusted
from finetune.score.systems import Adapted, Whole

_BOOKS = ".books.json"
Losses = dict[str, list[float]]
"""Kind of general text -> mean nats of each window."""


class Asked(Section):
    """What SCORE reads of section `score`: `parity_prompts` is PROOF's."""

    shots: int
    batch_tokens: int
    general_tokens: int
    modes: tuple[Mode, ...]
    think_tokens: int
    consistency: Consistency
    context: Context | None
    harness: Harness = Harness()


class Config(Section):
    """What changes the scores."""

    seed: int
    tasks: dict[str, Task]
    score: Asked
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
    checkpoint: Artifact | None = None,
    sft: Artifact | None = None,
    answers: str | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Write answers.jsonl (a line for each row and system) and scores.json; facts: answers, seconds.

    adapter: the tuned model's; sft: the one that DPO started from; checkpoint: MERGE's. answers: the folder of books
    that all evaluations of a work folder share; without it what is asked here is kept here.
    """
    settings = Config.model_validate(config)
    set_threads(machine)
    chat = ChatFormat.read(base.path)
    questions = Questions.read(prepared, chat, settings.tasks, shots=settings.score.shots, seed=settings.seed)
    books = Path(answers) if answers else out / ".answers"
    windows = _general_windows(prepared, settings, chat)
    timings: dict[str, float] = {}
    scored: dict[tuple[str, str], Scored] = {}
    losses: dict[str, Losses] = {}

    def asker(system: str, loaded: Callable[[], AbstractContextManager[Any]], about: Mapping[str, Any]) -> InProcess:
        book = Book(books, about)
        _note(out, book)
        tell = lambda line: say(f"score: {system}: {line}")  # noqa: E731
        return InProcess(loaded, chat, book, batch_tokens=settings.score.batch_tokens, say=tell)

    def ask(
        system: str, model: InProcess, *, few_shot: bool = False, drafts: dict[str, list[Answer]] | None = None
    ) -> dict[str, list[Answer]]:
        with _timed(timings, system):
            found, made = questions.ask(system, model, say, few_shot=few_shot, drafts=drafts)
        scored.update(found)
        return made

    # One model in memory is both systems: first the base, its adapter switched off, then the two added up.
    both = Adapted(base, adapter, settings.model, settings.method, machine)
    plain = asker("base", both.as_base, both.about(tuned=False))
    ask("base_zero_shot", plain)
    ask("base_few_shot", plain, few_shot=True)
    with _timed(timings, "general"):
        losses["base"] = _read_general("base", windows, both.as_base, plain.book, say)
    found_by: dict[str, dict[str, Any]] = {}

    def find(system: str, model: InProcess) -> None:
        if settings.score.context is not None:
            with _timed(timings, "context"):
                tell = lambda line: say(f"{line}, {system}")  # noqa: E731
                asked = settings.score.context
                found_by[system] = context.measure(model, chat, questions.train, asked, seed=settings.seed, say=tell)

    find("base", plain)
    public: dict[str, harness.Rows] = {}
    if settings.score.harness.tasks:
        with _timed(timings, "harness"):
            public["base"] = harness.ask("base", settings.score.harness, both.as_base, base.path, plain.book, say)
    tuned = asker("tuned", both.as_tuned, both.about(tuned=True))
    made = ask("tuned", tuned)
    more: dict[str, Any] = {"leaks": _leaks(questions, scored)}
    if settings.score.modes:
        with _timed(timings, "modes"):
            more["modes"] = modes.measure(
                tuned, questions, settings.score.modes, room=settings.score.think_tokens, say=say
            )
    if settings.score.consistency.prompts:
        with _timed(timings, "consistency"):
            more["consistency"] = consistency.measure(
                tuned, questions, prompts=settings.score.consistency.prompts, say=say
            )
    find("tuned", tuned)
    if found_by:
        more["context"] = context.beside(**found_by)
    with _timed(timings, "general"):
        losses["tuned"] = _read_general("tuned", windows, both.as_tuned, tuned.book, say)
    if public:
        with _timed(timings, "harness"):
            public["tuned"] = harness.ask("tuned", settings.score.harness, both.as_tuned, base.path, tuned.book, say)
        more["harness"] = harness.compare(public["base"], public["tuned"])
        write_whole(out / "harness.jsonl", "".join(f"{line}\n" for line in harness.lines(**public)))
    if checkpoint is not None:
        with _timed(timings, "merged"):
            model_dir = checkpoint.file("model")
            equal = tuned.book.remember(f"equals {checkpoint.digest}", lambda: both.equals(model_dir))
        if equal:
            say("score: merged has the very weights of tuned, so its answers are the same")
            scored |= {(task, "merged"): scored[task, "tuned"] for task in questions.rows}
        else:
            both.forget()
            whole = Whole(Artifact(model_dir, checkpoint.manifest), settings.model, machine)
            ask("merged", asker("merged", whole.as_it_is, whole.about()), drafts=made)
            whole.forget()
    both.forget()
    if sft is not None:
        before = Adapted(base, sft, settings.model, settings.method, machine)
        ask("sft", asker("sft", before.as_tuned, before.about(tuned=True)), drafts=made)
        before.forget()
    with _timed(timings, "baselines"):
        scored |= questions.classic()
    written = [line for task, rows in questions.rows.items() for line in lines(task, rows, scored)]
    write_whole(out / "answers.jsonl", "".join(written))
    with _timed(timings, "statistics"):
        tasks = [
            summarise(task, rows, scored, settings.tasks[task], questions.train)
            for task, rows in questions.rows.items()
        ]
    result = {
        "tasks": with_adjusted(tasks),
        "general": {
            **general.summarise(losses["base"], losses["tuned"]),
            "tokens": {kind: sum(map(len, cut)) for kind, cut in windows.items()},
            "window": general.WINDOW,
        },
        "prompting": prompting(questions),
        **more,
    }
    write_whole(out / "scores.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (out / _BOOKS).unlink(missing_ok=True)
    return {"answers": len(written), "timings": {name: round(seconds, 2) for name, seconds in timings.items()}}


STAGE = Stage("score", 3, run)


def _leaks(questions: Questions, scored: Mapping[tuple[str, str], Scored]) -> dict[str, Any]:
    answers = [answer for task in questions.rows for answer in scored[task, "tuned"].answers]
    return leaks.leaks(answers, [row for rows in questions.rows.values() for row in rows])


def prompting(questions: Questions) -> dict[str, Any]:
    """How the prompts were made, for the report."""
    return {
        "template_sha256": hashlib.sha256(questions.chat.template.encode()).hexdigest(),
        "decoding": "greedy",
        "shots": {
            task: [shot.id for shot in questions.examples(task, mode)]
            for task, rows in questions.rows.items()
            for mode in sorted({row.mode for row in rows})
        },
        "modes": {
            task: dict(sorted(Counter(row.mode for row in rows).items())) for task, rows in questions.rows.items()
        },
    }


def _note(out: Path, book: Book) -> None:
    """Leave in `out` which books a stopped attempt has written to: a plan counts what they hold."""
    file = out / _BOOKS
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    write_whole(file, json.dumps([*known, str(book.file)]))


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
    system: str, windows: Mapping[str, list[list[int]]], loaded: Callable[[], AbstractContextManager[Any]], book: Book,
    say: Say,
) -> Losses:  # fmt: skip
    """Measured once for the same model and windows."""

    def measure(kind: str, cut: list[list[int]]) -> list[float]:
        say(f"score: perplexity of {kind} text, {system}, {len(cut)} windows")
        with loaded() as model:
            return general.negative_log_likelihood(model, cut)

    return {
        kind: book.remember(f"general {canonical_json(cut)}", partial(measure, kind, cut))
        for kind, cut in windows.items()
    }


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        timings[name] = timings.get(name, 0.0) + time.monotonic() - began
