"""The same units on an engine of the field: datatrove's executors, on this machine or through Slurm.

Only its executors: which rank runs where, arrays of jobs, time limits and logs are theirs. What a unit is, where its
files go and which are there already is `engine.work_off`'s, so the rows are those of one machine.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.machine import Preparation
from finetune.errors import Problem, RecipeError

_POLL = 2.0
"""Seconds between two looks at the folders and at Slurm's queue."""
_PATIENCE = 60.0
"""Seconds for which a file written on another machine may stay unseen here: a shared disk caches its folders."""


@dataclass(frozen=True)
class Ranks:
    """Unit `rank` of the pipeline; runs on any machine that sees `home`, and hands nothing from rank to rank."""

    home: Path
    enough: int
    jobs: tuple[Callable[[], None], ...] = field(repr=False)

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        if sum(len(found.problems) for found in _wrong(self.home).values()) >= self.enough:
            return
        try:
            self.jobs[rank]()
        except RecipeError as error:
            problems = [[problem.path, problem.value, problem.rule, problem.fix] for problem in error.problems]
            written = self.home / f".{rank}.wrong.partial"
            written.write_text(json.dumps(problems, ensure_ascii=False, default=str), encoding="utf-8")
            written.rename(self.home / f".{rank}.wrong")


def hand_over(
    step: str, jobs: Mapping[Path, Callable[[], None]], home: Path, asked: Preparation, workers: int, enough: int
) -> Iterator[tuple[Path, RecipeError | None]]:
    """Work off jobs, known by the folder that each of them makes; what is done and what is wrong, in any order.

    With the local executor an exception of a unit is raised here; Slurm's stays in the log that the error names.
    """
    executors = _executors()
    ranks = Ranks(home, enough, tuple(jobs.values()))
    # Beside the units and without a space: sbatch's directives and datatrove's own command end at one.
    logs = home.with_name(f".{step.replace(' ', '-')}.datatrove")
    shutil.rmtree(logs, ignore_errors=True)
    shared: dict[str, Any] = {"pipeline": [ranks], "tasks": len(jobs), "logging_dir": str(logs)}
    if asked.engine == "datatrove":
        executors.LocalPipelineExecutor(workers=workers, **shared).run()
        wrong = _wrong(home)
        yield from ((folder, wrong.get(rank)) for rank, folder in enumerate(jobs) if folder.is_dir() or rank in wrong)
        return
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # the executor would take itself for one of its own jobs
        raise RecipeError.one(
            "machine.prepare.engine", "slurm", "this is already a job of an array",
            "submit from outside of it, or machine.prepare.engine=local",
        )  # fmt: skip
    if " " in str(logs):
        raise RecipeError.one(
            "work", str(logs), "what is written into a script for Slurm may hold no space",
            "set work= to a path without one, or machine.prepare.engine=local",
        )  # fmt: skip
    name = f"finetune{logs.name}-{hashlib.sha256(str(logs.resolve()).encode()).hexdigest()[:8]}"
    _slurm("scancel", "--name", name)  # jobs of a run that was killed
    try:
        executor = executors.SlurmPipelineExecutor(**shared, **slurm_settings(asked, name, workers))
        # Its last job adds up statistics that nobody reads, and waits for ever where a job of the array has failed.
        executor.launch_merge_stats = _nothing
        try:
            executor.run()
        except subprocess.CalledProcessError as error:  # it has said why on stderr
            raise _refused("sbatch", "refuses the job, with the words above") from error
        yield from _await(step, list(jobs), home, name, logs)
    finally:
        _slurm("scancel", "--name", name)


def slurm_settings(asked: Preparation, name: str, workers: int) -> dict[str, Any]:
    return {
        "job_name": name,
        "partition": asked.partition,
        "time": asked.time,
        "mem_per_cpu_gb": asked.memory_gib,
        "workers": workers or -1,
        "qos": None,
        "env_command": f'export PATH="{Path(sys.executable).parent}:$PATH"',
        "sbatch_args": dict(asked.sbatch),
    }


def _executors() -> Any:
    try:
        from datatrove import executor
    except ModuleNotFoundError as error:
        raise RecipeError.one(
            "machine.prepare.engine",
            None,
            f"the other engines are datatrove's, and it is not installed ({error})",
            "pip install 'finetune-toolkit[cluster]', or machine.prepare.engine=local",
        ) from error
    return executor


def _nothing() -> None:
    pass


def _wrong(home: Path) -> dict[int, RecipeError]:
    return {
        int(path.name.split(".")[1]): RecipeError(Problem(*parts) for parts in json.loads(path.read_text("utf-8")))
        for path in home.glob(".*.wrong")
    }


def _await(
    step: str, folders: list[Path], home: Path, name: str, logs: Path
) -> Iterator[tuple[Path, RecipeError | None]]:
    missing = dict(enumerate(folders))
    gone = None
    while missing:
        wrong = _wrong(home)
        there = {path.name for path in home.iterdir()}
        for rank, folder in list(missing.items()):
            if rank in wrong or folder.name in there:
                del missing[rank]
                gone = None
                yield folder, wrong.get(rank)
        if not missing:
            return
        # Asked after the look at the folders: a job that ends between the two is seen in the next round.
        if _slurm("squeue", "--noheader", "--name", name):
            gone = None
        else:
            gone = gone or time.monotonic()
            if time.monotonic() - gone > (_PATIENCE if not wrong else _POLL):
                break
        time.sleep(_POLL)
    if missing and not wrong:
        rank = min(missing)
        raise RecipeError.one(
            step,
            None,
            f"Slurm has ended, and {len(missing)} of {len(folders)} pieces are not there",
            f"read {logs / 'logs' / f'task_{rank:05d}.log'} and slurm_logs in {logs}; "
            "the same command goes on with what is done",
        )


def _slurm(*words: str) -> str:
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise RecipeError.one(
            "machine.prepare.engine", "slurm", f"there is no {words[0]} on this machine",
            "type the command on a machine of the cluster that submits jobs, or machine.prepare.engine=local",
        ) from error  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise _refused(words[0], f"answers: {error.stderr.strip()}") from error


def _refused(command: str, answer: str) -> RecipeError:
    fix = "mend it as your cluster's page says, or machine.prepare.engine=local"
    return RecipeError.one("machine.prepare.engine", "slurm", f"{command} {answer}", fix)
