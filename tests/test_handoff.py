"""HANDOFF: the bundle is complete, verified, free of this machine's paths, and not made when a gate failed."""

import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from checkpoints import make_adapter, make_base

from finetune import artifacts, handoff, merge
from finetune.artifacts import Artifact, Stage, hash_file
from finetune.config import load
from finetune.corpus.read import find_documents
from finetune.corpus.redact import redact_key
from finetune.errors import RecipeError
from finetune.handoff.publish import publish as hand_out
from finetune.train import identity
from finetune.verify import verify
from finetune.verify.bundle import read_sums
from tests.datasheet.made import collected

OTHERS = ("base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline")


def quiet(_: str) -> None:
    pass


def publish(root: Path, name: str, fill, **inputs: Artifact) -> Artifact:
    """A finished artifact whose files `fill(out)` wrote."""

    def run(_config: Any, *, out: Path, **_inputs: Any) -> dict[str, Any]:
        fill(out)
        return {}

    return artifacts.build(Stage(name, 1, run), {}, root=root, inputs=inputs, say=quiet)


def scores_of(main: str, *, low: float) -> dict[str, Any]:
    task = {
        "name": main, "metric": "rouge_l", "n": 4, "base_zero_shot": 0.1, "base_few_shot": 0.2, "majority": 0.1,
        "linear_baseline": 0.2, "nearest_baseline": 0.2, "tuned": 0.5, "difference": 0.3, "ci95": [low, 0.4],
        "against": "base_few_shot",
        "differences": {key: {"difference": 0.3, "ci95": [low, 0.4]} for key in OTHERS},
    }  # fmt: skip
    general = {"perplexity_base": {"a": 20.0}, "perplexity_tuned": {"a": 20.2}, "change": {"a": 0.01}}
    return {"tasks": [task], "general": general}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """Everything that HANDOFF receives, small but of the real formats."""
    root = tmp_path_factory.mktemp("work")
    recipe = load(["recipe=legal", "model=smollm2_135m", "machine=cpu", "machine.threads=1"])
    tasks = {name: task for name, task in recipe.tasks.items() if task.main}
    recipe = recipe.model_copy(update={"tasks": tasks})
    main = recipe.main_task
    make_base(root / "base", kind="llama", tied=True)
    (root / "base/LICENSE").write_text("Apache License 2.0")
    base = Artifact(root / "base", {"stage": "base", "digest": "b" * 64, "facts": {}})
    rows = [
        {"id": f"r{n}", "task": main, "source": "s", "line": n, "group": f"g{n}", "mode": "plain", "tools": [],
         "messages": [{"role": "user", "content": f"Question {n} of anna@example.com?"},
                      {"role": "assistant", "content": "Yes"}]}
        for n in range(4)
    ]  # fmt: skip

    def prepared(out: Path) -> None:
        (out / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (out / "rejects.jsonl").write_text("")
        ledger = [{"step": "read", "source": "s", "rows_in": 4, "rows_out": 4, "dropped": {}}]
        (out / "ledger.json").write_text(json.dumps(ledger))
        (out / "datasheet.json").write_text(json.dumps(collected()))

    def adapter(out: Path) -> None:
        make_adapter(root / "base", out)
        (out / "log.jsonl").write_text('{"step": 1, "loss": 2.0, "lr": 0.001}\n{"step": 2, "eval_loss": 1.5}\n')

    def scores(out: Path) -> None:
        (out / "scores.json").write_text(json.dumps(scores_of(main, low=0.1)))
        answers = [
            {"task": main, "id": row["id"], "group": row["group"], "system": system, "prompt_sha256": "0" * 64,
             "answer": "Yes", "score": 1.0, "gold": "Yes"}
            for row in rows for system in ("base_zero_shot", "base_few_shot", "tuned")
        ]  # fmt: skip
        (out / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))

    def checkpoint(out: Path) -> None:
        config = {"model": recipe.model.model_dump(), "method": recipe.method.model_dump()}
        merge.run(config, out=out, base=base, adapter=stages["adapter"], say=quiet)

    def proof(out: Path) -> None:
        parity = {"kl_mean": 2e-4, "kl_max": 1e-3, "top1": 0.99, "n_positions": 100, "n_prompts": 4,
                  "dtype": "bfloat16", "near_ties": [], "disagreements": [], "greedy_equal_float32": True,
                  "kl_max_at": {"id": "r1", "position": 0}, "full_prompts": 200, "modes": {}, "bases": []}  # fmt: skip
        (out / "parity.json").write_text(json.dumps(parity))

    stages: dict[str, Artifact] = {"base": base}
    stages["prepared"] = publish(root, "prepare", prepared)
    stages["adapter"] = publish(root, "sft", adapter, prepared=stages["prepared"])
    stages["scores"] = publish(root, "score", scores, adapter=stages["adapter"])
    stages["checkpoint"] = publish(root, "merge", checkpoint, adapter=stages["adapter"])
    stages["proof"] = publish(root, "proof", proof, checkpoint=stages["checkpoint"])
    documents = find_documents(recipe.sources, recipe.documents)
    facts = {
        "adapters": {"sft": str(stages["adapter"].path)},
        "documents": {"root": str(recipe.documents), "files": documents.facts["sources"]},
        "config": recipe.model_dump(mode="json"),
    }
    return SimpleNamespace(root=root, recipe=recipe, stages=stages, facts=facts)


