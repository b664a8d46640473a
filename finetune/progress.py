"""What of a run is already there: cached, resumable, to run. Reads its work folder; starts, fetches and writes nothing.

The walk follows `train.run`: a stage's key holds the digests of its inputs, so behind a stage that is not finished
nothing can be known and everything is `to run`.
"""

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune import resume
from finetune.artifacts import Artifact, Stage, find, stage_key
from finetune.config import Recipe
from finetune.config.data import find_files
from finetune.corpus.finding import find_documents
from finetune.corpus.hub import find_hub_files
from finetune.errors import RecipeError
from finetune.memory import Counted, StageState
from finetune.train import identity

_MOST_HASHED = 200_000_000
"""Bytes of documents that a plan reads for their hash: about a fifth of a second."""
_MODULES = {
    "prepare": ("finetune.corpus.prepare", "STAGE", "Config"),
    "cpt": ("finetune.sft", "CPT_STAGE", "CptConfig"),
    "sft": ("finetune.sft", "SFT_STAGE", "Config"),
    "pairs": ("finetune.pairs", "STAGE", "Config"),
    "dpo": ("finetune.dpo", "STAGE", "Config"),
    "score": ("finetune.score.stage", "STAGE", "Config"),
    "bases": ("finetune.bases", "STAGE", "Config"),
    "merge": ("finetune.merge", "STAGE", "Config"),
    "proof": ("finetune.proof", "STAGE", "Config"),
    "export": ("finetune.export", "STAGE", "Config"),
    "handoff": ("finetune.handoff", "STAGE", "Config"),
}
_KEPT = {"pairs": ".samples.jsonl", "bases": ".answers.jsonl", "proof": ".answers.jsonl"}
"""Lines of work that a killed attempt left behind."""


def look(recipe: Recipe) -> tuple[tuple[StageState, ...], dict[str, Counted]]:
    """The state of every stage in the order of the run, and what PREPARE and PAIRS have counted for training.

    `recipe` is settled: a checkpoint fits only the layout it was saved in.
    """
    order = order_of(recipe)
    root = Path(recipe.work)
    unknown = tuple(StageState(name, "to run") for name in order)
    if not any(root.glob("prepare-*")):
        return unknown, {}
    start, why = _start(recipe)
    if start is None:
        return tuple(StageState(name, "to run", why) for name in order), {}
    done: dict[str, Artifact] = {}
    states = [_look(recipe, name, start, done, root) for name in order]
    return tuple(states), _counted(recipe, done)


def order_of(recipe: Recipe) -> list[str]:
    """Names of all stages, in the order in which `train.run` builds them."""
    training = [name for stage in recipe.stages for name in (("pairs", "dpo") if stage == "dpo" else (stage,))]
    four_bit = ["bases"] if recipe.method.bnb is not None else []
    quantised = ["export"] if recipe.export else []
    return ["prepare", *training, *four_bit, "merge", "score", "proof", *quantised, "handoff"]


def _start(recipe: Recipe) -> tuple[dict[str, Artifact] | None, str]:
    """Base and documents by their digests; None and the reason where these would take longer than a plan may."""
    from finetune.base import remembered_base

    base = remembered_base(recipe.model)
    if base is None:
        return None, "not looked at: the base's files have not been hashed on this machine"
    try:
        if sum(file.stat().st_size for file in _documents(recipe)) > _MOST_HASHED:
            return None, f"not looked at: documents of more than {_MOST_HASHED / 1e6:.0f} MB would have to be hashed"
        found = find_documents(recipe.sources, recipe.documents, recipe.prepare.files, fetch=False)
        return {"base": base, "documents": found}, ""
    except RecipeError as error:
        return None, f"not looked at: {error.problems[0].path} is not there"


def _documents(recipe: Recipe) -> Iterator[Path]:
    for name, source in recipe.sources.items():
        if source.path is not None:
            yield from find_files(recipe.documents, source.path)
        elif source.hub is not None:
            yield from (file.path for file in find_hub_files(name, source.hub, fetch=False) if file.path is not None)


def _look(
    recipe: Recipe, name: str, start: Mapping[str, Artifact], done: dict[str, Artifact], root: Path
) -> StageState:
    inputs = _inputs(recipe, name, start, done)
    if inputs is None or not any(root.glob(f"{name}-*")):
        return StageState(name, "to run")
    module, stage_name, config_name = _MODULES[name]
    imported = import_module(module)
    stage: Stage = getattr(imported, stage_name)
    config = identity(recipe, getattr(imported, config_name))
    found = find(stage, config, root=root, inputs=inputs)
    if found is not None:
        done[name] = found
        return StageState(name, "cached", found.path.name)
    partial = root / f"{name}-{stage_key(stage, config, inputs)}.partial"
    step = _step(recipe, name, partial) if name in recipe.stages else None
    note = "" if step is not None else _left(name, partial)
    return StageState(name, "to run" if step is None and not note else "resumable", note, step)


