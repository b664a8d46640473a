"""Stage HANDOFF: the bundle that a serving team receives: model, adapter, report, card, lineage, checksums.

A bundle whose gates failed is not made, unless somebody accepts it by name and with a reason.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.artifacts import Artifact, Stage, clear, hash_file, read, write_whole
from finetune.config.data import Prepare, Replay, Source, Task, TextUse
from finetune.config.evaluation import Gates, Handoff, Privacy, Score
from finetune.config.model import Model
from finetune.config.recipe import TrainingStage, without_places
from finetune.config.section import Section
from finetune.config.training import Cpt, Dpo, Method, Sft
from finetune.errors import Problem, RecipeError
from finetune.gates import evaluate_gates
from finetune.handoff import card, lineage, serving
from finetune.verify import verify

Say = Callable[[str], None]


class Config(Section):
    """Everything of the recipe but where and how fast it ran."""

    name: str
    title: str
    description: str
    language: str
    licence: str
    limits: str
    stages: tuple[TrainingStage, ...]
    seed: int
    sources: dict[str, Source]
    tasks: dict[str, Task]
    text: tuple[TextUse, ...]
    general: dict[str, TextUse]
    replay: Replay | None
    prepare: Prepare
    cpt: Cpt
    sft: Sft
    dpo: Dpo
    model: Model
    method: Method
    score: Score
    gates: Gates
    privacy: Privacy
    handoff: Handoff

    @property
    def main_task(self) -> str:
        return next(name for name, task in self.tasks.items() if task.main)


def run(
    config: Mapping[str, Any], *, out: Path, base: Artifact, prepared: Artifact, adapter: Artifact, scores: Artifact,
    checkpoint: Artifact, proof: Artifact, run_facts: Mapping[str, Any], say: Say = print,
) -> dict[str, Any]:
    """Write `bundle/` into `out`. Raises RecipeError when a gate failed and nobody accepted that; the report is then
    left in `out/report/` for whoever has to decide."""
    from finetune.report import facts as report_facts
    from finetune.report import markdown, page

    settings = Config.model_validate(config)
    clear(out)
    adapters = [read(Path(path)) for path in run_facts.get("adapters", {}).values()] or [adapter]
    resolved = without_places(run_facts.get("config") or config)
    environment = run_facts.get("environment") or lineage.environment()
    scored = json.loads(scores.file("scores.json").read_text(encoding="utf-8"))
    parity = json.loads(proof.file("parity.json").read_text(encoding="utf-8"))
    gates = evaluate_gates(settings.gates, scored, parity, main_task=settings.main_task)
    facts = report_facts.collect(
        resolved, base=base, prepared=prepared, adapters=adapters, scores=scores, checkpoint=checkpoint, proof=proof,
        gates=gates, run_facts={**run_facts, "environment": environment},
    )  # fmt: skip
    papers = out / "report"
    papers.mkdir()
    write_whole(papers / "report.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_whole(papers / "report.html", page.render(facts))
    write_whole(papers / "REPORT.md", markdown.render(facts))
    _enforce(gates, settings.handoff, papers)

    bundle = out / "bundle"
    papers.rename(bundle)
    known = _place_model(checkpoint, bundle / "model")
    _place_adapter(adapter, settings.model, bundle / "adapter")
    licences = _place_licences(base, settings, bundle)
    traced = lineage.trace(
        without_places(settings.model_dump(mode="json")), base=base,
        stages=[prepared, *adapters, scores, checkpoint, proof],
        merge=json.loads(checkpoint.file("merge.json").read_text(encoding="utf-8")), environment=environment,
    )  # fmt: skip
    write_whole(bundle / "lineage.json", json.dumps(traced, indent=1, ensure_ascii=False) + "\n")
    write_whole(bundle / "config.yaml", yaml.safe_dump(resolved, allow_unicode=True, sort_keys=False))
    write_whole(bundle / "README.md", card.render(settings, facts, traced, licences))
    served = serving.script(bundle / "model", bundle / "adapter", settings.name, settings.model)
    write_whole(bundle / "serve.sh", served)
    _finish(bundle, known)
    problems = verify(bundle, say=say)
    if problems:
        raise RecipeError(problems)
    say(f"handoff: {sum(1 for path in bundle.rglob('*') if path.is_file())} files, verified")
    return {"gates": gates, "passed": all(gate["status"] == "pass" for gate in gates), "verified": True}


def _enforce(gates: Sequence[Mapping[str, Any]], accepted: Handoff, papers: Path) -> None:
    failed = [gate for gate in gates if gate["status"] != "pass"]
    if not failed or (accepted.accepted_by and accepted.reason):
        return
    raise RecipeError(
        Problem(
            f"gates.{gate['name']}", gate["limit"], f"{_measured(gate['value'])}, so nothing is handed over",
            f"read {papers / 'report.html'}, then train better or set handoff.accepted_by=NAME and handoff.reason=WHY",
        )
        for gate in failed
    )  # fmt: skip


def _measured(value: float | None) -> str:
    return "could not be measured" if value is None else f"measured {value:.4g}"


def _place_model(checkpoint: Artifact, model: Path) -> dict[str, str]:
    """Hard-link weights, copy the rest; returns the hashes that are known already."""
    source = checkpoint.file("model")
    model.mkdir()
    for path in sorted(source.iterdir()):
        _link(path, model / path.name) if path.suffix == ".safetensors" else shutil.copyfile(path, model / path.name)
    merged = json.loads(checkpoint.file("merge.json").read_text(encoding="utf-8"))
    return {f"model/{name}": digest for name, digest in merged["files"].items() if name.endswith(".safetensors")}


def _place_adapter(adapter: Artifact, model: Model, folder: Path) -> None:
    """The adapter as a server loads it beside its base: named by hub id and commit, without a path of this machine."""
    folder.mkdir()
    _link(adapter.file("adapter_model.safetensors"), folder / "adapter_model.safetensors")
    config = json.loads(adapter.file("adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": model.name, "revision": model.revision, "inference_mode": True}
    write_whole(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _place_licences(base: Artifact, settings: Config, bundle: Path) -> list[str]:
    """Licence files of the base as they came, and one list of the licences of the data."""
    folder = bundle / "LICENSES"
    folder.mkdir()
    for path in sorted(base.path.iterdir()):
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "COPYING")):
            shutil.copyfile(path, folder / f"base-{path.name}")
    lines = [f"Base model {settings.model.name}: {settings.model.licence}", f"Data as a whole: {settings.licence}", ""]
    lines += [f"Source {name}: {source.licence}" for name, source in sorted(settings.sources.items())]
    write_whole(folder / "DATA.txt", "\n".join(lines) + "\n")
    return sorted(path.name for path in folder.iterdir())


def _finish(bundle: Path, known: Mapping[str, str]) -> None:
    """Modes for any reader, then SHA256SUMS over everything else."""
    for path in bundle.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.name == "serve.sh" else 0o644)
    bundle.chmod(0o755)
    names = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    sums = [f"{known.get(name) or hash_file(bundle / name)}  {name}" for name in names]
    write_whole(bundle / "SHA256SUMS", "\n".join(sums) + "\n")
    (bundle / "SHA256SUMS").chmod(0o644)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


STAGE = Stage("handoff", 1, run)