def hand_over(
    made: SimpleNamespace, out: Path, *, low: float = 0.1, run_facts: dict[str, Any] | None = None, **changes: Any
) -> Path:
    out.mkdir(exist_ok=True)
    stages = dict(made.stages)
    if low != 0.1:
        folder = out.with_name(out.name + "-scores")
        shutil.copytree(stages["scores"].path, folder)
        (folder / "scores.json").write_text(json.dumps(scores_of(made.recipe.main_task, low=low)))
        files = {**stages["scores"].manifest["files"], "scores.json": hash_file(folder / "scores.json")}
        stages["scores"] = Artifact(folder, {**stages["scores"].manifest, "files": files})
    recipe = made.recipe.model_copy(update=changes)
    facts = {**made.facts, **(run_facts or {}), "config": recipe.model_dump(mode="json")}
    live = {"run_facts": facts, "machine": recipe.machine, "say": quiet}
    handoff.run(identity(recipe, handoff.Config), out=out, **live, **stages)
    return out / "bundle"


@pytest.fixture(scope="module")
def bundle(made) -> Path:
    return hand_over(made, made.root / "handoff")


def test_the_bundle_is_complete_and_gives_no_alarm(bundle):
    assert {path.name for path in bundle.iterdir()} == {
        "model", "adapter", "LICENSES", "report.html", "report.json", "REPORT.md", "README.md", "lineage.json",
        "config.yaml", "serve", "golden.jsonl", "bom.cdx.json", "ROLLBACK.md", "verify.pyz", "SHA256SUMS",
        "datasheet.html", "datasheet.json",
    }  # fmt: skip
    assert verify(bundle, deep=True, say=quiet) == []


def test_checksums_hold_for_every_file_by_the_usual_tool(bundle):
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert done.stdout.count(": OK") == len(files) - 1


def test_weights_are_linked_not_copied(bundle, made):
    ours = (bundle / "model/model.safetensors").stat()
    assert ours.st_ino == made.stages["checkpoint"].file("model/model.safetensors").stat().st_ino


