"""What PREPARE leaves: records, token rows, text, ledger and datasheet; and the facts of its manifest."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.config.build import TeacherBuilder
from finetune.corpus import books, datasheet, tokens
from finetune.corpus.languages import LANGUAGES, WRITINGS
from finetune.corpus.ledger import REJECTS
from finetune.corpus.preferences import PREFERENCES
from finetune.corpus.records import Mode, write_line
from finetune.corpus.settings import Job
from finetune.corpus.sides import Sides
from finetune.corpus.split import SIDES, Side
from finetune.corpus.store import Shard
from finetune.corpus.texts import general_rows
from finetune.corpus.training import Tokens, token_rows


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
    general: list[tuple[str, Shard]],
    preferences: list[Path],
    text: dict[str, Tokens],
    replay: Tokens,
) -> dict[str, Any]:
    """Write all files; the facts of the manifest and of the datasheet."""
    lines: dict[str, int] = {}
    for side in SIDES:
        found = (row for examples in sides.values() for row in examples.chats(examples.on(side), "chat"))
        lines[f"{side}.jsonl"] = _lines(out / f"{side}.jsonl", (str(row["chat"]) for row in found))
    written: dict[Side, tokens.Written] = {
        "train": tokens.write_sft(out / "sft_train.parquet", [*token_rows(sides, "train"), *replay]),
        "valid": tokens.write_sft(out / "sft_valid.parquet", token_rows(sides, "valid")),
        "test": tokens.count(token_rows(sides, "test")),
    }
    texts = {part: tokens.write_text(out / f"text_{part}.parquet", found) for part, found in text.items()}
    chars: Counter[str] = Counter()
    told = (_counted(row, chars) for row in general_rows(job, general))
    lines["general.jsonl"] = _lines(out / "general.jsonl", told)
    with (out / PREFERENCES).open("wb") as joined:
        for folder in preferences:
            with (folder / PREFERENCES).open("rb") as part:
                shutil.copyfileobj(part, joined)
    lines |= {name: _count(out / name) for name in (PREFERENCES, REJECTS)}
    (out / "ledger.json").write_text(job.ledger.to_json(), encoding="utf-8")
    paired = job.ledger.counts.get("preferences", Counter())
    facts = {
        "tasks": {
            name: {
                side: {"rows": int(found.on(side).sum()), "groups": found.groups(found.on(side))} for side in SIDES
            }
            for name, found in sides.items()
        },
        "rows": {side: len(one.lengths) for side, one in written.items()},
        "tokens": {side: sum(one.lengths) for side, one in written.items()},
        "supervised_tokens": {side: one.supervised for side, one in written.items()},
        "modes": {side: dict(sorted(one.modes.items())) for side, one in written.items()},
        "longest": max((max(one.lengths, default=0) for one in written.values()), default=0),
        "replay": {name: written["train"].replay[name] for name in ("rows", "tokens")},
        "text_rows": {part: rows for part, (rows, _) in texts.items()},
        "text_tokens": {part: count for part, (_, count) in texts.items()},
        "general_chars": dict(sorted(chars.items())),
        "personal": dict(sorted(job.ledger.counts.get("personal", {}).items())),
        "languages": _by_source(job, WRITINGS),
        "rejects": job.ledger.dropped,
        "duplicates": _duplicates(job),
        "near_duplicates": [
            {**{name: pair[name] for name in ("source", "similarity", "kept")}, "dropped": pair["before"]}
            for pair in job.ledger.samples.get("near duplicates", ())
        ],
        "source_facts": {name: {"licence": source.licence} for name, source in job.settings.sources.items()},
        "preferences": {name: paired[name] for name in ("trained", "held_out")},
        **({"recognised": recognised} if (recognised := _by_source(job, LANGUAGES)) else {}),
        **({"built": built} if (built := dict(_built(job))) else {}),
    }
    _agree(job, facts, lines)
    lengths: dict[str, Sequence[int]] = {side: one.lengths for side, one in written.items()}
    ledger = job.ledger
    datasheet.write(out, facts=facts, settings=job.settings, ledger=ledger, lengths=lengths, samples=ledger.samples)
    for line in datasheet.headline(facts):
        job.say(line)
    return facts


def _lines(path: Path, lines: Iterable[str]) -> int:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return _count(path)


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _counted(row: dict[str, str], chars: Counter[str]) -> str:
    chars[row["kind"]] += len(row["text"])
    return write_line(row)


def _by_source(job: Job, what: str) -> dict[str, dict[str, int]]:
    """Source -> writing or language -> its rows, the most frequent first."""
    return {
        name.removeprefix(what): dict(sorted(counts.items(), key=lambda found: (-found[1], found[0])))
        for name, counts in job.ledger.counts.items()
        if name.startswith(what)
    }


def _duplicates(job: Job) -> dict[str, dict[str, Any]]:
    """Kind -> what dedup.clusters counts, all sources together."""
    told = {}
    for kind in ("exact", "near"):
        counts = job.ledger.counts.get(f"{kind} duplicates")
        if counts is not None:
            sizes = {size: counts[size] for size in sorted(filter(str.isdecimal, counts), key=int)}
            told[kind] = {"rows": counts["rows"], "clusters": counts["clusters"], "sizes": sizes}
    return told


def _built(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, spec in job.plan.built.items():
        entry = job.ledger.entry("build", name)
        counts = {"rows": entry.rows_out, "documents": entry.more["documents"]}
        builder = f"teacher:{spec.model}" if isinstance(spec, TeacherBuilder) else spec.builder
        yield name, {"builder": builder, "source": spec.source, **counts}


def _agree(job: Job, facts: dict[str, Any], lines: dict[str, int]) -> None:
    """What the ledger says is what was given on at every step, and what was written; `lines` of each file."""
    missing = books.gaps({**facts, "ledger": job.ledger.entries})
    assert not missing, f"a row or a supervised token was lost: {missing}"
    general = sum(job.ledger.entry("text", f"general/{kind}").rows_out for kind in job.settings.general)
    said = {
        **{f"{side}.jsonl": sum(sides[side]["rows"] for sides in facts["tasks"].values()) for side in SIDES},
        "general.jsonl": general, PREFERENCES: sum(facts["preferences"].values()), REJECTS: facts["rejects"],
    }  # fmt: skip
    assert lines == said, f"a line was lost: {lines} were written of {said}"
