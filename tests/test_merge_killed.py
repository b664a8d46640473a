"""MERGE killed anywhere and started again: the same bytes, nothing taken over that does not belong."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import make_adapter, make_base
from safetensors.torch import save_file

from finetune import merge
from finetune.artifacts import hash_file
from finetune.errors import RecipeError


def quiet(_: str) -> None:
    pass


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test can catch it."""


def test_a_merge_killed_in_any_shard_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", shards=4)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "undisturbed", say=quiet)
    expected = hashes(tmp_path / "undisturbed")
    shards = len(list(base.glob("*.safetensors")))
    for fatal in range(shards):
        out, said = tmp_path / f"killed{fatal}", []
        _kill_in_shard(monkeypatch, base, adapter, out, fatal)
        merge.merge_adapter(base, adapter, out, say=said.append)
        assert hashes(out) == expected
        assert any(f"{fatal} files" in line and "kept" in line for line in said) is (fatal > 0)


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def _kill_in_shard(monkeypatch, base: Path, adapter: Path, out: Path, fatal: int) -> None:
    write, made = merge.write_shard, []

    def write_until_killed(file, entries, **how):
        if len(made) == fatal:
            file.write_bytes(b"half a header")
            raise Killed
        made.append(file)
        return write(file, entries, **how)

    with monkeypatch.context() as patched:
        patched.setattr(merge, "write_shard", write_until_killed)
        with pytest.raises(Killed):
            merge.merge_adapter(base, adapter, out, say=quiet)
    assert not out.exists()


VICTIM = """
import os, signal, sys, time
from pathlib import Path
import torch  # paid once: every attempt is a fork
from finetune.merge import merge_adapter
base, adapter, out = map(Path, sys.argv[1:4])
unfinished = out.with_name(out.name + ".partial")
for instant in [*sys.argv[4:], None]:
    child = os.fork()
    if not child:
        merge_adapter(base, adapter, out, say=lambda line: None)
        os._exit(0)
    ended, status = 0, 0
    if instant:
        files, delay = instant.split(":")
        while len(list(unfinished.glob("model/*.safetensors"))) < int(files) and not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(float(delay))
        if not ended:
            os.kill(child, signal.SIGKILL)
    if not ended:
        status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else "ended", (unfinished / ".merge.json").exists(), status)
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.slow
def test_a_merge_killed_with_signal_9_at_random_instants_ends_with_the_same_bytes(tmp_path):
    """LF#4672, LF#3273: a merge that dies leaves a folder that looks finished, or begins anew for ever."""
    base = make_base(tmp_path / "base", shards=2)
    _make_bigger(base, copies=10, tmp=tmp_path)
    adapter = make_adapter(tmp_path / "small", tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "undisturbed", say=quiet)
    expected, draw, ended = hashes(tmp_path / "undisturbed"), random.Random(5), []
    for attempt in range(2):
        out = tmp_path / f"out{attempt}"
        instants = [f"{files}:{draw.uniform(0, 0.03):.4f}" for files in sorted(draw.sample(range(10), 5))]
        command = [sys.executable, "-c", VICTIM, str(base), str(adapter), str(out), *instants]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        ended += result.stdout.splitlines()
        assert hashes(out) == expected
        assert not out.with_name(out.name + ".partial").exists()
    assert ended[-1] == "ended False 0"
    assert sum(line.startswith("killed") for line in ended) >= 4
    assert any(line.startswith("killed True") for line in ended), "no attempt was killed after a whole shard"


def _make_bigger(base: Path, *, copies: int, tmp: Path) -> None:
    """Shards of tensors that the adapter does not touch, so that there is time to be killed in."""
    shutil.copytree(base, tmp / "small")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    for number in range(copies):
        name = f"extra-{number:02}.safetensors"
        tensor = torch.randn(1 << 21, generator=torch.Generator().manual_seed(number)).view(1024, 2048)
        save_file({f"extra.{number}": tensor}, base / name, metadata={"format": "pt"})
        index["weight_map"][f"extra.{number}"] = name
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("state", [b"", b'{"identity": "x", "sha', b"[1]", b"\xff\xfe"])
def test_a_torn_note_of_an_earlier_attempt_is_no_note(tmp_path, monkeypatch, state):
    base = make_base(tmp_path / "base", shards=3)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "undisturbed", say=quiet)
    _kill_in_shard(monkeypatch, base, adapter, tmp_path / "out", 2)
    (tmp_path / "out.partial/.merge.json").write_bytes(state)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")


def test_leftovers_of_another_adapter_or_another_order_are_not_taken_over(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", shards=3)
    first, second = make_adapter(base, tmp_path / "a"), make_adapter(base, tmp_path / "b", seed=2)
    merge.merge_adapter(base, second, tmp_path / "undisturbed", then=[first], say=quiet)
    _kill_in_shard(monkeypatch, base, first, tmp_path / "out", 2)
    with monkeypatch.context() as patched:
        patched.setattr(merge, "write_whole", _killed)
        with pytest.raises(Killed):
            merge.merge_adapter(base, first, tmp_path / "out", then=[second], say=quiet)
    merge.merge_adapter(base, second, tmp_path / "out", then=[first], say=quiet)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")


def _killed(*_: object) -> None:
    raise Killed


def test_a_finished_shard_that_was_damaged_meanwhile_is_made_again(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", shards=3)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "undisturbed", say=quiet)
    _kill_in_shard(monkeypatch, base, adapter, tmp_path / "out", 2)
    shard = sorted((tmp_path / "out.partial/model").glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")


def test_a_folder_of_somebody_else_under_the_name_of_unfinished_work_is_not_cleared(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    thesis = tmp_path / "out.partial/model/thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("three years of work")
    with pytest.raises(RecipeError, match=r"out\.partial.*no merge left 'model' there: .*mv "):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert hashes(tmp_path / "out.partial") == {"model/thesis.txt": hash_file(thesis)}
    shutil.rmtree(tmp_path / "out.partial")
    (tmp_path / "out.partial").write_text("a file")
    with pytest.raises(RecipeError, match="a file has it"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    (tmp_path / "out.partial").unlink()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/..merge.json.1.writing").write_text("{")  # killed while it noted itself
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model", "merge.json"}


def test_killed_between_the_last_byte_and_the_rename_nothing_is_merged_again(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", shards=3)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "undisturbed", say=quiet)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", _killed_for(tmp_path / "out", Path.replace))
        with pytest.raises(Killed):
            merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    with monkeypatch.context() as patched:
        patched.setattr(merge, "write_shard", _killed)
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")


def _killed_for(goal: Path, replace):
    return lambda path, target: _killed() if Path(target) == goal else replace(path, target)