def test_no_path_name_or_person_of_this_machine_stands_in_any_text_of_the_bundle(bundle, made):
    user, host = getpass.getuser(), re.compile(rf"(?<![\w-]){re.escape(socket.gethostname())}(?![\w-])")
    words = {str(made.root), str(Path.cwd()), str(Path.home()), sys.prefix, f"{user}@", f"~{user}", "anna@example.com"}
    for path in bundle.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not [word for word in words if word in text], path
            foreign = path.parent.name == "LICENSES" or path.name == "tokenizer.json"
            assert foreign or not host.search(text), path
    adapter = json.loads((bundle / "adapter/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == made.recipe.model.name


def test_a_person_in_the_name_of_a_file_stands_nowhere_in_the_bundle_and_the_file_is_proved_still(made, tmp_path):
    """A file called after a person stood in lineage.json and in the bill of materials, whatever the rows were told."""
    person, digest = "john.smith@example.com", "c" * 64
    name, source = f"letters/{person}.txt", next(iter(made.recipe.sources))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / f"{person}.txt").write_text("Terms")
    recipe = made.recipe
    sources = {**recipe.sources, source: recipe.sources[source].model_copy(update={"path": name})}
    texts = {source: f"{person}.txt"}
    told = {
        "documents": {"root": str(tmp_path / "docs"), "files": {source: {name: digest}}},
        "words": ["recipe=legal", f"++sources.{source}.path={name}"],
    }
    handed = recipe.handoff.model_copy(update={"licence_files": texts})
    bundle = hand_over(made, tmp_path / "out", run_facts=told, sources=sources, handoff=handed)
    for path in bundle.rglob("*"):
        assert person not in path.name
        assert not path.is_file() or person.encode() not in path.read_bytes(), path
    hidden = redact_key(name, recipe.prepare.redact, recipe.seed)
    assert json.loads((bundle / "lineage.json").read_text())["documents"][source] == {hidden: digest}
    assert yaml.safe_load((bundle / "config.yaml").read_text())["sources"][source]["path"] == hidden
    assert verify(bundle, deep=True, say=quiet) == []


def test_one_byte_changed_anywhere_is_found_and_named(bundle, tmp_path):
    names = [str(path.relative_to(bundle)) for path in sorted(bundle.rglob("*")) if path.is_file()]
    shutil.copytree(bundle, tmp_path / "copy")
    for name in names:
        if name == "SHA256SUMS":
            continue
        path = tmp_path / "copy" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        problems = verify(tmp_path / "copy", deep=True, say=quiet)
        assert any(problem.path.endswith(name) and "SHA256SUMS" in problem.rule for problem in problems), name
        path.write_bytes(content)
    assert verify(tmp_path / "copy", deep=True, say=quiet) == []


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda b: (b / "lineage.json").unlink(), "holds this file"),
        (lambda b: (b / "extra.txt").write_text("x"), "not listed"),
        (lambda b: (b / "adapter/optimizer.pt").write_text("x"), "no pickle"),
        (lambda b: (b / "model/config.json").unlink(), "config.json"),
        (lambda b: (b / "link").symlink_to("/etc/hostname"), "a link"),
        (lambda b: (b / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "/me"}'), "a path of"),
        (lambda b: (b / "adapter/adapter_model.safetensors").write_text("x"), "safetensors"),
    ],
)
def test_a_bundle_that_was_tampered_with_is_refused(bundle, tmp_path, spoil, word):
    shutil.copytree(bundle, tmp_path / "copy")
    spoil(tmp_path / "copy")
    assert word in "\n".join(map(str, verify(tmp_path / "copy", say=quiet)))


def test_a_failed_gate_hands_nothing_over_and_leaves_the_report(made, tmp_path):
    with pytest.raises(RecipeError, match=r"gates\.gain_above.*handoff\.accepted_by"):
        hand_over(made, tmp_path / "out", low=-0.05)
    assert not (tmp_path / "out/bundle").exists()
    assert (tmp_path / "out/report/report.html").is_file()


def test_every_failed_gate_is_told_in_one_message_and_what_nobody_measured_refuses_nothing(made, tmp_path):
    gate = {"name": "leaks_max", "value": 2, "limit": 0, "status": "fail"}
    infinite = {"name": "perplexity_rise_max", "value": None, "limit": 0.05, "status": "fail"}
    unknown = {"name": "latency_p95_max", "value": None, "limit": 1.2, "status": "not_measured"}
    with pytest.raises(RecipeError) as refused:
        handoff._enforce([gate, infinite, unknown], made.recipe.handoff, tmp_path)
    assert [problem.path for problem in refused.value.problems] == ["gates.leaks_max", "gates.perplexity_rise_max"]
    assert "measured 2, so nothing is handed over" in str(refused.value)
    assert "not a finite number" in str(refused.value)
    handoff._enforce([unknown], made.recipe.handoff, tmp_path)


