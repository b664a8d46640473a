"""report.json: everything the report says, gathered once from the artifacts of a run (report.schema.json describes it).

Only four things stand in no artifact and are handed in: the resolved recipe, what was typed, the environment and the
digests of the documents. So the same artifacts give the same report.json, today or in a year.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact
from finetune.config.evaluation import Gates
from finetune.gates import evaluate_gates, of_these_weights, vetoes, weights_of
from finetune.report import samples, verdict

SCHEMA_VERSION = "1"
SYSTEMS = ("base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline", "tuned")
"""Those that a task always names, null where they were not asked; others (`sft`, `merged`) only where they are."""
MEASURED = ("modes", "consistency", "context", "leaks", "harness")
"""Parts of scores.json that a recipe has to ask for: handed on where they are."""


def collect(
    recipe: Mapping[str, Any],
    *,
    base_digest: str,
    prepared: Artifact,
    adapters: Sequence[Artifact],
    scores: Artifact,
    proof: Artifact,
    stages: Sequence[Artifact],
    command: str,
    environment: Mapping[str, Any],
    documents: Mapping[str, Mapping[str, str]],
    exported: Artifact | None = None,
    latency: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Assemble report.json.

    `recipe` is the resolved recipe as a dict; `adapters` are the training stages' outputs in order, those that are at
    hand; `stages` all finished stages in the order in which they ran; `documents` maps source -> file -> sha256;
    `latency` is latency.json.
    """
    scored = _read(scores, "scores.json")
    parity = _read(proof, "parity.json")
    language, privacy = str(recipe["language"]), str(recipe["privacy"]["samples"])
    hide = partial(samples.shown_id, privacy=privacy, tasks=list(recipe["tasks"]))
    limits = Gates.model_validate(recipe["gates"])
    quantised = judge(exported, limits)
    tasks = [_beside(_task(task, recipe, privacy, hide), quantised) for task in scored["tasks"]]
    merged = next((weights_of(stage.manifest["files"]) for stage in stages if stage.stage == "merge"), {})
    latency = of_these_weights(latency, merged)
    main_task = str(verdict.main_task(tasks)["name"])
    gates = evaluate_gates(limits, {**scored, "latency": latency}, parity, main_task=main_task)
    accepted_by, reason = recipe["handoff"]["accepted_by"], recipe["handoff"]["reason"]
    status = verdict.decide(gates, accepted_by)
    rows = samples.join(prepared, scores)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe["name"],
        "title": recipe["title"],
        "language": language,
        "model": {
            "name": recipe["model"]["name"],
            "note": recipe["model"]["note"],
            "licence": recipe["model"]["licence"],
            "digest": base_digest,
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
        "parity": samples.hide_ids(parity, hide),
        **({"prompting": _prompting(scored["prompting"], hide)} if "prompting" in scored else {}),
        **{name: scored[name] for name in MEASURED if scored.get(name) is not None},
        **({"latency": latency} if latency else {}),
        **({"export": samples.hide_ids(quantised, hide)} if quantised else {}),
        "privacy": privacy,
        "samples": samples.hide_ids(samples.show(rows, privacy), hide),
        "outcomes": samples.count_outcomes(rows),
        "curves": {adapter.stage: read_curve(adapter.file("log.jsonl")) for adapter in adapters},
        "ledger": _read(prepared, "ledger.json"),
        "rejects_examples": samples.hide_ids(_rejects(prepared), hide),
        "timings": {stage.stage: stage.manifest["seconds"] for stage in stages},
        "cost": _cost(recipe, stages),
        "environment": dict(environment),
        "documents": {source: dict(files) for source, files in sorted(documents.items())},
        "lineage": [_entry(stage) for stage in stages],
        "command": command,
        "config": dict(recipe),
    }


def judge(exported: Artifact | None, limits: Gates) -> dict[str, dict[str, Any]]:
    """export.json with `vetoed` beside each scheme: why it is not handed over, None where it is."""
    if exported is None:
        return {}
    found = _read(exported, "export.json")
    judged = vetoes(limits, found)
    return {scheme: {**entry, "vetoed": judged[scheme]} for scheme, entry in sorted(found.items())}


