"""A stage is either finished and whole, or not there."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import artifacts, provenance
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
        from finetune import artifacts, provenance
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


def test_what_made_a_stage_is_recorded_and_changes_neither_key_nor_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(STAGE, {"number": 1}, root=tmp_path / "a", inputs={}, say=silent)
    known = provenance.software()
    assert first.manifest["made"] == {**known, **provenance.hardware()}
    assert first.manifest["made"]["device"] == "cpu"
    monkeypatch.setattr(provenance, "software", lambda: known | {"packages": {"torch": "9.9"}})
    other = build(STAGE, {"number": 1}, root=tmp_path / "b", inputs={}, say=silent)
    assert other.manifest["made"]["packages"] == {"torch": "9.9"}
    assert (other.manifest["key"], other.digest) == (first.manifest["key"], first.digest)


def test_a_finished_stage_from_before_that_was_recorded_is_not_made_again(tmp_path: Path) -> None:
    first = build(STAGE, {"number": 1}, root=tmp_path, inputs={}, say=silent)
    old = {key: value for key, value in first.manifest.items() if key != "made"}
    (first.path / "manifest.json").write_text(json.dumps(old))
    again = Stage("number", 1, lambda config, out: pytest.fail("ran again"))
    assert build(again, {"number": 1}, root=tmp_path, inputs={}, say=silent).manifest == old


BIG = 32 << 20


def large(config: dict, *, out: Path) -> dict:
    """Writes, and says what it wrote as MERGE does, who hashes while writing."""
    (out / "weights").write_bytes(b"a" * BIG)
    artifacts.remember(out, {"weights": config["sha256"]})
    return {}


def bytes_read() -> int:
    """By this process in all its read calls, cached or not."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture
def weights(tmp_path: Path) -> Artifact:
    config = {"sha256": hashlib.sha256(b"a" * BIG).hexdigest()}
    provenance.software()  # its first call reads packages
    before = bytes_read()
    made = build(Stage("large", 1, large), config, root=tmp_path, inputs={}, say=silent)
    assert bytes_read() - before < BIG // 8, "what was hashed while it was written is not read to publish it"
    assert made.manifest["files"] == {"weights": config["sha256"]}
    return made


def test_what_was_hashed_while_it_was_written_is_not_read_again(weights: Artifact) -> None:
    before = bytes_read()
    assert artifacts.checked(weights, ["weights"]) == weights.manifest["files"]
    assert bytes_read() - before < BIG // 8
    (weights.path / ".hashed.json").unlink()  # as of a stage from before this, or one that came from elsewhere
    assert artifacts.checked(weights, ["weights"]) == weights.manifest["files"]
    assert BIG < bytes_read() - before < BIG * 9 // 8, "each byte once"


def rewritten(path: Path) -> None:
    with path.open("r+b") as handle:
        handle.write(b"b")


def replaced(path: Path) -> None:
    before = path.stat()
    path.rename(path.with_name("old"))
    path.write_bytes(b"b" + b"a" * (BIG - 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    before = path.stat()
    os.truncate(path, BIG - 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("spoil", [rewritten, replaced, cut, Path.unlink])
def test_a_file_that_changed_since_it_was_hashed_is_refused(weights: Artifact, spoil: Callable[[Path], None]) -> None:
    """Another time, another inode, another size, or gone: each of the three that are looked at is enough."""
    spoil(weights.path / "weights")
    with pytest.raises(RecipeError, match="its bytes are not those that large wrote"):
        artifacts.checked(weights, ["weights"])


def test_a_file_that_was_copied_or_touched_is_read_and_accepted_when_its_bytes_are_the_same(weights: Artifact) -> None:
    os.utime(weights.path / "weights")
    assert artifacts.checked(weights, ["weights"]) == weights.manifest["files"]
    elsewhere = shutil.copytree(weights.path, weights.path.with_name("elsewhere"))
    assert artifacts.checked(artifacts.read(elsewhere), ["weights"]) == weights.manifest["files"]


def test_a_note_that_another_hand_wrote_is_no_reason_to_believe_it(weights: Artifact) -> None:
    (weights.path / ".hashed.json").write_text("[]")
    before = bytes_read()
    assert artifacts.checked(weights, ["weights"]) == weights.manifest["files"]
    assert bytes_read() - before > BIG


def test_a_repository_that_only_surrounds_the_package_is_not_recorded_as_its_code(tmp_path: Path) -> None:
    """Installed into a virtual environment inside somebody's own repository, whose commit says nothing of this code."""
    copy = tmp_path / ".venv" / "finetune" / "provenance.py"
    copy.parent.mkdir(parents=True)
    shutil.copyfile(provenance.__file__, copy)
    (tmp_path / ".gitignore").write_text(".venv\n")

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def code() -> dict:
        spec = importlib.util.spec_from_file_location("copied", copy)
        assert spec is not None
        assert spec.loader is not None
        copied = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copied)
        return copied.software()["code"]

    git("init", "-q")
    git("add", ".gitignore")
    git("commit", "-q", "-m", "theirs")
    assert (code()["commit"], code()["dirty"]) == (None, None)
    git("add", "-f", ".venv")
    git("commit", "-q", "-m", "now it is in there")
    assert (code()["commit"], code()["dirty"]) == (git("rev-parse", "HEAD"), False)