def test_a_failed_gate_that_somebody_accepts_is_handed_over_and_shown(made, tmp_path):
    accepted = made.recipe.handoff.model_copy(update={"accepted_by": "Dr. Wu", "reason": "a pilot"})
    bundle = hand_over(made, tmp_path / "out", low=-0.05, handoff=accepted)
    card = (bundle / "README.md").read_text()
    assert "Accepted by Dr. Wu: a pilot" in card
    traced = json.loads((bundle / "lineage.json").read_text())
    assert traced["accepted"] == {"by": "Dr. Wu", "reason": "a pilot"}
    assert {gate["name"]: gate["status"] for gate in traced["gates"]}["gain_above"] == "fail"
    alone = made.recipe.handoff.model_copy(update={"accepted_by": "Dr. Wu"})
    with pytest.raises(RecipeError, match=r"gates\.gain_above"):
        hand_over(made, tmp_path / "other", low=-0.05, handoff=alone)


def test_the_card_starts_with_the_front_matter_of_the_hub(bundle, made):
    _, front, text = (bundle / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["base_model"] == made.recipe.model.name
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en"]
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    for said in (made.recipe.model.note, "Apache", made.recipe.licence, "0.300 [0.100, 0.400]"):
        assert said.lower() in text.lower()


def test_the_lineage_leads_from_the_documents_to_the_checkpoint_without_a_gap(bundle, made):
    lineage = json.loads((bundle / "lineage.json").read_text())
    assert [stage["stage"] for stage in lineage["stages"]] == ["prepare", "sft", "score", "merge", "proof"]
    assert lineage["accepted"] is None
    assert "fail" not in {gate["status"] for gate in lineage["gates"]}
    digests = {stage["digest"] for stage in lineage["stages"]}
    for stage in lineage["stages"][1:]:
        assert set(stage["inputs"].values()) <= digests
    sums, _ = read_sums(bundle / "SHA256SUMS")
    for folder, files in (("model", lineage["checkpoint"]["files"]), ("adapter", lineage["adapter"]["files"])):
        assert {f"{folder}/{name}": digest for name, digest in files.items()} == {
            name: digest for name, digest in sums.items() if name.startswith(f"{folder}/")
        }
    assert lineage["template"]["sha256"] == sums["model/chat_template.jinja"]
    for source, files in lineage["documents"].items():
        for name, digest in files.items():
            assert hash_file(made.recipe.documents / name) == digest, source
    assert set(lineage["documents"]) == set(made.recipe.sources)
    assert lineage["environment"]["packages"]["torch"]
    assert isinstance(lineage["code"]["dirty"], bool)


def test_the_serve_scripts_run_from_a_copy_of_the_bundle(bundle):
    scripts = sorted((bundle / "serve").glob("*.sh"))
    assert [script.name for script in scripts] == ["adapter.sh", "gpus-1.sh", "gpus-2.sh", "gpus-4.sh", "gpus-8.sh"]
    assert all(script.stat().st_mode & 0o777 == 0o755 for script in scripts)


def test_the_newest_bundle_is_linked_and_an_older_link_is_replaced(tmp_path):
    work = tmp_path / "work"
    for key in ("one", "two"):
        (work / f"handoff-{key}/bundle").mkdir(parents=True)
        link = hand_out(Artifact(work / f"handoff-{key}", {"stage": "handoff"}), work, None)
        assert link == work / "bundle"
        assert link.resolve() == work / f"handoff-{key}/bundle"
    assert sorted(path.name for path in work.iterdir()) == ["bundle", "handoff-one", "handoff-two"]
