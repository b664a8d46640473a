"""Tracking: offline, one run however often it was stopped, every step once, and never in the way of training."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import Artifact
from finetune.config import load
from finetune.tracking import RUN_FILE, Tracker
from finetune.tracking.records import decode, files_of, read_records

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_mode_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def recipe(work: Path, mode: str, *words: str):  # type: ignore[no-untyped-def]
    return load(["recipe=maintenance", "model=smollm2_135m", f"work={work}", f"tracking={mode}", *words])


def logged(work: Path) -> list[tuple[int, dict[str, Any]]]:
    """(W&B's step, numbers) of every line in the .wandb files of a work folder, as `wandb sync` reads them."""
    from wandb.proto.wandb_internal_pb2 import Record

    lines = []
    for file in sorted(work.glob("wandb/offline-run-*/*.wandb")):
        for raw in read_records(file):
            record = Record.FromString(raw)
            if record.HasField("history"):
                items = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                numbers = {name: value for name, value in items.items() if not name.startswith("_")}
                lines.append((record.history.step.num, numbers))
    return lines


KILLED = """
import os, signal, sys, time
from pathlib import Path
from finetune.tracking import Tracker
from tests.test_tracking import recipe
work = Path(sys.argv[1])
tracker = Tracker.open(recipe(work, "offline"), work, "d")
for step in range(1, 151):
    tracker.log("sft", {"loss": 1.0 / step}, step)
done = []
tracker._order(lambda run: done.append(run))
while not done:
    time.sleep(0.01)
os.killpg(0, signal.SIGKILL)
"""


def sft_of(work: Path, steps: int) -> Artifact:
    folder = work / "sft-0"
    folder.mkdir()
    lines = [json.dumps({"step": step, "loss": 1.1 / step}) for step in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return Artifact(folder, {
        "stage": "sft", "key": "0", "version": 1, "digest": "d", "inputs": {"prepared": "e"}, "seconds": 2.5,
        "files": {"log.jsonl": "f" * 64}, "facts": {"steps": steps},
    })  # fmt: skip


def last_step(work: Path, name: str) -> int:
    return decode(files_of(work / "wandb", name)).last_step


def test_a_stopped_run_goes_on_in_its_own_place_and_no_step_is_logged_twice(tmp_path: Path) -> None:
    """verl#2783, KempnerForge#19: a queued job made a new run, or its repeated steps overwrote the first ones."""
    work = tmp_path / "work"
    work.mkdir()
    with Tracker.open(recipe(work, "offline"), work, "d", say=pytest.fail) as tracker:
        for step in range(1, 301):  # more than a block of the file
            tracker.log("sft", {"loss": 1.0 / step, "note": "text is left out"}, step)
    # Resumed from the checkpoint of step 200 on another machine, where the same steps come out a little different.
    with Tracker.open(recipe(work, "offline", "machine=cpu"), work, "d", say=pytest.fail) as tracker:
        for step in range(195, 321):
            tracker.log("sft", {"loss": 1.1 / step}, step)
        tracker.follow(sft_of(work, 320))
        tracker.log("dpo", {"loss": 0.7}, 1)
    (name,) = json.loads((work / RUN_FILE).read_text()).values()
    assert [file.name for file in work.rglob("*.wandb")] == [f"run-{name}.wandb"] * 2
    lines = logged(work)
    assert [step for step, _ in lines] == list(range(1, 322))
    assert lines[299][1] == {"sft/loss": 1.0 / 300, "sft/step": 300}
    assert lines[300][1] == {"sft/loss": 1.1 / 301, "sft/step": 301}
    assert lines[320][1] == {"dpo/loss": 0.7, "dpo/step": 1}


def test_what_a_kill_took_from_the_tracker_is_told_again(tmp_path: Path) -> None:
    """W&B keeps its last lines in memory: a process that is killed leaves a file that lacks them."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    killed = subprocess.run(command, cwd=ROOT, env=own, check=False, start_new_session=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (name,) = json.loads((tmp_path / RUN_FILE).read_text()).values()
    left = last_step(tmp_path, name)
    assert left < 150, "nothing was lost; the test would prove nothing"
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, "d", say=pytest.fail) as tracker:
        for step in range(1, 161):
            tracker.log("sft", {"loss": 1.0 / step}, step)
    assert [step for step, _ in logged(tmp_path)] == list(range(1, 161))
    assert [file.name for file in tmp_path.rglob("*.wandb")] == [f"run-{name}.wandb"] * 2


def test_what_a_kill_after_the_training_took_is_told_again_from_its_log(tmp_path: Path) -> None:
    """The training is done and is not run again; its log is all that knows the steps."""
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, "d", say=pytest.fail) as tracker:
        for step in range(1, 6):
            tracker.log("sft", {"loss": 1.1 / step}, step)
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, "d", say=pytest.fail) as tracker:
        tracker.follow(sft_of(tmp_path, 8))
        tracker.log("dpo", {"loss": 0.7}, 1)
    lines = logged(tmp_path)
    assert [step for step, _ in lines] == list(range(1, 10))
    assert lines[7][1] == {"sft/loss": 1.1 / 8, "sft/step": 8}


def test_what_is_trained_on_something_else_is_another_run(tmp_path: Path) -> None:
    for words, data in (((), "d"), (("sft.trl.learning_rate=0.5",), "d"), ((), "e"), (("machine=cpu",), "d")):
        with Tracker.open(recipe(tmp_path, "offline", *words), tmp_path, data, say=pytest.fail) as tracker:
            tracker.log("sft", {"loss": 1.0}, 1)
    assert len(json.loads((tmp_path / RUN_FILE).read_text())) == 3
    assert [step for step, _ in logged(tmp_path)] == [1, 1, 1]


def test_launches_within_one_second_are_one_run(tmp_path: Path) -> None:
    """W&B then calls the second folder `...-1`: what it had told was not known, and told again."""
    folders = [tmp_path / f"offline-run-20261122_{name}" for name in ("092504-ab", "092504-ab-1", "092505-ab")]
    for folder in folders:
        folder.mkdir()
        (folder / "run-ab.wandb").touch()
    assert files_of(tmp_path, "ab") == [folder / "run-ab.wandb" for folder in folders]


def test_a_torn_file_of_the_tracker_gives_what_is_whole_in_it(tmp_path: Path) -> None:
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, "d", say=pytest.fail) as tracker:
        for step in range(1, 6):
            tracker.log("sft", {"loss": 1.0}, step)
    (file,) = tmp_path.rglob("*.wandb")
    (name,) = json.loads((tmp_path / RUN_FILE).read_text()).values()
    raw, steps = file.read_bytes(), []
    for length in (*range(0, len(raw), 97), len(raw)):
        file.write_bytes(raw[:length])
        steps.append(last_step(tmp_path, name))
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2, 3, 4, 5}


def test_the_environment_wins_over_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, "d") as tracker:
        tracker.log("sft", {"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_other_ranks_track_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, "d") as tracker:
        tracker.log("sft", {"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_says_so_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    said: list[str] = []
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, "d", say=said.append) as tracker:
        for step in range(3):
            tracker.log("sft", {"loss": 1.0}, step)
    assert len(said) == 1
    assert "the run goes on without it" in said[0]
