"""Work on several cores gives what one gives, and goes on after a kill at any instant."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from finetune.corpus.engine import ENOUGH, Engine, work_off
from finetune.errors import Problem, RecipeError

ONE, TWO = Engine(1), Engine(2)


def double(marks: Path | None, number: int, folder: Path) -> None:
    """Writes 2 x number; `marks` tells how often it was begun."""
    (folder / "half").write_text(str(number))
    if marks is not None:
        (marks / f"{number}.{time.monotonic_ns()}").touch()
        time.sleep(0.05)
    (folder / "double").write_text(str(2 * number))


def refuse(each: int, number: int, folder: Path) -> None:
    if number % 2:
        raise RecipeError(Problem(f"file {number}:{line}", None, "is wrong", "mend it") for line in range(each))
    double(None, number, folder)


def divide(number: int, folder: Path) -> None:
    (folder / "began").touch()
    if number == 3:
        raise ZeroDivisionError("unit three")
    time.sleep(0.02)


def vanish(number: int, folder: Path) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def quiet(_: str) -> None:
    pass


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_two_workers_write_what_one_writes_in_the_order_of_units(tmp_path: Path) -> None:
    found = []
    for engine in (Engine(), ONE, TWO):
        scratch = tmp_path / str(engine.workers)
        folders = work_off("rows", [5, 3, 9], partial(double, None), scratch=scratch, engine=engine, say=quiet)
        assert [(folder / "double").read_text() for folder in folders] == ["10", "6", "18"]
        found.append(tree(scratch))
    assert found[0] == found[1] == found[2]


def test_what_is_done_is_not_done_again_and_a_changed_unit_is(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    work = partial(work_off, "rows", function=partial(double, marks), scratch=tmp_path, engine=ONE)
    said: list[str] = []
    first = work([1, 2], say=said.append)
    assert work([1, 2], say=said.append) == first
    assert len(list(marks.iterdir())) == 2
    again = work([1, 7], say=said.append)
    assert again[0] == first[0]
    assert (again[1] / "double").read_text() == "14"
    assert len(list(marks.iterdir())) == 3
    assert said == ["rows: 2 of 2 pieces are there from before", "rows: 1 of 2 pieces are there from before"]


KILLED = """
import sys
from functools import partial
from pathlib import Path
sys.path[:0] = [{tests!r}]
from corpus.test_engine import double
from finetune.corpus.engine import Engine, work_off
if __name__ == "__main__":
    scratch = Path({scratch!r})
    work_off("rows", range({units}), partial(double, scratch / "marks"), scratch=scratch, engine=Engine({workers}))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_leaves_whole_units_only_and_the_next_goes_on(tmp_path: Path, workers: int) -> None:
    units, tests = 60, str(Path(__file__).parents[1])
    marks = tmp_path / "marks"
    marks.mkdir()
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(scratch=str(tmp_path), units=units, workers=workers, tests=tests))
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    while not len(list(marks.iterdir())) > 8:
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.communicate(timeout=20)  # until the last process that has its output has ended: the workers, their server
    done = [path for path in (tmp_path / "rows").iterdir() if not path.name.startswith(".")]
    assert 0 < len(done) < units
    assert all((path / "double").read_text() == str(2 * int((path / "half").read_text())) for path in done)
    begun = len(list(marks.iterdir()))

    folders = work_off("rows", range(units), partial(double, marks), scratch=tmp_path, engine=TWO, say=quiet)
    assert [(folder / "double").read_text() for folder in folders] == [str(2 * number) for number in range(units)]
    assert len(list(marks.iterdir())) - begun <= units - len(done)
    assert not list((tmp_path / "rows").glob(".*"))


@pytest.mark.parametrize("each", [1, ENOUGH // 2])
def test_what_is_wrong_in_several_units_is_told_at_once_the_same_by_any_number_of_workers(
    tmp_path: Path, each: int
) -> None:
    told = []
    for engine in (ONE, TWO):
        with pytest.raises(RecipeError) as raised:
            work_off("rows", range(12), partial(refuse, each), scratch=tmp_path / str(engine), engine=engine, say=quiet)
        told.append(raised.value.problems)
    assert told[0] == told[1]
    assert [problem.path for problem in told[0]] == [
        f"file {number}:{line}" for number in range(1, 12, 2) for line in range(each)
    ][: ENOUGH if each > 1 else None]


@pytest.mark.parametrize("engine", [ONE, TWO])
def test_an_exception_of_a_unit_reaches_the_caller_whole_and_ends_the_work(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError, match="unit three"):
        work_off("rows", range(100), divide, scratch=tmp_path, engine=engine, say=quiet)
    assert len([path for path in (tmp_path / "rows").iterdir() if not path.name.startswith(".")]) < 10


def test_a_worker_that_the_system_ends_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fewer than 2 workers; the same command goes on"):
        work_off("rows", range(4), vanish, scratch=tmp_path, engine=TWO, say=quiet)


def test_long_work_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.corpus.engine._QUIET", 0.0)
    said: list[str] = []
    work_off("rows", range(3), partial(double, None), scratch=tmp_path, engine=ONE, say=said.append)
    assert said == ["rows: 1 of 3 pieces, about 0 s left", "rows: 2 of 3 pieces, about 0 s left"]


def test_a_unit_without_a_lasting_name_is_a_bug(tmp_path: Path) -> None:
    unnamed: Callable[[], None] = lambda: None  # noqa: E731
    with pytest.raises(AssertionError, match="known by an address"):
        work_off("rows", [unnamed], divide, scratch=tmp_path, engine=ONE)
