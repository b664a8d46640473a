"""The whole pipeline on a tiny random Qwen3: documents in, bundle out; killed in every stage; without a network."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["prepare", "sft", "pairs", "dpo", "score", "merge", "proof", "handoff"]
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
    "score.resamples=1000",
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
