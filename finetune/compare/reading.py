"""Runs as they can be compared, wherever they lie: a work folder, W&B's offline files, or W&B itself."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune import artifacts
from finetune.artifacts import MANIFEST, Artifact
from finetune.errors import RecipeError
from finetune.report.samples import lines
from finetune.tracking.records import Decoded, decode, files_of
from finetune.tracking.told import COLUMNS, dropped, fingerprint, mark, numbers

TRAINING = ("cpt", "sft", "dpo")
STAGES = ("prepare", "cpt", "sft", "pairs", "dpo", "score", "bases", "merge", "proof", "export", "handoff")
GATE = ("status", "value", "limit")
SYSTEM = "tuned"
_WANDB_PATH = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+")
_COUNTED = re.compile(
    r"prepare/((?:rows|tokens|supervised_tokens|text_rows|replay|preferences|personal|dropped)/.+|rejects)"
)
_WHAT = "is neither a work folder, nor an offline run of W&B, nor entity/project/run"


@dataclass(frozen=True)
class Answer:
    """The tuned model's answer to one evaluated row."""

    id: str
    """As the run has it: W&B may have its mark only."""
    group: str
    text: str
    score: float
    gold: str
    text_mark: str
    gold_mark: str
    """Fingerprints (finetune.tracking.told): the texts themselves may be redacted."""
    prompt_mark: str | None
    """sha256 of what was asked; W&B has none."""


@dataclass
class Run:
    name: str
    """As it was typed."""
    config: dict[str, Any]
    """Dotted key -> value; without folders and secrets."""
    digests: dict[str, str] = field(default_factory=dict)
    """documents, base, prepared -> digest."""
    data: dict[str, float] = field(default_factory=dict)
    """What PREPARE counted: rows and tokens of each split, rows dropped at each step and why."""
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Training stage -> [{step, loss?, eval_loss?}]."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task -> {metric, n, <system>: score}."""
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    """Task -> mark of the row's id (finetune.tracking.told) -> answer; empty where the run keeps none."""
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Gate -> {status, value, limit}."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds of the attempt that finished."""
    supervised_tokens: dict[str, int] = field(default_factory=dict)
    """Training stage -> tokens that a loss was taken on."""


def read(name: str) -> Run:
    """The run behind a name. Raises RecipeError where there is none."""
    path = Path(name)
    if path.is_file() and path.suffix == ".wandb":
        return _from_wandb(name, [path])
    if path.is_dir():
        if any(path.glob(f"*/{MANIFEST}")):
            return _from_work(name, path)
        if files := sorted(path.glob("run-*.wandb")):
            return _from_wandb(name, files)
    elif not path.exists() and _WANDB_PATH.fullmatch(name):
        return _from_api(name)
    raise RecipeError.one("finetune compare", name, _WHAT, "name work/legal, or a folder in work/legal/wandb")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{a: {b: 1}} as {"a.b": 1}; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _from_work(name: str, work: Path) -> Run:
    """The run that finished a stage last in a work folder: what its manifests name as their inputs."""
    folders = [file.parent for file in work.glob(f"*/{MANIFEST}") if not file.parent.name.endswith(".partial")]
    found = [artifacts.read(folder) for folder in folders]
    if not found:
        raise RecipeError.one("finetune compare", name, "holds no finished stage", "finish a run in it first")
    stages = _chain(found, _newest(work, found))
    run = Run(name, _config_of(work, stages))
    for stage, artifact in stages.items():
        run.seconds[stage] = float(artifact.manifest.get("seconds", 0.0))
        if stage in TRAINING:
            run.curves[stage] = _curve(lines(artifact.file("log.jsonl")))
            run.supervised_tokens[stage] = int(artifact.facts["supervised_tokens"])
    if "prepare" in stages:
        prepared = stages["prepare"]
        run.digests = {**prepared.manifest["inputs"], "prepared": prepared.digest}
        ledger = json.loads(prepared.file("ledger.json").read_text(encoding="utf-8"))
        run.data = _counted(numbers(prepared.facts, "prepare") | dropped(ledger))
    if "score" in stages:
        scores = json.loads(stages["score"].file("scores.json").read_text(encoding="utf-8"))
        run.tasks = {task["name"]: task for task in scores["tasks"]}
        for row in lines(stages["score"].file("answers.jsonl")):
            if row["system"] == SYSTEM:
                run.answers.setdefault(row["task"], {})[mark(row["id"])] = _answer(row)
    run.gates = {gate["name"]: {key: gate[key] for key in GATE} for gate in _gates(work, stages)}
    return run


def _newest(work: Path, found: Sequence[Artifact]) -> Artifact:
    """What finished last. A bundle that was published again is newer than its folder tells: its link says so."""
    newest = max(found, key=lambda artifact: (artifact.path / MANIFEST).stat().st_mtime_ns)
    link = work / "bundle"
    if newest.stage == "handoff" and link.is_symlink():
        return next((one for one in found if one.path.resolve() == link.resolve().parent), newest)
    return newest


def _chain(found: Sequence[Artifact], newest: Artifact) -> dict[str, Artifact]:
    """Stage -> artifact that `newest` was made from, itself included, and SCORE of the same adapter."""
    by_digest = {artifact.digest: artifact for artifact in found}
    chain: dict[str, Artifact] = {}
    open_ones = [newest]
    while open_ones:
        artifact = open_ones.pop()
        chain.setdefault(artifact.stage, artifact)
        open_ones += [by_digest[digest] for digest in artifact.manifest["inputs"].values() if digest in by_digest]
    adapter = newest.manifest["inputs"].get("adapter")
    for artifact in found:
        if adapter and artifact.stage == "score" and artifact.manifest["inputs"]["adapter"] == adapter:
            chain.setdefault("score", artifact)
    return {stage: chain[stage] for stage in STAGES if stage in chain}


