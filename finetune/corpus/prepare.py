"""Stage PREPARE: documents in; tokenised, masked examples, rejects with reasons, a ledger and a datasheet out.

`run` is the list of steps. Every step says in the ledger how many rows it was given, how many it gave on and why the
others are gone. Rows go from step to step on disk: memory is bounded by a piece of a source and some bytes for each
row. A killed run goes on with what is done. The same documents, recipe and tokenizer give the same bytes, whatever the
number of workers.
"""

import hashlib
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage, clear
from finetune.corpus.engine import Engine
from finetune.corpus.ledger import REJECTS, Ledger
from finetune.corpus.settings import Config, Job, Plan, read_chat
from finetune.corpus.streams import SourceFile
from finetune.provenance import version_of

__all__ = ["STAGE", "Config", "run"]

_SCRATCH = ".pieces"
_LIBRARIES = (
    "transformers", "tokenizers", "Jinja2", "numpy", "pyarrow", "ftfy", "py3langid", "beautifulsoup4", "lxml",
    "pypdf", "python-docx", "pydantic",
)  # fmt: skip
"""Those whose version decides what is read, compared or tokenised."""
_SMALL = 4 << 20
"""Bytes of documents from which on more than one process is worth its start."""


def run(
    config: Mapping[str, Any],
    *,
    out: Path,
    base: Artifact,
    documents: Artifact,
    engine: Engine = Engine(),  # noqa: B008 (frozen)
    say: Callable[[str], None] = print,
    limit: int | None = None,
) -> dict[str, Any]:
    """Write the Prepared artifact from the documents below `documents.path` (see read.find_documents).

    With `limit` only so many rows of each source are read, and what is too few for a run is told and not refused.
    """
    # Imported here: a plan reads this stage's name and has less than a second for everything.
    from finetune.corpus.built import build_sources
    from finetune.corpus.duplicates import drop_duplicates
    from finetune.corpus.examples import build_tasks
    from finetune.corpus.finding import capped, changed, paths_of, stamps
    from finetune.corpus.glossary import read_codes
    from finetune.corpus.output import prove, write
    from finetune.corpus.preferences import make_preferences
    from finetune.corpus.read import list_files
    from finetune.corpus.rows import read_rows
    from finetune.corpus.sides import check, split, take_sides
    from finetune.corpus.texts import take_general
    from finetune.corpus.training import fit_length, make_replay, make_text, mix_modes, mix_tasks
    from finetune.corpus.whole import drop_boilerplate, note_times

    began = time.monotonic()
    clear(out, but=(_SCRATCH,))
    read_chat.cache_clear()
    settings = Config.model_validate(config)
    glossary = settings.prepare.repair.glossary
    codes = None if glossary is None else read_codes(documents.path / glossary.file, glossary)
    plan = Plan(settings, base.path, codes)
    with (out / REJECTS).open("w", encoding="utf-8") as rejects:
        files = list_files(plan.used, documents)
        paths = paths_of(files) | {name: documents.path / name for name in settings.prepare.files.values()}
        before = documents.facts.get("stamps") or stamps(paths)  # a look at a few rows takes no digests
        digests = documents.facts.get("files", {})
        if problems := changed(paths, before, digests):
            raise capped(problems)
        job = Job(plan, Ledger(rejects), _scratch(out), _worth_it(engine, files), say, limit)
        prove(job)

        shards = read_rows(job, files)
        shards = drop_boilerplate(job, shards)
        shards = drop_duplicates(job, shards)
        job = note_times(job, shards)
        shards = build_sources(job, shards, out.parent / "answers")
        sides = build_tasks(job, shards)
        split(job, sides)
        general = take_general(job, shards)
        evaluation = take_sides(job, sides, general)
        fit_length(job, sides)
        mix_modes(job, sides)
        mix_tasks(job, sides)
        preferences = make_preferences(job, shards, sides, evaluation)
        text = make_text(job, shards, evaluation, sides)
        replay = make_replay(job, shards, evaluation, sides)
        check(job, sides)
        if problems := changed(paths, before, digests):
            shutil.rmtree(job.scratch.parent)  # pieces of other bytes must not be gone on with
            raise capped(problems)
    facts = write(job, out, sides, general, preferences, text, replay)
    shutil.rmtree(job.scratch.parent)
    return {**facts, "timings": {"prepare": round(time.monotonic() - began, 2)}}


def _worth_it(engine: Engine, files: Mapping[str, Iterable[SourceFile]]) -> Engine:
    """No processes for a few documents: to start them takes longer."""
    found = (file.path.stat().st_size for listed in files.values() for file in listed if file.path is not None)
    return engine if engine.cluster is not None or sum(found) > _SMALL else Engine()


def _scratch(out: Path) -> Path:
    """Where pieces lie until all are done. Those of other code are not gone on with."""
    home = out / _SCRATCH
    scratch = home / _code(Path(__file__).parents[1])[:12]
    scratch.mkdir(parents=True, exist_ok=True)
    clear(home, but=(scratch.name,))
    return scratch


def _code(package: Path) -> str:
    """A digest of all code that decides bytes: the chat format, metrics and libraries do as much as this folder."""
    digest = hashlib.sha256(platform.python_version().encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    for name in _LIBRARIES:
        digest.update(f"{name} {version_of(name)}\n".encode())
    return digest.hexdigest()


STAGE = Stage("prepare", 4, run)
