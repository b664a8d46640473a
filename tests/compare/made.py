"""Work folders of finished runs, written by hand: manifests, scores and answers as the stages leave them."""

import json
from pathlib import Path
from typing import Any

import yaml

from finetune.artifacts import MANIFEST, Artifact, hash_file, walk

ROWS = [(f"parts/r{number}", f"g{number // 2}") for number in range(80)]


def write(work: Path, stage: str, key: str, inputs: dict[str, str], *, config: Any = None, **facts: Any) -> Artifact:
    folder = work / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {str(file.relative_to(folder)): hash_file(file) for file in walk(folder)}
    manifest = {"stage": stage, "version": 1, "key": key, "config": config or {}, "inputs": inputs, "files": files,
                "digest": f"{stage}-{key}-digest", "facts": facts, "seconds": 10.0}  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Artifact(folder, manifest)


def lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def run(
    work: Path, *, lr: float = 0.001, wrong: int = 20, privacy: str = "redacted", key: str = "1", gold: str = "hose",
    bundle: bool = True, price: float | None = None, reworded: int = 0,
) -> Path:  # fmt: skip
    """A run whose first `wrong` of 80 answers are wrong, and whose first `reworded` prompts are its own."""
    config = {
        "name": "made", "sft": {"trl": {"learning_rate": lr}, "max_steps": 4}, "privacy": {"samples": privacy},
        "model": {"name": "tiny"}, "machine": {"processes": 2, "usd_per_gpu_hour": price},
        "tasks": {"parts": {"title": "Spare parts"}},
    }  # fmt: skip
    ledger = [{"step": "cap", "source": "notes", "rows_in": 100, "rows_out": 90, "dropped": {"over test_rows": 10}}]
    (work / f"prepare-{key}").mkdir(parents=True)
    (work / f"prepare-{key}" / "ledger.json").write_text(json.dumps(ledger))
    known = {"base": "base-digest", "documents": "documents-digest"}
    prepared = write(work, "prepare", key, known, rows={"train": 200, "test": 80}, tokens={"train": 4000})
    curve = [{"step": step, "loss": 3.0 / step} for step in range(1, 4)] + [{"step": 4, "loss": 0.6, "eval_loss": 0.7}]
    lines(work / f"sft-{key}" / "log.jsonl", curve)
    trained = {"base": "base-digest", "prepared": prepared.digest}
    adapter = write(work, "sft", key, trained, config={"sft": config["sft"]}, supervised_tokens=1500, steps=4)
    inputs = {**trained, "adapter": adapter.digest}
    answers = [
        {"task": "parts", "id": name, "group": group, "system": system, "answer": text, "score": float(text == gold),
         "gold": gold, "finished": True, "prompt_sha256": f"{number}{'!' if number < reworded else ''}"}
        for system in ("base_zero_shot", "tuned")
        for number, (name, group) in enumerate(ROWS)
        for text in [f"call 555-0{number:03d} or me@firm.example" if system == "tuned" and number < wrong else gold]
    ]  # fmt: skip
    lines(work / f"score-{key}" / "answers.jsonl", answers)
    task = {"name": "parts", "title": "Parts", "metric": "exact_match", "main": True, "n": 80, "groups": 40,
            "base_zero_shot": 0.2, "tuned": 1 - wrong / 80, "difference": 0.5, "ci95": [0.4, 0.6]}  # fmt: skip
    (work / f"score-{key}" / "scores.json").write_text(json.dumps({"tasks": [task], "general": {"change": {}}}))
    scores = write(work, "score", key, inputs)
    if bundle:
        (work / f"handoff-{key}" / "bundle").mkdir(parents=True)
        (work / f"handoff-{key}" / "bundle" / "config.yaml").write_text(yaml.safe_dump(config))
        gates = [{"name": "gain_above", "value": 0.4, "limit": 0.0, "status": "pass"},
                 {"name": "latency_p95_max", "value": None, "limit": 1.2, "status": "not_measured"}]  # fmt: skip
        write(work, "handoff", key, {**inputs, "scores": scores.digest}, gates=gates)
        (work / "bundle").unlink(missing_ok=True)
        (work / "bundle").symlink_to(f"handoff-{key}/bundle")
    return work