def _inputs(
    recipe: Recipe, name: str, start: Mapping[str, Artifact], done: Mapping[str, Artifact]
) -> dict[str, Artifact] | None:
    """What `train.run` hands to the stage; None where one of them is not finished."""
    if name == "prepare":
        return dict(start)
    if name == "export":
        wanted = {"prepared": "prepare", "checkpoint": "merge", "scores": "score", "proof": "proof"}
        ready = all(stage in done for stage in wanted.values())
        return {given: done[stage] for given, stage in wanted.items()} if ready else None
    trained = list(recipe.stages)
    before = trained[: trained.index(name)] if name in trained else trained
    if name == "pairs":
        before = trained[: trained.index("dpo")]
    wanted = {"prepared": "prepare"} if name != "merge" else {}
    if name in ("cpt", "sft"):
        wanted |= {"start": before[-1]} if before else {}
    else:
        wanted |= {"adapter": before[-1]}
    wanted |= {"preferences": "pairs"} if name == "dpo" else {}
    wanted |= {"bases": "bases"} if name == "merge" and recipe.method.bnb is not None else {}
    wanted |= {"checkpoint": "merge"} if name in ("score", "proof", "handoff") else {}
    wanted |= {"sft": "sft"} if name == "score" and "dpo" in recipe.stages else {}
    wanted |= {"scores": "score", "proof": "proof"} if name == "handoff" else {}
    wanted |= {"exported": "export"} if name == "handoff" and recipe.export else {}
    if not all(stage in done for stage in wanted.values()):
        return None
    return {"base": start["base"]} | {given: done[stage] for given, stage in wanted.items()}


def _left(name: str, partial: Path) -> str:
    """What else a stopped attempt left to go on from, '' for nothing."""
    if (partial / ".finished.json").exists():
        return "trained, not yet published"
    if name == "merge":
        try:
            state = json.loads((partial / ".merge.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        return f"{len(state['shards'])} files merged"
    if name == "export":
        made = sum(path.is_dir() for scheme in ("w4a16", "w8a8") for path in partial.glob(scheme))
        return f"{made} models quantised" if made else ""
    if name == "score" and (partial / ".books.json").exists():
        books = [Path(book) for book in json.loads((partial / ".books.json").read_text(encoding="utf-8"))]
        kept = sum(book.read_bytes().count(b"\n") - 1 for book in books if book.exists())
        return f"{kept} answers kept" if kept > 0 else ""
    if name in _KEPT:
        lines = sum(file.read_bytes().count(b"\n") for file in partial.glob(_KEPT[name]))
        return f"{lines} batches of answers kept" if lines else ""
    return ""


def _step(recipe: Recipe, name: str, partial: Path) -> int | None:
    """Step of the newest sealed checkpoint of this machine's layout. The run checks its hashes as well."""
    machine, section = recipe.machine, getattr(recipe, name)
    share = section.batch_size // machine.batches
    each = min(machine.per_device_batch_size or 1, share)
    mine = {"world": machine.processes, "per_device": each, "accumulation": share // each, "kind": machine.layout}
    steps = []
    for marker in partial.glob(f".checkpoints/{resume.PREFIX}*/{resume.COMPLETE}"):
        try:
            sealed: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if all(sealed["layout"].get(key) == value for key, value in mine.items()):
            steps.append(int(sealed["step"]))
    return max(steps, default=None)


def _counted(recipe: Recipe, done: Mapping[str, Artifact]) -> dict[str, Counted]:
    """Stage -> rows, tokens and the longest row, from the facts of PREPARE and PAIRS."""
    if "prepare" not in done:
        return {}
    facts = done["prepare"].facts
    tokens, text = facts["tokens"], facts["text_tokens"]
    counted = {"sft": Counted(facts["rows"]["train"], tokens["train"], facts["longest"], tokens["valid"])}
    if "text_rows" in facts:
        counted["cpt"] = Counted(facts["text_rows"]["train"], text["train"], None, text["valid"])
    if "pairs" in done:
        pairs = done["pairs"].facts
        counted["dpo"] = Counted(pairs["pairs"] - pairs["held_out"], None, None)
    return {name: counts for name, counts in counted.items() if name in recipe.stages}
