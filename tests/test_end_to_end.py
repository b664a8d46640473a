"""The whole pipeline on a tiny random Qwen3: documents in, bundle out; killed in every stage; without a network."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.compare.differences import compare
from finetune.compare.reading import read
from finetune.errors import RecipeError
from finetune.report import rebuild
from finetune.tracking import RUN_FILE, SAMPLES
from finetune.tracking.records import decode
from tests.report.test_schema import faults
from tests.report.trace import Trace, leaves

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["prepare", "sft", "pairs", "dpo", "merge", "score", "proof", "handoff"]
WORDS = [
    "recipe=maintenance",
    "model=tiny_qwen3",
    "machine=cpu",
    "machine.threads=1",
    "tasks.fields.train_rows=24",
    "tasks.fields.valid_rows=4",
    "tasks.fields.test_rows=8",
    "tasks.fields.max_new_tokens=6",
    "tasks.place.train_rows=8",
    "tasks.place.valid_rows=2",
    "tasks.place.test_rows=4",
    "tasks.place.max_new_tokens=4",
    "sft.max_length=512",
    "dpo.pairs.prompts=6",
    "score.general_tokens=512",
    "score.parity_prompts=2",
    # Random weights learn nothing in six steps: that the gates see it is part of the test.
    "handoff.accepted_by=tests",
    "handoff.reason='random weights'",
]
# A namespace of its own without any network interface: whatever reached outside would fail.
NO_NETWORK = ["unshare", "--map-root-user", "--net"]

pytestmark = pytest.mark.slow


def start(work: Path, *words: str, prefix: list[str] = NO_NETWORK) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "finetune/train.py", *WORDS, f"work={work}", *words]
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def manifests(work: Path) -> dict[str, dict]:
    found = [json.loads(file.read_text()) for file in work.glob("*/manifest.json")]
    return {manifest["stage"]: manifest for manifest in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    work = tmp_path_factory.mktemp("undisturbed") / "maintenance"
    finish(start(work))
    return work


def test_one_command_without_network_leads_from_documents_to_a_bundle(undisturbed: Path) -> None:
    assert set(manifests(undisturbed)) == set(STAGES)
    held = {path.name for path in (undisturbed / "bundle").iterdir()}
    assert {
        "model", "adapter", "report.html", "report.json", "REPORT.md", "README.md", "lineage.json", "config.yaml",
        "SHA256SUMS", "serve",
    } <= held  # fmt: skip
    assert not list(undisturbed.glob("*.partial"))


def test_the_bundle_passes_its_receivers_checks(undisturbed: Path) -> None:
    command = [sys.executable, "-m", "finetune.cli", "verify", str(undisturbed / "bundle"), "--deep"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_report_shows_who_accepted_the_failed_gate(undisturbed: Path) -> None:
    report = json.loads((undisturbed / "bundle" / "report.json").read_text())
    assert not report["verdict"]["passed"]
    assert "tests" in (undisturbed / "bundle" / "REPORT.md").read_text()
    assert set(report["timings"]) >= set(STAGES) - {"handoff"}


def test_every_number_of_the_report_is_traced_to_rows_and_hashes(undisturbed: Path) -> None:
    trace = Trace(undisturbed)
    assert trace.unhashed() == []
    assert faults(trace.facts) == []
    assert len(list(leaves(trace.facts))) > 400
    assert trace.faults() == []
    for spoil in (
        lambda facts: facts["tasks"][0].update(tuned=facts["tasks"][0]["tuned"] + 0.001),
        lambda facts: facts["tasks"][0]["differences"]["base_few_shot"]["ci95"].append(0.5),
        lambda facts: facts["gates"][0].update(limit=-1.0),
        lambda facts: facts["outcomes"]["fields"].update(learned=99),
        lambda facts: facts["curves"]["sft"][0].update(loss=0.001),
        lambda facts: facts["general"].update(window=7),
        lambda facts: facts.update(unheard_of=3),
    ):
        spoiled = Trace(undisturbed)
        spoil(spoiled.facts)
        assert len(spoiled.faults()) == 1


def test_the_report_is_made_again_byte_for_byte_from_stored_rows(undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune.cli", "report", str(undisturbed), "--out", str(tmp_path / "again")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("the same bytes as") == 3
    weights = shutil.ignore_patterns("*.safetensors", "tokenizer.json", "serve", "*.pyz")
    work = Path(shutil.copytree(undisturbed, tmp_path / "work", symlinks=True, ignore=weights))
    answers = next(work.glob("score-*")) / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"score": 0.0', '"score": 1.0', 1))
    with pytest.raises(RecipeError, match="its sha256 is not the one in the manifest") as caught:
        rebuild.again(work)
    assert str(answers) in str(caught.value)


def test_a_second_run_does_no_work_and_says_so(undisturbed: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in undisturbed.rglob("manifest.json")}
    output = finish(start(undisturbed))
    assert [f"{stage}: already done" in output for stage in STAGES] == [True] * len(STAGES)
    assert {file: file.stat().st_mtime_ns for file in undisturbed.rglob("manifest.json")} == before


def test_killed_in_every_stage_the_same_command_ends_with_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    draw = random.Random(20261121)
    work = tmp_path / "maintenance"
    wanted = manifests(undisturbed)
    hit: list[str] = []
    for stage in STAGES:
        process = start(work)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith((f"{stage}: starting", f"{stage}: going on")):
                time.sleep(draw.uniform(0, wanted[stage]["seconds"]))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                break
        process.wait()
        process.stdout.close()
        if process.returncode == -signal.SIGKILL:
            hit.append(stage)
    assert len(hit) >= 6, f"only {hit} were hit; the test would prove little"
    finish(start(work))
    got = manifests(work)
    for stage in STAGES[:-1]:  # the bundle's report holds seconds
        assert got[stage]["digest"] == wanted[stage]["digest"], stage
    for part in ("model", "adapter"):
        theirs = {path.name: path.read_bytes() for path in (undisturbed / "bundle" / part).iterdir()}
        assert {path.name: path.read_bytes() for path in (work / "bundle" / part).iterdir()} == theirs
    assert tracked(work) == tracked(undisturbed)


def tracked(work: Path) -> tuple[dict, set, dict]:
    """What W&B's files hold of the one run of a work folder: history, names in the summary, artifacts' digests."""
    files = sorted(work.glob("wandb/*run-*/*.wandb"))
    (name,) = json.loads((work / RUN_FILE).read_text()).values()
    assert {file.name for file in files} == {f"run-{name}.wandb"}
    run = decode(files)
    history = {step: line for step, line in run.history.items() if SAMPLES not in line}
    digests = {
        name: (artifact["metadata"]["digest"], artifact["metadata"]["inputs"])
        for name, artifact in run.artifacts.items()
        if artifact["type"] in STAGES[:-1]
    }
    return history, set(run.summary), digests


def test_wandb_is_told_no_passage_of_the_documents(undisturbed: Path) -> None:
    """By default: eight words in a row of any document, in records, tables and raw bytes."""
    sources = [ROOT / "data" / "maintenance" / name for name in ("work_orders.csv", "abbreviations.md")]
    texts = [file.read_text() for file in (*sources, *sorted((ROOT / "data" / "general").glob("*.jsonl")))]
    known = {run for text in texts for run in eight_words(text)}
    assert len(known) > 20_000
    told = [file for file in (undisturbed / "wandb").rglob("*") if file.is_file() and not file.is_symlink()]
    assert any(file.name.endswith(".table.json") for file in told), "the table of answers is there"
    everything = [file.read_bytes().decode("utf-8", "replace") for file in told]
    everything.append(json.dumps(vars(decode(file for file in told if file.suffix == ".wandb")), ensure_ascii=False))
    found = {run for text in everything for run in eight_words(re.sub(r"""\\+[nrt"]""", " ", text))}
    assert len(found) > 1000
    assert not found & known