def command_line(recipe: Mapping[str, Any], words: Sequence[str]) -> str:
    """What was typed (without folders of that machine); for a run made by other means, the two names at least."""
    typed = words or (f"recipe={recipe['name']}", f"model={recipe['model']['key']}")
    return shlex.join(["accelerate", "launch", "finetune/train.py", *typed])


def read_curve(log: Path) -> list[dict[str, Any]]:
    """[{step, loss?, eval_loss?, spikes?}] from a training stage's log.jsonl; other columns stay in the artifact."""
    found = []
    for row in samples.lines(log):
        point = {name: row[name] for name in ("step", "loss", "eval_loss") if row.get(name) is not None}
        if row.get("spikes"):
            point["spikes"] = [{"step": spike["step"], "what": spike["what"]} for spike in row["spikes"]]
        if len(point) > 1:
            found.append(point)
    return found


def _task(
    task: Mapping[str, Any], recipe: Mapping[str, Any], privacy: str, hide: Callable[[str], str]
) -> dict[str, Any]:
    stated = recipe["tasks"][task["name"]]
    made = {**dict.fromkeys(SYSTEMS), **task, "title": stated["title"], "main": stated["main"]}
    if seen := task.get("contamination"):
        from finetune.score.contamination import shown

        told = shown(seen, privacy)
        overlap = [{**one, "id": hide(one["id"]), "source": hide(one["source"])} for one in told["overlap"]]
        made["contamination"] = {**told, "overlap": overlap}
    return made


def _beside(task: dict[str, Any], quantised: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The task with the quantised models among its systems, where EXPORT asked them its rows."""
    own = {scheme: one["tasks"][task["name"]] for scheme, one in quantised.items() if task["name"] in one["tasks"]}
    differences = {
        scheme: {"difference": one["loss"], "ci95": one["ci95"], **({"p": one["p"]} if "p" in one else {})}
        for scheme, one in own.items()
    }
    scores = {scheme: one["quantised"] for scheme, one in own.items()}
    return {**task, **scores, "differences": {**task["differences"], **differences}}


def _prompting(told: Mapping[str, Any], hide: Callable[[str], str]) -> dict[str, Any]:
    return {**told, "shots": {task: [hide(name) for name in names] for task, names in told["shots"].items()}}


def _rejects(prepared: Artifact, each: int = 2) -> list[dict[str, Any]]:
    """A few rejected rows for every step and reason: where they stood and why, never what was in them."""
    seen: Counter[tuple[str, str]] = Counter()
    examples = []
    for row in samples.lines(prepared.file("rejects.jsonl")):
        key = (str(row["step"]), str(row["reason"]))
        seen[key] += 1
        if seen[key] <= each:
            examples.append({name: row[name] for name in ("source", "line", "id", "step", "reason")})
    return examples


def _cost(recipe: Mapping[str, Any], stages: Sequence[Artifact]) -> dict[str, Any] | None:
    """GPU hours and money of each stage, all GPUs of the machine being paid for while it ran; None without a price."""
    machine = recipe.get("machine") or {}
    price = machine.get("usd_per_gpu_hour")
    if price is None:
        return None
    gpus = int(machine.get("processes") or 1)
    hours = {stage.stage: stage.manifest["seconds"] / 3600 * gpus for stage in stages}
    return {
        "usd_per_gpu_hour": price,
        "gpus": gpus,
        "gpu_hours": hours,
        "usd": {name: value * price for name, value in hours.items()},
        "usd_total": sum(hours.values()) * price,
    }


def _entry(stage: Artifact) -> dict[str, Any]:
    manifest = stage.manifest
    return {
        "stage": stage.stage,
        "key": manifest["key"],
        "version": manifest["version"],
        "digest": stage.digest,
        "inputs": dict(manifest["inputs"]),
        "files": dict(manifest["files"]),
        "seconds": manifest["seconds"],
        "made": manifest.get("made"),
    }


def _read(artifact: Artifact, name: str) -> Any:
    return json.loads(artifact.file(name).read_text(encoding="utf-8"))
