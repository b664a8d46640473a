"""Follows every number of a run's report.json back: to the rows of answers.jsonl, to logs and results whose hash stands
in a manifest, or to the recipe. A number that no rule explains is a fault."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from finetune.artifacts import hash_file
from finetune.config.evaluation import Gates
from finetune.gates import evaluate_gates
from finetune.report.samples import shown_id
from finetune.score.statistics import holm, mean, paired_difference

Path_ = tuple[str, ...]
_QUOTED = {  # Parts of report.json that are a file, or a part of one, of a stage: stage, file, key
    "general": ("score", "scores.json", "general"), "prompting": ("score", "scores.json", "prompting"),
    "modes": ("score", "scores.json", "modes"), "consistency": ("score", "scores.json", "consistency"),
    "context": ("score", "scores.json", "context"), "leaks": ("score", "scores.json", "leaks"),
    "harness": ("score", "scores.json", "harness"),
    "parity": ("proof", "parity.json", None),
    "ledger": ("prepare", "ledger.json", None),
}  # fmt: skip


def leaves(value: Any, at: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """(path, number) for every number below `value`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*at, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, (*at, str(number)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield at, value


class Trace:
    """A finished work folder and its report. Numbers are worked out anew; `faults` names those that differ."""

    def __init__(self, work: Path) -> None:
        self.bundle = work / "bundle"
        self.facts: dict[str, Any] = json.loads((self.bundle / "report.json").read_text(encoding="utf-8"))
        self.folders = {entry["stage"]: work / f"{entry['stage']}-{entry['key']}" for entry in self.facts["lineage"]}
        self.answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
        asked = [stage for stage in ("score", "export") if stage in self.folders]
        for row in (row for stage in asked for row in self.lines(stage, "answers.jsonl")):
            self.answers.setdefault((row["task"], row["system"]), []).append(row)
        self.scored = self.read("score", "scores.json")

    def read(self, stage: str, name: str) -> Any:
        return json.loads((self.folders[stage] / name).read_text(encoding="utf-8"))

    def lines(self, stage: str, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folders[stage] / name).read_text(encoding="utf-8").splitlines()]

    def unhashed(self) -> list[str]:
        """Files whose bytes have another hash than report, manifest and lineage.json say."""
        found = []
        traced = json.loads((self.bundle / "lineage.json").read_text(encoding="utf-8"))
        for entry, told in zip(self.facts["lineage"], traced["stages"], strict=True):
            manifest = self.read(entry["stage"], "manifest.json")
            same = entry["files"] == manifest["files"] == told["files"] and entry["digest"] == manifest["digest"]
            found += [] if same else [entry["stage"]]
            for name, digest in entry["files"].items():
                if hash_file(self.folders[entry["stage"]] / name) != digest:
                    found.append(f"{entry['stage']}/{name}")
        return found + ([] if self.facts["documents"] == traced["documents"] else ["documents"])

    def faults(self) -> list[str]:
        """One line for each number that is another than its sources give, or that has no source at all."""
        expected = dict(leaves(self.expected()))
        shown = dict(leaves(self.facts))
        strange = [(at, value) for at, value in shown.items() if at not in expected]
        found = [f"{'.'.join(at)}: nothing says where {value} is from" for at, value in strange]
        found += [f"{'.'.join(at)}: {value} is missing" for at, value in expected.items() if at not in shown]
        for at, value in shown.items():
            if at in expected and not math.isclose(value, expected[at], rel_tol=1e-12, abs_tol=1e-15):
                found.append(f"{'.'.join(at)}: {value}, but its sources give {expected[at]}")
        return found

    def expected(self) -> dict[str, Any]:
        """report.json as the sources have it, its numbers only."""
        made: dict[str, Any] = {}
        for name, (stage, file, key) in _QUOTED.items():
            content = self.read(stage, file)
            part = content if key is None else content.get(key)
            if part is not None:
                made[name] = part
        if "export" in self.folders:
            made["export"] = self.read("export", "export.json")
        config = yaml.safe_load((self.bundle / "config.yaml").read_text(encoding="utf-8"))
        main = next(task["name"] for task in self.facts["tasks"] if task["main"])
        manifests = {stage: self.read(stage, "manifest.json") for stage in self.folders}
        lineage = json.loads((self.bundle / "lineage.json").read_text(encoding="utf-8"))
        return made | {
            "config": config,
            "tasks": self.tasks(),
            "gates": evaluate_gates(
                Gates.model_validate(config["gates"]), self.scored, self.read("proof", "parity.json"), main_task=main
            ),
            "samples": self.samples(),
            "outcomes": self.outcomes(),
            "curves": {stage: self.curve(stage) for stage in config["stages"]},
            "rejects_examples": self.rejects(),
            "timings": {stage: manifest["seconds"] for stage, manifest in manifests.items()},
            "environment": lineage["environment"],
            "lineage": [
                {"version": manifest["version"], "seconds": manifest["seconds"], "made": manifest["made"]}
                for manifest in manifests.values()
            ],
        }

    def tasks(self) -> list[dict[str, Any]]:
        found = []
        for told in self.scored["tasks"]:
            rows = {system: self.answers[task, system] for task, system in self.answers if task == told["name"]}
            values = {system: [row["score"] for row in those] for system, those in rows.items()}
            means = {system: mean(each) for system, each in values.items()}
            groups = [row["group"] for row in rows["tuned"]]
            against = max(("base_zero_shot", "base_few_shot", "majority"), key=lambda name: means.get(name, -1.0))
            differences = {
                system: paired_difference(values["tuned"], each, groups)
                for system, each in values.items()
                if system != "tuned"
            }
            best = differences[against]
            found.append({
                "n": len(groups), "groups": len(set(groups)), **means,
                "difference": best.difference, "ci95": list(best.ci95),
                "standard_error": best.standard_error, "p": best.p, "smallest_effect": best.smallest_effect,
                "differences": {
                    system: {"difference": one.difference, "ci95": list(one.ci95), "p": one.p}
                    for system, one in differences.items()
                },
                # Worked out by the metrics from the same answers; their own tests hold them against other libraries.
                "details": told["details"], "contamination": told["contamination"],
            })  # fmt: skip
        for task, adjusted in zip(found, holm([task["p"] for task in found]), strict=True):
            task["p_adjusted"] = adjusted
        return found

    def samples(self) -> list[dict[str, Any]]:
        shown: dict[tuple[str, str], dict[str, Any]] = {}
        for (task, system), rows in self.answers.items():
            if system in ("base_zero_shot", "base_few_shot", "tuned"):
                for row in rows:
                    shown.setdefault((task, row["id"]), {})[f"score_{system}"] = row["score"]
        named = {(task, self.called(name)): row for (task, name), row in shown.items()}
        return [named[row["task"], row["id"]] for row in self.facts["samples"]]

    def called(self, name: str) -> str:
        """What report.json calls the row of this id."""
        return shown_id(name, self.facts["privacy"], list(self.facts["config"]["tasks"]))

    def outcomes(self) -> dict[str, dict[str, int]]:
        found: dict[str, Counter[str]] = {}
        for (task, system), rows in self.answers.items():
            if system != "tuned":
                continue
            before = {row["id"]: row["score"] for row in self.answers[task, "base_few_shot"]}
            found[task] = Counter(_outcome(before[row["id"]], row["score"]) for row in rows)
        names = ("learned", "lost", "same", "wrong")
        return {task: {name: counts[name] for name in names} for task, counts in found.items()}

    def curve(self, stage: str) -> list[dict[str, Any]]:
        found = []
        for row in self.lines(stage, "log.jsonl"):
            point = {name: row[name] for name in ("step", "loss", "eval_loss") if row.get(name) is not None}
            spikes = [{"step": one["step"]} for one in row.get("spikes", ())]
            if len(point) > 1 or spikes:
                found.append(point | ({"spikes": spikes} if spikes else {}))
        return found

    def rejects(self) -> list[dict[str, Any]]:
        dropped = self.lines("prepare", "rejects.jsonl")
        rows = {(row["source"], self.called(row["id"]), row["reason"]): row for row in dropped}
        told = self.facts["rejects_examples"]
        return [{"line": rows[one["source"], one["id"], one["reason"]]["line"]} for one in told]


def _outcome(before: float, after: float) -> str:
    if after != before and abs(after - before) > 1e-9:
        return "learned" if after > before else "lost"
    return "same" if after >= 0.5 else "wrong"