def test_a_run_and_what_wandb_was_told_of_it_compare_as_one(undisturbed: Path) -> None:
    file = sorted(undisturbed.glob("wandb/*run-*/*.wandb"))[0]
    facts = compare([read(str(undisturbed)), read(str(file))])
    assert facts["config"]["differs"] == {}
    assert facts["config"]["not_compared"] == []
    for values in (*facts["data"]["digests"].values(), *facts["data"]["splits"].values(), *facts["curves"].values()):
        assert values[0] == values[1]
    assert facts["data"]["counts"] == {}
    assert facts["gates"]
    assert all(one == other for one, other in facts["gates"].values())
    for task in facts["metrics"]:
        (pair,) = task["pairs"]
        assert (pair["refused"], pair["difference"], pair["only_first"], pair["only_other"]) == (None, 0.0, 0, 0)
    assert [entry["changed"] for entry in facts["answers"]] == [0, 0]
    assert facts["cost"]["seconds_total"][0] == facts["cost"]["seconds_total"][1]


def eight_words(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[start:] for start in range(8)), strict=False)


def kill_at(process: subprocess.Popen[str], words: tuple[str, ...], wait: float = 0.0) -> None:
    """SIGKILL for the run and its children, `wait` seconds after it says one of `words`."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(words):
            time.sleep(wait)
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL, "".join(said)[-3000:]


def test_a_qlora_run_killed_while_the_two_bases_are_measured_chooses_the_same_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    """The killed run goes up to the merge: what comes behind it is no other than without 4 bit."""
    words = ["method=qlora", "stages=[sft]", "sft.max_steps=2"]
    straight, again = tmp_path / "straight", tmp_path / "again"
    straight.mkdir()
    for prepared in undisturbed.glob("prepare-*"):
        shutil.copytree(prepared, straight / prepared.name)
    kill_at(start(straight, *words), ("score: starting",))
    wanted = manifests(straight)
    shutil.copytree(straight, again, ignore=shutil.ignore_patterns("bases-*", "merge-*", "score-*"))
    instant = random.Random(7).uniform(0.2, 0.9) * wanted["bases"]["seconds"]
    kill_at(start(again, *words), ("bases: starting",), instant)
    assert [path.suffix for path in again.glob("bases-*")] == [".partial"]
    kill_at(start(again, *words), ("score: starting",))
    got = manifests(again)
    for stage in ("bases", "merge"):
        assert got[stage]["digest"] == wanted[stage]["digest"], stage
    (merged,) = (json.loads(file.read_text()) for file in again.glob("merge-*/merge.json"))
    (chosen,) = (base for base in merged["bases"] if base["chosen"])
    assert merged["base_used"] == chosen["name"]
    assert chosen["kl_mean"] == min(base["kl_mean"] for base in merged["bases"])


def test_a_changed_document_makes_everything_after_it_new_and_keeps_the_old(undisturbed: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(ROOT / "data", data)
    orders = data / "maintenance" / "work_orders.csv"
    lines = orders.read_text().splitlines(keepends=True)
    orders.write_text("".join(lines[:-200]))
    work = tmp_path / "maintenance"
    shutil.copytree(undisturbed, work, symlinks=True)
    output = finish(start(work, f"data_root={data / 'maintenance'}"))
    assert "already done" not in output
    assert len(list(work.glob("sft-*/manifest.json"))) == 2
