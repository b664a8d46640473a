"""A stage is either finished and whole, or not there."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import artifacts
from finetune.artifacts import Artifact, Stage, build
from finetune.errors import RecipeError


def write_number(config: dict, *, out: Path, **inputs: Artifact) -> dict:
    (out / "number.txt").write_text(str(config["number"]))
    return {"number": config["number"]}


STAGE = Stage("number", 1, write_number)


def silent(line: str) -> None:
    pass


def test_a_second_build_does_no_work_and_says_so(tmp_path: Path) -> None:
    first = build(STAGE, {"number": 1}, root=tmp_path, inputs={}, say=silent)
    said: list[str] = []
    again = Stage("number", 1, lambda config, out: pytest.fail("ran again"))
    assert build(again, {"number": 1}, root=tmp_path, inputs={}, say=said.append) == first
    assert "already done" in said[0]


@pytest.mark.parametrize(
    ("stage", "config"), [(STAGE, {"number": 2}), (Stage("number", 2, write_number), {"number": 1})]
)
def test_another_config_or_version_is_another_artifact(tmp_path: Path, stage: Stage, config: dict) -> None:
    first = build(STAGE, {"number": 1}, root=tmp_path, inputs={}, say=silent)
    assert build(stage, config, root=tmp_path, inputs={}, say=silent).path != first.path


def test_downstream_keys_follow_the_bytes_of_the_input_not_its_place(tmp_path: Path) -> None:
    one = build(STAGE, {"number": 1}, root=tmp_path / "a", inputs={}, say=silent)
    same = build(STAGE, {"number": 1}, root=tmp_path / "b", inputs={}, say=silent)
    other = build(STAGE, {"number": 2}, root=tmp_path / "a", inputs={}, say=silent)
    key = artifacts.stage_key(STAGE, {}, {"x": one})
    assert key == artifacts.stage_key(STAGE, {}, {"x": same})
    assert key != artifacts.stage_key(STAGE, {}, {"x": other})


def test_the_key_of_a_known_stage_never_drifts() -> None:
    assert artifacts.stage_key(STAGE, {"number": 1}, {}) == "425cfe6dd0822fea"


def test_a_stage_that_fails_publishes_nothing_and_keeps_what_it_made(tmp_path: Path) -> None:
    def fail(config: dict, *, out: Path) -> dict:
        (out / "half.txt").write_text("half")
        raise RecipeError.one("x", 1, "is wrong", "use 2")

    with pytest.raises(RecipeError):
        build(Stage("number", 1, fail), {}, root=tmp_path, inputs={}, say=silent)
    (partial,) = tmp_path.iterdir()
    assert partial.name.endswith(".partial")
    assert (partial / "half.txt").read_text() == "half"


def test_kill_9_before_the_rename_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from finetune import artifacts
        def work(config, *, out):
            (out / "a.txt").write_text("a")
            return {}
        Path.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        artifacts.build(artifacts.Stage("s", 1, work), {}, root=Path(sys.argv[1]), inputs={}, say=print)
        """
    )
    code = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode
    assert code == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


def test_a_torn_manifest_is_an_error_that_names_what_to_remove(tmp_path: Path) -> None:
    artifact = build(STAGE, {"number": 1}, root=tmp_path, inputs={}, say=silent)
    (artifact.path / "manifest.json").write_text('{"stage": "num')
    with pytest.raises(RecipeError, match=f"remove {artifact.path}"):
        build(STAGE, {"number": 1}, root=tmp_path, inputs={}, say=silent)


def test_a_full_disk_is_the_users_error_and_nothing_made_is_lost(tmp_path: Path) -> None:
    def fill(config: dict, *, out: Path) -> dict:
        (out / "kept.txt").write_text("kept")
        with Path("/dev/full").open("w") as full:
            full.write("x")
        return {}

    with pytest.raises(RecipeError, match=r"the disk is full .* it goes on where it stopped"):
        build(Stage("s", 1, fill), {}, root=tmp_path, inputs={}, say=silent)
    assert (next(tmp_path.iterdir()) / "kept.txt").exists()


class SafetensorError(Exception):
    """As safetensors has it: neither an OSError nor a RuntimeError."""


def as_the_cause() -> None:
    try:
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    except SafetensorError as error:
        raise ValueError("cannot save the model") from error


def as_itself() -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def as_torch_says_it() -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:815] . PytorchStreamWriter failed: ENOSPC")


@pytest.mark.parametrize("fail", [as_itself, as_the_cause, as_torch_says_it])
def test_a_full_disk_in_a_librarys_words_is_the_users_error_too(tmp_path: Path, fail: Callable[[], None]) -> None:
    with pytest.raises(RecipeError, match="the disk is full"):
        build(Stage("s", 1, lambda config, out: fail()), {}, root=tmp_path, inputs={}, say=silent)


def test_a_bug_in_a_stage_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        build(Stage("s", 1, lambda config, out: 1 // 0), {}, root=tmp_path, inputs={}, say=silent)


def test_the_manifest_lists_each_file_with_its_hash(tmp_path: Path) -> None:
    artifact = build(STAGE, {"number": 7}, root=tmp_path, inputs={}, say=silent)
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["files"] == {"number.txt": artifacts.hash_file(artifact.path / "number.txt")}


def test_write_whole_leaves_no_temporary_file(tmp_path: Path) -> None:
    artifacts.write_whole(tmp_path / "a.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
