"""Stage HANDOFF: the bundle that a serving team receives. docs/bundle.md says what each of its files is for.

A bundle whose gates failed is not made, unless somebody accepts it by name and with a reason. The same inputs and
`run_facts` give the same bytes on one machine with the same packages and the same commit: hardware, versions and commit
stand in the lineage and the papers made from it. The signature, random by its nature, is added after this stage.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.artifacts import Artifact, Stage, checked, read, remember, write_whole
from finetune.config.data import Replay, Source, Task, TextUse
from finetune.config.evaluation import Alerts, Gates, Privacy, Score
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.prepare import Prepare
from finetune.config.recipe import TrainingStage, without_places
from finetune.config.section import Section
from finetune.config.training import Cpt, Dpo, Method, Sft
from finetune.corpus.redact import hide_files, hide_paths, hide_words
from finetune.errors import Problem, RecipeError
from finetune.handoff import bom, card, golden, lineage, placed, rollback, serving
from finetune.verify import standalone, verify

Say = Callable[[str], None]


class Delivered(Section):
    """What HANDOFF reads of section `handoff`: the signing key changes no byte that it writes."""

    accepted_by: str | None
    reason: str | None
    alerts: Alerts
    licence_files: dict[str, str]
    signer: str | None


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
    latency: dict[str, Any] | None = None
    """What `finetune score --latency` measured: shown, and held against its gate where these weights were served."""
    gates: Gates
    privacy: Privacy
    handoff: Delivered

    @property
    def main_task(self) -> str:
        return next(name for name, task in self.tasks.items() if task.main)


def run(
    config: Mapping[str, Any], *, out: Path, base: Artifact, prepared: Artifact, adapter: Artifact, scores: Artifact,
    checkpoint: Artifact, proof: Artifact, run_facts: Mapping[str, Any], machine: Machine,
    exported: Artifact | None = None, say: Say = print,
) -> dict[str, Any]:
    """Write `bundle/` into `out`. Raises RecipeError when a gate failed and nobody accepted that; the report is then
    left in `out/report/` for whoever has to decide.

    `run_facts`, what no artifact knows: {config, adapters: {stage: folder}, stages: {stage: folder}, words,
    documents: {root, files: {source: {file: sha256}}}, previous: folder of the bundle before this one}.
    """
    from finetune.datasheet import page as datasheet
    from finetune.report import facts as report
    from finetune.report import rebuild

    settings = Config.model_validate(config)
    golden.clear_but_kept(out)
    adapters = [read(Path(path)) for path in run_facts.get("adapters", {}).values()] or [adapter]
    for read_by_report in (prepared, scores, proof, *([exported] if exported else [])):
        checked(read_by_report, rebuild.READ[read_by_report.stage])
    for whole in (*adapters, adapter, checkpoint):
        checked(whole, whole.manifest["files"])
    stages = [read(Path(path)) for path in run_facts.get("stages", {}).values()] or [
        prepared, *adapters, scores, checkpoint, proof, *([exported] if exported else [])
    ]  # fmt: skip
    resolved = hide_paths(without_places(run_facts.get("config") or config))
    environment = run_facts.get("environment") or lineage.environment()
    documents = run_facts.get("documents") or {"root": None, "files": {}}
    redact, seed = settings.prepare.redact, settings.seed
    named = hide_files(documents["files"], redact, seed)
    command = report.command_line(resolved, hide_words(run_facts.get("words") or (), redact, seed))
    facts = report.collect(
        resolved, base_digest=base.digest, prepared=prepared, adapters=adapters, scores=scores, proof=proof,
        stages=stages, exported=exported, command=command, environment=environment, documents=named,
        latency=settings.latency,
    )  # fmt: skip
    if why := facts.get("latency", {}).get("not_counted"):
        say(f"handoff: gates.latency_p95_max is not measured: score.latency_file is of {why.replace('_', ' ')}")
    quantised = facts.get("export", {})
    for scheme, found in quantised.items():
        if found["vetoed"] is not None:
            say(f"handoff: {scheme} is vetoed: {found['vetoed']}")
    papers = out / "report"
    papers.mkdir()
    rebuild.write(papers, facts)
    datasheet.write(papers, prepared, settings, documents["files"])
    _enforce(facts["gates"], settings.handoff, papers)

    bundle = out / "bundle"
    papers.rename(bundle)
    known = placed.place_model(checkpoint, bundle)
    siblings = {scheme: found for scheme, found in quantised.items() if found["vetoed"] is None}
    for scheme in siblings:
        assert exported is not None
        known |= placed.place_quantised(exported, scheme, bundle)
    known |= placed.place_adapter(adapter, settings.model, bundle)
    root = Path(documents["root"]) if documents["root"] else None
    licences = placed.place_licences(base, settings, root, bundle)
    asked = golden.write(
        bundle, settings, prepared=prepared, checkpoint=checkpoint, machine=machine, kept=out, say=say
    )
    merged = json.loads(checkpoint.file("merge.json").read_text(encoding="utf-8"))
    traced = lineage.trace(
        without_places(settings.model_dump(mode="json")), base=base, documents=named, stages=stages,
        merge=merged, bundle=bundle, golden=asked,
        environment=environment, quantised=siblings, judged=facts,
    )  # fmt: skip
    _write_json(bundle / "lineage.json", traced)
    _write_json(bundle / "bom.cdx.json", bom.build(settings, traced, facts, licences))
    write_whole(bundle / "config.yaml", yaml.safe_dump(resolved, allow_unicode=True, sort_keys=False))
    serving.write(
        bundle / "serve", name=settings.name, model=settings.model, checkpoint=bundle / "model",
        adapter=bundle / "adapter", alerts=settings.handoff.alerts,
        quantised={scheme: bundle / f"model-{scheme}" for scheme in siblings}, merge=merged,
    )  # fmt: skip
    write_whole(bundle / "README.md", card.render(settings, facts, traced, licences))
    previous = run_facts.get("previous")
    write_whole(bundle / "ROLLBACK.md", rollback.render(bundle, Path(previous) if previous else None))
    standalone.write(bundle)
    try:
        sums = placed.finish(bundle, known)
    except RecipeError:
        golden.forget(out)  # the weights may have been others when they answered
        raise
    remember(out, {f"bundle/{name}": digest for name, digest in sums.items()})
    problems = verify(bundle, say=lambda _: None)  # what it says of the signature holds only before it is signed
    if problems:
        raise RecipeError(problems)
    golden.forget(out)
    say(f"handoff: {sum(1 for path in bundle.rglob('*') if path.is_file())} files, verified")
    gates = facts["gates"]
    return {"gates": gates, "passed": all(gate["status"] == "pass" for gate in gates), "verified": True}


def _enforce(gates: Sequence[Mapping[str, Any]], accepted: Delivered, papers: Path) -> None:
    failed = [gate for gate in gates if gate["status"] == "fail"]
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
    return "measured, and not a finite number" if value is None else f"measured {value:.4g}"


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


STAGE = Stage("handoff", 5, run)
