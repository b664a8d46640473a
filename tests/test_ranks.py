"""One run to a work folder; a child that a signal ended says so; every rank can tell what is wrong."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from finetune import cli, ranks, train
from finetune.artifacts import Stage
from finetune.errors import RecipeError

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = """
import os, sys, time
from pathlib import Path
from finetune.artifacts import Stage
def run(config, *, out):
    print("working", os.getpid(), flush=True)
    if config["signal"]:
        os.kill(os.getpid(), config["signal"])
    time.sleep(60)
STAGE = Stage("signals", 1, run)
"""
PARENT = """
import sys
from pathlib import Path
from finetune import ranks
sys.path.insert(0, sys.argv[2])
import signals
with ranks.hold(Path(sys.argv[1])):
    ranks.build_in_child(signals.STAGE, "signals", {"signal": 0}, root=Path(sys.argv[1]), inputs={}, say=print, live={})
"""


@pytest.fixture
def signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stage module that a child can import."""
    (tmp_path / "signals.py").write_text(SIGNALS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def test_a_second_run_in_the_same_folder_is_refused_and_told_who_works_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_LOCK_TRIES", 1)
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from finetune import ranks
        with ranks.hold(Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told = rf"another run \(process {other.pid}\) is working there"
        with pytest.raises(RecipeError, match=told), ranks.hold(tmp_path):
            pass
        other.kill()
    with ranks.hold(tmp_path), pytest.raises(RecipeError, match=f"process {os.getpid()}"), ranks.hold(tmp_path):
        pass


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with ranks.hold(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    with ranks.hold(tmp_path):
        os.close(writing)
        os.waitpid(worker, 0)


def test_a_child_that_outlives_its_parent_keeps_the_folder(
    tmp_path: Path, signals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_LOCK_TRIES", 1)
    work = tmp_path / "work"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(work), str(signals)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = next(int(line.split()[1]) for line in parent.stdout if line.startswith("working"))
        parent.kill()
        parent.wait()
        try:
            with pytest.raises(RecipeError, match=f"process {parent.pid} or {child}"), ranks.hold(work):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
    monkeypatch.setattr(ranks, "_LOCK_TRIES", 20)
    with ranks.hold(work):
        pass


def test_sigterm_ends_the_child_too_and_the_folder_is_free_for_the_same_command(tmp_path: Path, signals: Path) -> None:
    """A job that is queued again met its own child still at work, and was refused."""
    work = tmp_path / "work"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(work), str(signals)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        child = next(int(line.split()[1]) for line in parent.stdout if line.startswith("working"))
        parent.terminate()
        _, said = parent.communicate(timeout=60)
    assert parent.returncode == 75
    assert "stopped by SIGTERM; the same command goes on from here" in said
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    with ranks.hold(work):
        pass


def test_a_rank_that_waits_ends_with_the_message_of_the_first_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over several machines no launcher ends the others: they polled for ever."""
    stage = Stage("prepare", 1, lambda config, out: {})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "_listeners", {})

    broken = RecipeError.one("sources.orders", "x.csv", "is not there", "give a file")
    first = ranks.hold(tmp_path)
    first.__enter__()

    def fail(_: float) -> None:
        first.__exit__(RecipeError, broken, None)

    monkeypatch.setattr(ranks.time, "sleep", fail)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        ranks.build_first(stage, {}, root=tmp_path, inputs={})
    assert stop.value.code == 2
    assert "rank 1: the first rank failed: sources.orders=x.csv: is not there" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGKILL, "score.batch_tokens"), (signal.SIGSEGV, "")])
def test_a_child_ended_by_a_signal_says_which_and_what_to_do(
    tmp_path: Path, signals: Path, capsys: pytest.CaptureFixture[str], number: int, cause: str
) -> None:
    stage = Stage("signals", 1, lambda config, out: {})
    with pytest.raises(SystemExit) as stop:
        ranks.build_in_child(
            stage, "signals", {"signal": int(number)}, root=tmp_path, inputs={}, say=lambda line: None, live={}
        )
    assert stop.value.code == 128 + number
    said = capsys.readouterr().err
    assert said.startswith(f"signals: ended by signal {int(number)} (")
    assert cause in said
    assert ("memory" in said) == bool(cause)
    assert said.endswith("the same command goes on from here\n")


@pytest.mark.parametrize(("number", "start"), [(0, "recipe"), (1, "rank 1: recipe")])
def test_any_rank_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, start: str
) -> None:
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main(["recipe=none-of-that-name"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(start)
    assert said.count("\n") == 1


def test_the_main_job_does_no_work_in_a_folder_where_another_works(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "_LOCK_TRIES", 1)
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("went to work"))
    with ranks.hold(tmp_path):
        assert train.main(["recipe=maintenance", "model=tiny_qwen3", "machine=cpu", f"work={tmp_path}"]) == 2
    assert f"another run (process {os.getpid()}) is working there" in capsys.readouterr().err


def test_prepare_does_no_work_in_a_folder_where_another_works(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "_LOCK_TRIES", 1)
    with ranks.hold(tmp_path):
        assert cli.main(["prepare", "recipe=maintenance", "model=tiny_qwen3", f"work={tmp_path}"]) == 2
    assert "is working there" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
