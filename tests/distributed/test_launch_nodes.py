"""scripts/launch_nodes.sh and the Slurm script around it, with two "machines" that are this one."""

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "launch_nodes.sh"
SBATCH = ROOT / "scripts" / "slurm" / "train.sbatch"

ENTRY = """
import os, sys, torch, torch.distributed as distributed
distributed.init_process_group("gloo")
total = torch.tensor([float(os.environ["RANK"]) + 1])
distributed.all_reduce(total)
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "sum", int(total), *sys.argv[1:], flush=True)
distributed.destroy_process_group()
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.distributed
def test_two_machines_meet_and_pass_the_overrides_on(tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text(ENTRY, encoding="utf-8")
    common = os.environ | {
        "MAIN": "127.0.0.1",
        "PORT": str(_free_port()),
        "GPUS": "1",
        "ENTRY": str(tmp_path / "entry.py"),
    }
    nodes = [
        subprocess.Popen(
            [SCRIPT, "recipe=legal", "stages=[sft,dpo]"],
            env=common | {"RANK_OF_NODE": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    for number, output in enumerate(outputs):
        assert f"rank {number} of 2 sum 3 recipe=legal stages=[sft,dpo]" in output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "MAIN"),
        ({"MAIN": "10.0.0.1"}, "RANK_OF_NODE"),
        ({"MAIN": "10.0.0.1", "RANK_OF_NODE": "0", "GPUS": "0"}, "GPU"),
    ],
)
def test_what_is_missing_on_the_command_line_is_named(given: dict[str, str], message: str) -> None:
    bare = {name: value for name, value in os.environ.items() if name not in {"MAIN", "RANK_OF_NODE", "GPUS"}}
    outcome = subprocess.run([SCRIPT], env=bare | given, capture_output=True, text=True, check=False, timeout=60)
    assert outcome.returncode != 0
    assert message in outcome.stderr


def _submit(tmp_path: Path, *, plan: int, launch: int, restarts: int = 0) -> tuple[int, str]:
    """Run the batch script in a folder where srun runs its command once and the launcher ends as told."""
    programs = {
        "bin/srun": 'shift; export SLURM_NODEID=1; exec "$@"',
        "bin/scontrol": 'if [ "$1" = show ]; then echo node1; else echo "scontrol $*"; fi',
        ".venv/bin/accelerate": "exit 0",
        ".venv/bin/finetune": f'echo "finetune $*" >> plan.log; exit {plan}',
        "scripts/launch_nodes.sh": f'echo "node $RANK_OF_NODE of $MAIN, $NODES x $GPUS: $*"; exit {launch}',
    }
    for name, body in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "4711",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    outcome = subprocess.run(
        ["bash", SBATCH, "recipe=legal", "machine=a100x8x2"],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )
    return outcome.returncode, outcome.stdout


def test_slurm_job_launches_every_node_with_the_overrides(tmp_path: Path) -> None:
    code, output = _submit(tmp_path, plan=0, launch=0)
    assert code == 0
    assert "node 1 of node1, 2 x 8: recipe=legal machine=a100x8x2" in output
    assert "requeue" not in output


def test_slurm_job_that_was_stopped_goes_back_into_the_queue(tmp_path: Path) -> None:
    code, output = _submit(tmp_path, plan=0, launch=1)
    assert code == 1
    assert "scontrol requeue 4711" in output


def test_slurm_job_with_a_mistake_in_its_recipe_is_not_queued_again(tmp_path: Path) -> None:
    code, output = _submit(tmp_path, plan=2, launch=1)
    assert code == 1
    assert "scontrol requeue" not in output
    assert "finetune plan" in output
    assert (tmp_path / "plan.log").read_text(encoding="utf-8") == "finetune plan recipe=legal machine=a100x8x2\n"


def test_slurm_job_that_keeps_failing_is_given_up(tmp_path: Path) -> None:
    code, output = _submit(tmp_path, plan=0, launch=1, restarts=5)
    assert code == 1
    assert "scontrol requeue" not in output
