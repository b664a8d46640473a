"""Train in two ranks (one: layout `single`) that are killed or terminated, again and again, until they end.

Run as a script: `pair.py LAYOUT ROOT SEED`; prints what came of it. Everything heavy is imported once; every attempt
forks the ranks. What to do, and when, is decided by a rank itself: at its n-th file operation in the stage's folder,
before the optimiser of a step, or in the middle of an evaluation.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ["DS_ACCELERATOR"] = "cpu"

import datasets  # noqa: F401
import deepspeed  # noqa: F401
import torch
from trl import SFTTrainer  # noqa: F401

from finetune import arguments, artifacts, guard, ranks, sft  # noqa: F401
from tests import tiny
from tests.distributed.rank import ZERO3
from tests.faults.victim import at_operation, published

KILL, TERM = signal.SIGKILL, signal.SIGTERM
PATIENCE = 60.0
"""Seconds that the other rank has to end by itself after one was killed."""

Plan = tuple[str, int, int | None, int]
"""(moment, number, the rank to which it happens or None for all, signal). `harmed`: a step, after the newest checkpoint
was harmed: only who goes on from the one before comes to that step."""


def at_moment(moment: str, number: int, root: Path, act: Callable[[], None]) -> None:
    """Arrange for `act` at the n-th file operation, before the n-th step's optimiser, or within an evaluation."""
    if moment == "operation":
        at_operation(root, number, act)
        return
    name = "measure" if moment == "evaluation" else "_get_grad_norm"
    original = getattr(guard.Guarded, name)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == number:
            act()
        return original(self, *args, **kwargs)

    def measure(self: Any) -> Any:
        collate = self.data_collator

        def between(examples: Any) -> Any:
            act()
            return collate(examples)

        if self.state.global_step >= number:
            self.data_collator = between
        try:
            return original(self)
        finally:
            self.data_collator = collate

    setattr(guard.Guarded, name, measure if moment == "evaluation" else step)


def harm_newest(root: Path) -> None:
    """Cut what DeepSpeed wrote for the last rank, or take the optimiser away."""
    newest = max(root.glob("*.partial/.checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shards = sorted(newest.rglob("zero_pp_rank_1_*optim_states.pt"))
    if shards:
        shards[0].write_bytes(shards[0].read_bytes()[:-100])
    else:
        (newest / "optimizer.pt").unlink()


def rank(
    number: int, layout: str, root: Path, inputs: dict[str, artifacts.Artifact], port: int, plan: Plan | None
) -> int:
    """Train as this rank and return the exit code."""
    world = world_of(layout)
    if world > 1:
        os.environ.update(
            RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    if plan is not None and plan[2] in (None, number):
        moment, when, whom, what = plan
        group = whom is None and what == KILL and number == 0
        at_moment(moment, when, root, lambda: os.killpg(0, what) if group else os.kill(os.getpid(), what))
    machine = tiny.machine(
        processes=world, layout=layout, per_device_batch_size=2, deepspeed=ZERO3 if layout == "zero3" else None
    )
    config = tiny.sft_config(save_steps=2, eval_steps=3, log_steps=1)
    try:
        with ranks.hold(root):
            ranks.build_together(
                sft.SFT_STAGE, config, root=root, inputs=inputs, machine=machine, tracker=tiny.Silent(),
                say=print if number == 0 else lambda line: None,
            )  # fmt: skip
    except SystemExit as stop:
        return int(stop.code or 0)
    except RuntimeError as error:  # what torch says when the other rank is gone
        print(f"rank {number}: {str(error)[:200]}")
        return 1
    return 0


def world_of(layout: str) -> int:
    return 1 if layout == "single" else 2


def attempt(layout: str, root: Path, inputs: dict[str, artifacts.Artifact], plan: Plan | None) -> list[int]:
    """Fork the ranks into one process group; their exit codes (negative: signal; 999: it hung and was killed here)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    children: list[int] = []
    for number in range(world_of(layout)):
        child = os.fork()
        if child == 0:
            os.setpgid(0, children[0] if children else 0)
            try:
                code = rank(number, layout, root, inputs, port, plan)
            finally:
                sys.stdout.flush()
            os._exit(code)
        os.setpgid(child, children[0] if children else child)
        children.append(child)
    codes: dict[int, int] = {}
    broken_since: float | None = None
    while len(codes) < len(children):
        for number, child in enumerate(children):
            if number not in codes and (status := os.waitpid(child, os.WNOHANG))[0]:
                codes[number] = os.waitstatus_to_exitcode(status[1])
                broken_since = broken_since or time.monotonic()
        if broken_since and time.monotonic() - broken_since > PATIENCE:
            for number in set(range(len(children))) - set(codes):
                os.kill(children[number], KILL)
                os.waitpid(children[number], 0)
                codes[number] = 999
        time.sleep(0.02)
    return [codes[number] for number in sorted(codes)]


def last_checkpoint(root: Path) -> int:
    sealed = root.glob("*.partial/.checkpoints/checkpoint-*/COMPLETE")
    return max((json.loads(file.read_text())["step"] for file in sealed), default=0)


def main(layout: str, root: Path, seed: int) -> None:
    torch.set_num_threads(1)
    made = root / "inputs"
    inputs = {"base": tiny.make_base(made / "base"), "prepared": tiny.make_prepared(made / "prepared")}
    done = [0] * world_of(layout)
    assert attempt(layout, root / "whole", inputs, None) == done
    (expected,) = [artifacts.read(path).manifest["files"] for path in published(root / "whole")]
    draw = random.Random(seed)
    plans: list[list[Plan]] = [
        [("operation", draw.randrange(2, 110), None, KILL), ("operation", draw.randrange(2, 60), 0, KILL)],
        [("operation", draw.randrange(2, 60), None, KILL), ("evaluation", 3, None, KILL)],
        [("step", draw.randrange(2, 8), 1, KILL), ("evaluation", draw.randrange(4, 7), 0, KILL)],
        [("step", draw.randrange(1, 8), 1, TERM), ("evaluation", 6, 1, TERM)],
        [("evaluation", 3, None, TERM), ("operation", draw.randrange(20, 60), 0, TERM)],
        [("step", 6, None, KILL), ("harmed", 3, None, KILL)],
    ]
    if layout == "zero3":
        plans = [plans[0], plans[2], plans[3], plans[5]]
    if layout == "single":  # victim.py kills it everywhere else
        plans = [[("evaluation", 3, None, KILL), ("evaluation", 6, None, TERM)], plans[5]]
    results = []
    for number, plan in enumerate(plans):
        place = root / f"trial-{number}"
        codes, kept = [], []
        for one in plan:
            if one[0] == "harmed":
                harm_newest(place)
            codes.append(attempt(layout, place, inputs, one))
            kept.append(last_checkpoint(place))
            if codes[-1] == done:
                break
            assert not place.exists() or not published(place), f"{one}: published although it was stopped"
        if codes[-1] != done:
            codes.append(attempt(layout, place, inputs, None))
        files = [artifacts.read(path).manifest["files"] for path in published(place)]
        results.append({"plan": plan, "codes": codes, "kept": kept, "same": files == [expected]})
    print("RESULT " + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