def _config_of(work: Path, stages: Mapping[str, Artifact]) -> dict[str, Any]:
    """The resolved recipe as its bundle shows it; of a run without one, what its stages read of it."""
    if "handoff" in stages:
        whole = yaml.safe_load((stages["handoff"].path / "bundle" / "config.yaml").read_text(encoding="utf-8"))
        return flat(whole)
    known: dict[str, Any] = {}
    for artifact in stages.values():
        known |= flat(artifact.manifest["config"])
    return known


def _gates(work: Path, stages: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """As HANDOFF judged them; a run that failed one left them in the report for whoever has to decide."""
    if "handoff" in stages:
        return list(stages["handoff"].facts["gates"])
    scored = stages["score"].manifest["digest"] if "score" in stages else None
    left = [(file.stat().st_mtime_ns, str(file), file) for file in work.glob("handoff-*.partial/report/report.json")]
    for *_, file in sorted(left, reverse=True):
        report = json.loads(file.read_text(encoding="utf-8"))
        if any(entry["digest"] == scored for entry in report["lineage"]):
            return list(report["gates"])
    return []


def _from_wandb(name: str, files: list[Path]) -> Run:
    """Of one file its whole run: a run that was stopped and started again has several."""
    run_id = files[0].stem.removeprefix("run-")
    files = files_of(files[0].resolve().parent.parent, run_id) or files
    decoded = decode(files)
    if not decoded.id:
        raise RecipeError.one("finetune compare", name, "holds no run", "name another .wandb file")
    run = _from_decoded(name, decoded)
    # A run that was evaluated again has a table of each time; its summary names the last one.
    last = decoded.summary.get("score/samples", {}).get("path", "")
    for table in [found for file in files if last and (found := file.parent / "files" / last).is_file()][-1:]:
        for values in json.loads(table.read_text(encoding="utf-8"))["data"]:
            row = dict(zip(COLUMNS, values, strict=True))
            if row["system"] == SYSTEM:
                run.answers.setdefault(row["task"], {})[mark(row["id"])] = _answer(row)
    return run


def _from_api(name: str) -> Run:
    """A run on a W&B server: all but its answers, which stay there."""
    import wandb
    from wandb.errors import Error

    try:
        run = wandb.Api(timeout=20).run(name)
        entity_project = "/".join(name.split("/")[:2])
        decoded = Decoded(id=run.id, project=entity_project, group=run.group or "", config=dict(run.config))
        for at, line in enumerate(run.scan_history()):
            decoded.history[int(line.get("_step", at))] = line
        decoded.summary = dict(run.summary.items())
        for artifact in run.logged_artifacts():
            known = {"type": artifact.type, "metadata": artifact.metadata, "files": {}}
            decoded.artifacts[artifact.name.partition(":")[0]] = known
    except (Error, ValueError, OSError) as error:
        raise RecipeError.one(
            "finetune compare", name, f"cannot be read from W&B ({' '.join(str(error).split())[:200]})",
            "go online and `wandb login`, or name a work folder or an offline run",
        ) from error
    return _from_decoded(name, decoded)


def _from_decoded(name: str, decoded: Decoded) -> Run:
    told = decoded.summary
    run = Run(name, flat(decoded.config))
    for logged in decoded.artifacts.values():
        if logged["type"] == "prepare":
            run.digests = {**logged["metadata"]["inputs"], "prepared": logged["metadata"]["digest"]}
    run.data = _counted(told)
    for stage in TRAINING:
        own = [
            {key.partition("/")[2]: value for key, value in line.items() if key.startswith(f"{stage}/")}
            for _, line in sorted(decoded.history.items())
        ]
        if curve := _curve(line for line in own if line):
            run.curves[stage] = curve
        if f"{stage}/supervised_tokens" in told:
            run.supervised_tokens[stage] = int(told[f"{stage}/supervised_tokens"])
    run.seconds = {stage: float(told[f"{stage}/seconds"]) for stage in STAGES if f"{stage}/seconds" in told}
    for key, value in told.items():
        if (found := re.fullmatch(r"score/([^/]+)/([^/]+)", key)) and f"score/{found[1]}/metric" in told:
            run.tasks.setdefault(found[1], {"name": found[1]})[found[2]] = value
        elif found := re.fullmatch(r"gates/([^/]+)/([^/]+)", key):
            run.gates.setdefault(found[1], dict.fromkeys(GATE))[found[2]] = value
    return run


def _counted(told: Mapping[str, Any]) -> dict[str, float]:
    """What PREPARE counted, of all that was told of it."""
    return {match[1]: value for key, value in told.items() if (match := _COUNTED.fullmatch(key))}


def _curve(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    keep = ("step", "loss", "eval_loss")
    kept = [{key: row[key] for key in keep if row.get(key) is not None} for row in rows]
    return [row for row in kept if len(row) > 1]


def _answer(row: Mapping[str, Any]) -> Answer:
    marks = [row.get(f"{name}_sha256") or fingerprint(row[name]) for name in ("answer", "gold")]
    score, asked = float(row["score"]), row.get("prompt_sha256")
    return Answer(row["id"], row["group"], row["answer"], score, row["gold"], marks[0], marks[1], asked)
