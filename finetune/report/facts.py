"""report.json: everything the report says, gathered once from the artifacts of a run (schema: docs/report.md)."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from finetune.artifacts import Artifact
from finetune.corpus.redact import RECOGNISERS, redact_texts
from finetune.report import verdict

SCHEMA_VERSION = "1"
SYSTEMS = ("base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline", "tuned")
SHOWN = ("base_zero_shot", "base_few_shot", "tuned")
OUTCOMES = ("learned", "lost", "same", "wrong")
RIGHT = 0.5
_EVEN = 1e-9
Outcome = Literal["learned", "lost", "same", "wrong"]


def collect(
    recipe: Mapping[str, Any],
    *,
    base: Artifact,
    prepared: Artifact,
    adapters: Sequence[Artifact],
    scores: Artifact,
    checkpoint: Artifact,
    proof: Artifact,
    gates: Sequence[Mapping[str, Any]],
    run_facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Assemble report.json.

    `recipe` is the resolved recipe as a dict; `adapters` are the training stages' outputs in order, those that are
    at hand; `gates` comes from finetune.gates. `run_facts` holds what no artifact knows: timings, environment,
    command, and curves of stages whose artifact is not passed.
    """
    scored = json.loads(scores.file("scores.json").read_text(encoding="utf-8"))
    parity = json.loads(proof.file("parity.json").read_text(encoding="utf-8"))
    language = str(recipe["language"])
    tasks = [_with_title(task, recipe) for task in scored["tasks"]]
    accepted_by, reason = recipe["handoff"]["accepted_by"], recipe["handoff"]["reason"]
    status = verdict.decide(gates, accepted_by)
    samples = _samples(prepared, scores)
    curves = {adapter.stage: read_curve(adapter.file("log.jsonl")) for adapter in adapters}
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe["name"],
        "title": recipe["title"],
        "language": language,
        "model": {
            "name": recipe["model"]["name"],
            "note": recipe["model"]["note"],
            "licence": recipe["model"]["licence"],
            "digest": base.digest,
            "method": recipe["method"]["name"],
            "stages": list(recipe["stages"]),
        },
        "verdict": {
            "passed": status == "pass",
            "status": status,
            "accepted_by": accepted_by if status == "accepted" else None,
            "reason": reason if status == "accepted" else None,
            "sentence": verdict.sentence(tasks, language),
            "gates": verdict.summary(gates, language),
        },
        "tasks": tasks,
        "general": scored["general"],
        "gates": [dict(gate) for gate in gates],
        "parity": parity,
        "privacy": recipe["privacy"]["samples"],
        "samples": show(samples, recipe["privacy"]["samples"]),
        "outcomes": count_outcomes(samples),
        "curves": {**curves, **run_facts.get("curves", {})},
        "ledger": json.loads(prepared.file("ledger.json").read_text(encoding="utf-8")),
        "rejects_examples": _rejects(prepared),
        "timings": dict(run_facts["timings"]),
        "environment": dict(run_facts["environment"]),
        "lineage": _lineage([prepared, *adapters, scores, checkpoint, proof]),
        "command": _command(recipe, run_facts.get("words") or ()),
        "config": dict(recipe),
    }


def outcome(base: float | None, tuned: float | None) -> Outcome:
    """What training did to one row: compare the tuned score with the base model's, then ask whether both are right."""
    before, after = base or 0.0, tuned or 0.0
    if abs(after - before) > _EVEN:
        return "learned" if after > before else "lost"
    return "same" if after >= RIGHT else "wrong"


def count_outcomes(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Task -> outcome -> rows, with every outcome present."""
    counts = Counter((str(row["task"]), str(row["outcome"])) for row in samples)
    tasks = dict.fromkeys(task for task, _ in counts)
    return {task: {name: counts[task, name] for name in OUTCOMES} for task in tasks}


def show(samples: Sequence[Mapping[str, Any]], privacy: str) -> list[dict[str, Any]]:
    """The rows as `privacy.samples` lets them be shown: none at all, with personal data replaced, or as they are.

    Every kind of personal data that we know is replaced, whatever the recipe asked of PREPARE: a model may write an
    address that was never in its data.
    """
    if privacy == "none":
        return []
    if privacy == "full":
        return [dict(row) for row in samples]
    kinds = sorted({recogniser.kind for recogniser in RECOGNISERS})
    shown = []
    for row in samples:
        names = [name for name in ("prompt", "gold", *SHOWN) if row.get(name) is not None]
        texts, _ = redact_texts([str(row[name]) for name in names], kinds)
        shown.append({**row, **dict(zip(names, texts, strict=True))})
    return shown


def read_curve(log: Path) -> list[dict[str, Any]]:
    """[{step, loss?, eval_loss?}] from a training stage's log.jsonl; other columns stay in the artifact."""
    keep = ("step", "loss", "eval_loss")
    rows = [{key: row[key] for key in keep if row.get(key) is not None} for row in _lines(log)]
    return [row for row in rows if len(row) > 1]


def _with_title(task: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    stated = recipe["tasks"][task["name"]]
    return {**dict.fromkeys(SYSTEMS), **task, "title": stated["title"], "main": stated["main"]}


def _samples(prepared: Artifact, scores: Artifact) -> list[dict[str, Any]]:
    """One row for each evaluated prompt with the answers of base and tuned side by side, in the order of test.jsonl."""
    prompts = {row["id"]: row["messages"] for row in _lines(prepared.file("test.jsonl"))}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for answer in _lines(scores.file("answers.jsonl")):
        if answer["system"] not in SHOWN:
            continue
        key = (answer["task"], answer["id"])
        row = rows.setdefault(key, {
            "task": answer["task"], "id": answer["id"], "prompt": prompts[answer["id"]][-2]["content"],
            "gold": answer["gold"],
        })
        row[answer["system"]] = answer["answer"]
        row[f"score_{answer['system']}"] = answer["score"]
    order = {name: number for number, name in enumerate(prompts)}
    return [
        {**row, "outcome": outcome(row.get("score_base_few_shot", row.get("score_base_zero_shot")), row["score_tuned"])}
        for row in sorted(rows.values(), key=lambda row: order[row["id"]])
    ]


def _rejects(prepared: Artifact, each: int = 2) -> list[dict[str, Any]]:
    """A few rejected rows for every step and reason: where they stood and why, never what was in them."""
    seen: Counter[tuple[str, str]] = Counter()
    examples = []
    for row in _lines(prepared.file("rejects.jsonl")):
        key = (str(row["step"]), str(row["reason"]))
        seen[key] += 1
        if seen[key] <= each:
            examples.append({name: row[name] for name in ("source", "line", "id", "step", "reason")})
    return examples


def _lineage(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    return [
        {
            "stage": artifact.stage,
            "key": artifact.manifest["key"],
            "version": artifact.manifest["version"],
            "digest": artifact.digest,
            "inputs": dict(artifact.manifest["inputs"]),
        }
        for artifact in artifacts
    ]


def _command(recipe: Mapping[str, Any], words: Sequence[str]) -> str:
    """What was typed (without folders of that machine); for a run made by other means, the two names at least."""
    typed = words or (f"recipe={recipe['name']}", f"model={recipe['model']['key']}")
    return shlex.join(["accelerate", "launch", "finetune/train.py", *typed])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
