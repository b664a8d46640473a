"""Tracking: offline, one run however often it was stopped, and never in the way of training."""

import json
from pathlib import Path

import pytest

from finetune.config import load
from finetune.tracking import RUN_FILE, Tracker


@pytest.fixture(autouse=True)
def _no_mode_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def recipe(work: Path, mode: str):  # type: ignore[no-untyped-def]
    return load(["recipe=maintenance", "model=smollm2_135m", f"work={work}", f"tracking={mode}"])


def test_a_stopped_run_goes_on_under_its_own_id(tmp_path: Path) -> None:
    for step in (1, 2):
        with Tracker.open(recipe(tmp_path, "offline"), tmp_path, say=pytest.fail) as tracker:
            tracker.log("sft", {"loss": 1.0, "note": "text is left out"}, step)
            tracker.summary({"steps": step})
    name = json.loads((tmp_path / RUN_FILE).read_text())["id"]
    files = sorted(tmp_path.rglob("*.wandb"))
    assert len(files) == 2
    assert all(name in file.name for file in files)


def test_the_environment_wins_over_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path) as tracker:
        tracker.log("sft", {"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_other_ranks_track_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path) as tracker:
        tracker.log("sft", {"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_says_so_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    said: list[str] = []
    with Tracker.open(recipe(tmp_path, "offline"), tmp_path, say=said.append) as tracker:
        for step in range(3):
            tracker.log("sft", {"loss": 1.0}, step)
    assert len(said) == 1
    assert "the run goes on without it" in said[0]
