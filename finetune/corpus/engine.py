"""Independent units of work, on every core: the only place of the corpus that starts processes.

A unit's files appear under their final name in one rename, so whatever instant a run is killed at, the next one finds
whole units and no others, and works off the rest. Results are the same whatever the engine and the number of workers.
"""

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from finetune.config.machine import Machine, Preparation
from finetune.errors import Problem, RecipeError

U = TypeVar("U")

ENOUGH = 20
"""Problems after which no further unit is begun: nobody mends more at one time."""
_QUIET = 10.0
"""Seconds without a word."""
_LOADED = (
    "numpy", "pyarrow.parquet", "finetune.corpus.rows", "finetune.corpus.duplicates", "finetune.corpus.built",
    "finetune.corpus.training", "finetune.corpus.preferences",
)  # fmt: skip
"""What the server of the workers imports once for all of them: every step, for each begins workers of its own."""


@dataclass(frozen=True)
class Engine:
    """Where units are worked off; never part of what a result is known by."""

    workers: int = 0
    """Processes on this machine; 0 or 1: in the caller's own."""
    cluster: Preparation | None = None
    """Another engine than processes of ours."""

    @classmethod
    def of(cls, machine: Machine) -> "Engine":
        asked = machine.prepare
        if asked.engine == "slurm":
            return cls(asked.workers or 0, asked)
        workers = asked.workers or len(os.sched_getaffinity(0))
        return cls(workers, asked if asked.engine == "datatrove" else None)


def work_off(
    step: str,
    units: Sequence[U],
    function: Callable[[U, Path], None],
    *,
    scratch: Path,
    engine: Engine,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """`function(unit, folder)` for every unit; the folders with what it wrote, in the order of `units`.

    `function` is a module-level one, or a functools.partial of one, and writes into `folder` only. A unit is known by
    its `repr`, which has to say all that it is and be the same in every process; what `function` is bound to has to be
    known by the folder `scratch`. A unit that is there from before is not worked off again.

    Raises what a unit raised; RecipeErrors of several units as one, the same one for any number of workers.
    """
    home = scratch / step
    home.mkdir(parents=True, exist_ok=True)
    folders = [home / _name(index, unit) for index, unit in enumerate(units)]
    for begun in home.glob(".*"):  # by a run that was killed
        shutil.rmtree(begun, ignore_errors=True) if begun.is_dir() else begun.unlink()
    todo = [index for index, folder in enumerate(folders) if not folder.is_dir()]
    if len(todo) < len(units):
        say(f"{step}: {len(units) - len(todo)} of {len(units)} pieces are there from before")
    jobs: dict[int, Callable[[], None]] = {
        index: partial(_work, function, units[index], folders[index]) for index in todo
    }
    wrong: dict[int, Sequence[Problem]] = {}
    workers = min(engine.workers, len(todo))
    if engine.cluster is not None and todo:
        ended = _elsewhere(step, jobs, folders, home, engine.cluster, workers)
    elif engine.workers > 1 and todo:  # one unit, too: what it leaves of memory ends with its process
        ended = _in_processes(_begun(jobs, wrong), workers, step)
    else:
        ended = _here(_begun(jobs, wrong))
    began = said = time.monotonic()
    for done, (index, error) in enumerate(ended, 1):
        now = time.monotonic()
        if error is not None:
            wrong[index] = error.problems
        elif now - said >= _QUIET and done < len(todo):
            said = now
            left = _spell((now - began) / done * (len(todo) - done))
            say(f"{step}: {len(units) - len(todo) + done} of {len(units)} pieces, about {left} left")
    if wrong:
        raise RecipeError(_first(wrong))
    return folders


def _name(index: int, unit: object) -> str:
    written = repr(unit)
    assert not re.search(r" at 0x[0-9a-f]{6,}>", written), f"{type(unit).__name__} is known by an address only"
    return f"{index:06d}-{hashlib.sha256(written.encode()).hexdigest()[:12]}"


def _work(function: Callable[[U, Path], None], unit: U, folder: Path) -> None:
    """One unit. Its folder begins under a name of this process: an orphan of a killed run cannot write into it."""
    begun = folder.with_name(f".{folder.name}.{os.uname().nodename}.{os.getpid()}.partial")
    begun.mkdir()
    try:
        function(unit, begun)
        try:
            begun.rename(folder)
        except OSError:  # a job that Slurm had put back into its queue was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(begun, ignore_errors=True)


Job = tuple[int, Callable[[], None]]
Ended = tuple[int, RecipeError | None]
"""A unit's index, and what it found wrong."""


def _begun(jobs: dict[int, Callable[[], None]], wrong: dict[int, Sequence[Problem]]) -> Iterator[Job]:
    """The units to work off, asked for one by one: none more when enough is wrong."""
    for job in jobs.items():
        if sum(map(len, wrong.values())) >= ENOUGH:
            return
        yield job


def _first(wrong: dict[int, Sequence[Problem]]) -> Iterator[Problem]:
    """Problems in the order of units, up to the unit after which one worker alone would have stopped."""
    count = 0
    for _, problems in sorted(wrong.items()):
        yield from problems
        count += len(problems)
        if count >= ENOUGH:
            return


def _here(jobs: Iterator[Job]) -> Iterator[Ended]:
    for index, job in jobs:
        try:
            job()
        except RecipeError as error:
            yield index, error
        else:
            yield index, None


def _in_processes(jobs: Iterator[Job], workers: int, step: str) -> Iterator[Ended]:
    """Whatever ends this iterator ends the workers as well, in the middle of what they are at."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, _context(), _begin)
    running: dict[Future[None], int] = {}
    try:
        while True:
            # One each: a unit that waits in the pool's queue could no longer be called off.
            while len(running) < workers and (job := next(jobs, None)):
                running[pool.submit(job[1])] = job[0]
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=running.__getitem__):
                index, error = running.pop(future), future.exception()
                if error is not None and not isinstance(error, RecipeError):
                    raise error
                yield index, error
        pool.shutdown()
    except BrokenProcessPool as error:
        raise RecipeError.one(
            step,
            None,
            "a process was ended from outside: by the system, where memory ran out",
            f"use fewer than {workers} workers; the same command goes on with what is done",
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def _elsewhere(
    step: str,
    jobs: dict[int, Callable[[], None]],
    folders: Sequence[Path],
    home: Path,
    asked: Preparation,
    workers: int,
) -> Iterator[Ended]:
    from finetune.corpus.cluster import hand_over

    index_of = {folders[index]: index for index in jobs}
    called = {folders[index]: job for index, job in jobs.items()}
    for folder, error in hand_over(step, called, home, asked, workers, ENOUGH):
        yield index_of[folder], error


def _context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a process with one thread: the caller's own may hold locks of tokenizers or of Arrow."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *_LOADED])
    return context


def _begin() -> None:
    """In a worker, once. It ends with its caller, is told of Ctrl-C by it, and is one of several: one thread each."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1")


def _end_with_caller() -> None:
    """Whatever ends the caller ends this worker. PR_SET_PDEATHSIG would name the server of the workers, which lives as
    long as one of them does."""
    caller = multiprocessing.parent_process()
    assert caller is not None, "called in a worker"
    multiprocessing.connection.wait([caller.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _spell(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
