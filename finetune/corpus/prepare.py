"""Stage PREPARE: documents in; tokenised, masked examples, rejects with reasons, a ledger and a datasheet out.

`run` is the list of steps. Every step says in the ledger how many rows it was given, how many it gave on and why the
others are gone. The same documents, recipe and tokenizer give the same bytes, whatever the number of workers.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage, clear
from finetune.chat import ChatFormat
from finetune.corpus import datasheet, tokens
from finetune.corpus.preferences import count_sides, make_preferences
from finetune.corpus.records import Mode, write_line
from finetune.corpus.rows import drop_by_length, drop_duplicates, drop_markup, read, redact_personal, repair
from finetune.corpus.settings import Config, Job, Sides
from finetune.corpus.sides import build_tasks, check, split, take_general, take_sides
from finetune.corpus.split import SIDES, Side
from finetune.corpus.training import make_replay, make_text, mix_modes, tokenise

__all__ = ["STAGE", "Config", "run"]


def run(
    config: Mapping[str, Any],
    *,
    out: Path,
    base: Artifact,
    documents: Artifact,
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the Prepared artifact from the documents below `documents.path` (see read.find_documents)."""
    began = time.monotonic()
    clear(out)
    job = Job(Config.model_validate(config), ChatFormat.read(base.path))
    prove(job)

    items = read(job, documents.path, workers)
    items = repair(job, items)
    items = drop_by_length(job, items)
    items = drop_markup(job, items)
    items = redact_personal(job, items)
    items = drop_duplicates(job, items)
    tasked = build_tasks(job, items)
    sides = split(job, tasked)
    general = take_general(job, items)
    sides, index = take_sides(job, sides, general)
    rows = tokenise(job, sides)
    rows["train"] = mix_modes(job, sides, rows["train"])
    preferences = make_preferences(job, items, [row for found in tasked.values() for row in found], index)
    text = make_text(job, items, index)
    rows["train"] += make_replay(job, items, index, len(rows["train"]))
    check(job, sides)

    write(job, out, sides, rows, text, general)
    _lines(out / "preferences.jsonl", [preference.to_json() for preference in preferences])
    facts = {**summarise(job, sides, rows, text, general), "preferences": count_sides(preferences)}
    datasheet.write(out, facts=facts, settings=job.settings, ledger=job.ledger, lengths=_lengths(rows))
    for line in datasheet.headline(facts):
        say(line)
    return {**facts, "timings": {"prepare": round(time.monotonic() - began, 2)}}


def prove(job: Job) -> None:
    """The chat template, for every mode that a task may train; where tools are offered, with them."""
    model, tasks = job.settings.model, job.settings.tasks.values()
    modes: set[Mode] = {"plain" if task.reasoning is None else "think" for task in tasks if task.messages is None}
    modes |= {"think" for use in job.settings.preferences.values() if use.chosen_reasoning is not None}
    if any(task.messages is not None for task in tasks):
        modes |= set(model.modes)
    for mode in sorted(modes):
        job.chat.prove(mode, tools=any(task.tools is not None for task in tasks))
    job.chat.prove_modes(model.modes, model.default_mode)


def write(
    job: Job,
    out: Path,
    sides: Sides,
    rows: Mapping[Side, list[tokens.TokenRow]],
    text: Mapping[str, list[tuple[str, list[int]]]],
    general: list[dict[str, str]],
) -> None:
    for side in SIDES:
        _lines(out / f"{side}.jsonl", [e.chat.to_json() for dealt in sides.values() for e in dealt[side]])
    tokens.write_sft(out / "sft_train.parquet", rows["train"])
    tokens.write_sft(out / "sft_valid.parquet", rows["valid"])
    for part, pieces in text.items():
        tokens.write_text(out / f"text_{part}.parquet", pieces)
    _lines(out / "general.jsonl", [write_line(row) for row in general])
    _lines(out / "rejects.jsonl", [reject.to_json() for reject in job.ledger.rejects])
    (out / "ledger.json").write_text(job.ledger.to_json(), encoding="utf-8")


def _lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _lengths(rows: Mapping[Side, list[tokens.TokenRow]]) -> dict[str, list[int]]:
    return {side: [len(row.input_ids) for row in found] for side, found in rows.items()}


def summarise(
    job: Job,
    sides: Sides,
    rows: Mapping[Side, list[tokens.TokenRow]],
    text: Mapping[str, list[tuple[str, list[int]]]],
    general: list[dict[str, str]],
) -> dict[str, Any]:
    """Facts of the manifest and of the datasheet."""
    trained = rows["train"]
    return {
        "tasks": {
            name: {
                side: {"rows": len(found), "groups": len({example.item.group for example in found})}
                for side, found in dealt.items()
            }
            for name, dealt in sides.items()
        },
        "rows": {side: len(found) for side, found in rows.items()},
        "tokens": {side: sum(len(row.input_ids) for row in found) for side, found in rows.items()},
        "supervised_tokens": {side: sum(row.supervised for row in found) for side, found in rows.items()},
        "modes": {side: dict(sorted(Counter(row.mode for row in found).items())) for side, found in rows.items()},
        "longest": max((len(row.input_ids) for found in rows.values() for row in found), default=0),
        "replay": {
            "rows": sum(row.task == "replay" for row in trained),
            "tokens": sum(len(row.input_ids) for row in trained if row.task == "replay"),
        },
        "text_rows": {side: len(pieces) for side, pieces in text.items()},
        "text_tokens": {side: sum(len(ids) for _, ids in pieces) for side, pieces in text.items()},
        "general_chars": dict(sorted(_chars(general).items())),
        "personal": dict(sorted(job.personal.items())),
        "rejects": len(job.ledger.rejects),
        "near_duplicates": job.clusters,
        "source_facts": {name: {"licence": source.licence} for name, source in job.settings.sources.items()},
    }


def _chars(general: list[dict[str, str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in general:
        counts[row["kind"]] += len(row["text"])
    return counts


STAGE = Stage("prepare", 2, run)
