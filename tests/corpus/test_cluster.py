"""The same units through datatrove's executors: its own processes, and jobs of Slurm."""

import os
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from finetune.config.machine import Machine, Preparation
from finetune.corpus.engine import Engine, work_off
from finetune.errors import Preempted, RecipeError
from tests.corpus.test_engine import ONE, double, quiet, refuse, tree

DATATROVE = Engine.of(Machine(name="here", prepare=Preparation(engine="datatrove", workers=2)))
SLURM = Engine.of(
    Machine(
        name="cluster",
        prepare=Preparation(
            engine="slurm", partition="cpu", time="00:10:00", memory_gib=3, workers=4, sbatch={"account": "law"}
        ),
    )
)


def files(root: Path) -> dict[str, str]:
    """Without what the executor notes for itself."""
    return {f"{path.name}/{name}": text for path in root.glob("[!.]*/[!.]*") for name, text in tree(path).items()}


@pytest.mark.slow
def test_datatroves_processes_write_what_ours_write_and_tell_the_same_problems(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with pytest.raises(RecipeError) as ours:
        work_off("rows", range(4), partial(refuse, 1), scratch=here, engine=ONE, say=quiet)
    with pytest.raises(RecipeError) as theirs:
        work_off("rows", range(4), partial(refuse, 1), scratch=there, engine=DATATROVE, say=quiet)
    assert [str(problem) for problem in theirs.value.problems] == [str(problem) for problem in ours.value.problems]
    done = work_off("rows", range(4), partial(double, None), scratch=there, engine=DATATROVE, say=quiet)
    assert [(folder / "double").read_text() for folder in done] == ["0", "2", "4", "6"]
    work_off("rows", range(4), partial(double, None), scratch=here, engine=ONE, say=quiet)
    assert files(here) == files(there)


COMMANDS = {
    # One job of the array after the other, as a node would: with its number, and with the script alone.
    "sbatch": """
printf '%s\\n' "$@" >> "$QUEUE/words"
script="${@: -1}"
cp "$script" "$QUEUE/script"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for rank in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$rank SLURM_NODELIST=here bash "$script" >> "$QUEUE/log" 2>&1
done
echo Submitted batch job 7""",
    "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done; exec "$@"',
    "scontrol": 'echo "${@: -1}"',
    "squeue": "true",
    "scancel": 'echo "$@" >> "$QUEUE/cancelled"',
}
"""What stands for Slurm's commands, which no machine of CI has."""


@pytest.mark.slow
def test_slurms_jobs_write_what_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm 22.05 itself (slurmctld and slurmd of Debian 12 on one machine) gave the same folders on 2026-11-22."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    monkeypatch.setenv("QUEUE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr("finetune.corpus.cluster._POLL", 0.1)
    here, there = tmp_path / "here", tmp_path / "there"
    with pytest.raises(RecipeError, match="file 1:0"):
        work_off("two words", range(2), partial(refuse, 1), scratch=there, engine=SLURM, say=quiet)
    script = (tmp_path / "script").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in script if line.startswith("#SBATCH")}
    assert asked >= {"partition=cpu", "time=00:10:00", "mem-per-cpu=3G", "account=law", "array=0-1%2"}
    folders = work_off("two words", range(2), partial(double, None), scratch=there, engine=SLURM, say=quiet)
    assert "#SBATCH --array=0-0%1" in (tmp_path / "script").read_text(), "what is there is not submitted again"
    assert [(folder / "double").read_text() for folder in folders] == ["0", "2"]
    work_off("two words", range(2), partial(double, None), scratch=here, engine=ONE, say=quiet)
    assert files(here) == files(there)
    names = {line for line in script if "--job-name" in line}
    cancelled = (tmp_path / "cancelled").read_text().splitlines()
    assert {f"#SBATCH --job-name={line.split()[1]}" for line in cancelled} == names


HELD = """
import sys
from functools import partial
from pathlib import Path
from finetune.corpus.engine import work_off
from finetune.ranks import hold
from tests.corpus.test_cluster import SLURM
from tests.corpus.test_engine import double

work = Path(sys.argv[1])
with hold(work):
    work_off("rows", range(2), partial(double, None), scratch=work, engine=SLURM)
"""


@pytest.mark.slow
def test_a_run_that_is_terminated_cancels_its_jobs(tmp_path: Path) -> None:
    """Whoever stops a preparation must not leave jobs behind that hold nodes of a cluster."""
    commands = {"sbatch": 'touch "$QUEUE/submitted"; echo Submitted batch job 7', "squeue": "echo 7"}
    (tmp_path / "commands").mkdir()
    for name, text in {**COMMANDS, **commands}.items():
        (tmp_path / "commands" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "commands" / name).chmod(stat.S_IRWXU)
    (tmp_path / "work").mkdir()
    path = f"{tmp_path / 'commands'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "QUEUE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path / "work")], env=environment, cwd=tmp_path)
    while not (tmp_path / "submitted").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == Preempted.EXIT_CODE
    before, after = (tmp_path / "cancelled").read_text().splitlines()
    assert before == after
    assert after.startswith("--name finetune.rows.datatrove-")


def test_a_step_of_several_words_has_no_space_in_what_slurm_reads_and_a_work_folder_with_one_is_refused(
    tmp_path: Path,
) -> None:
    """sbatch called the rest of `measure general speeches` an invalid directive."""
    for engine in (ONE, SLURM):
        with pytest.raises(RecipeError, match=r"file 1:0|set work= to a path without one"):
            work_off("two words", [1], partial(refuse, 1), scratch=tmp_path / "a b", engine=engine, say=quiet)


def test_without_slurm_the_command_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"there is no scancel on this machine: .*machine\.prepare\.engine=local"):
        work_off("rows", range(2), partial(double, None), scratch=tmp_path, engine=SLURM, say=quiet)
