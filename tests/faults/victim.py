"""Train in children that are killed, again and again, until one ends; print what came of it. Run as a script.

Everything heavy is imported once; every attempt is a fork. A child dies either at its n-th file operation inside the
stage's folder (which reaches every instant of saving and publishing) or after a number of milliseconds.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import datasets  # noqa: F401
import torch
from trl import DPOTrainer, SFTTrainer  # noqa: F401

from finetune import arguments, artifacts, dpo, loop, sft  # noqa: F401
from tests import tiny

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree", "shutil.copyfile")


def at_operation(folder: Path, number: int, act: Callable[[], None]) -> None:
    """`act` at the n-th time that this process opens, renames or removes something in `folder`, and ever after."""
    count = 0
    inside = str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _EVENTS and args and isinstance(args[0], str | os.PathLike) and inside in os.fspath(args[0]):
            count += 1
            if count >= number:
                act()

    sys.addaudithook(hook)


def die_after(seconds: float) -> None:
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


class Terminating(tiny.Silent):
    """Sends SIGTERM to its own process from inside the training loop, when the numbers of a step are logged."""

    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, prefix: str, metrics: Any, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def attempt(stage: str, root: Path, inputs: dict[str, artifacts.Artifact], *, kill: tuple[str, float] | None) -> int:
    """Fork, train, and return the exit code (negative: the signal that ended it)."""
    child = os.fork()
    if child:
        if kill and kill[0] == "term":
            time.sleep(kill[1])
            os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if kill and kill[0] == "operation":
            at_operation(root, int(kill[1]), lambda: os.kill(os.getpid(), signal.SIGKILL))
        elif kill and kill[0] == "time":
            die_after(kill[1])
        tracker = Terminating(int(kill[1])) if kill and kill[0] == "step" else tiny.Silent()
        config = tiny.sft_config(save_steps=2, eval_steps=3, log_steps=1)
        kind, given = sft.SFT_STAGE, {name: inputs[name] for name in ("base", "prepared")}
        if stage == "dpo":
            config["dpo"] = {**config.pop("sft"), "trl": {"learning_rate": 1e-3, "num_train_epochs": 2}}
            kind, given = dpo.STAGE, inputs
        artifacts.build(kind, config, root=root, inputs=given, machine=tiny.machine(), tracker=tracker)
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(int(stop.code or 0))
    sys.stdout.flush()
    os._exit(0)


def published(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and path.suffix != ".partial"]


def main(stage: str, root: Path, seed: int) -> None:
    torch.set_num_threads(1)
    made = root / "inputs"
    inputs = {"base": tiny.make_base(made / "base"), "prepared": tiny.make_prepared(made / "prepared")}
    if stage == "dpo":
        inputs["preferences"] = tiny.make_preferences(made / "preferences", pairs=10)
        config = tiny.sft_config(max_steps=3)
        inputs["adapter"] = artifacts.build(
            sft.SFT_STAGE, config, root=made, inputs={n: inputs[n] for n in ("base", "prepared")},
            machine=tiny.machine(), tracker=tiny.Silent(),
        )
    began = time.monotonic()
    assert attempt(stage, root / "whole", inputs, kill=None) == 0
    whole = time.monotonic() - began
    (expected,) = [artifacts.read(path).manifest["files"] for path in published(root / "whole")]
    draw = random.Random(seed)
    results = []
    plans: list[list[tuple[str, float]]] = [
        [("operation", draw.randrange(2, 165)), ("operation", draw.randrange(2, 110))] for _ in range(7)
    ]
    plans += [[("time", draw.uniform(0.3, 0.9) * whole), ("time", draw.uniform(0.3, 0.9) * whole)] for _ in range(3)]
    plans += [[("term", draw.uniform(0.2, 0.6) * whole)] for _ in range(3)]
    plans += [[("step", step)] for step in (1, 2)]
    for number, plan in enumerate(plans):
        place = root / f"trial-{number}"
        codes = []
        for kill in plan:
            codes.append(attempt(stage, place, inputs, kill=kill))
            if codes[-1] == 0:
                break
            # The last file operations come after the rename: then what was published has to be whole.
            found = published(place) if place.exists() else []
            assert all(artifacts.read(path).manifest["files"] == expected for path in found), f"{kill}: half published"
        if codes[-1] != 0:
            codes.append(attempt(stage, place, inputs, kill=None))
        files = [artifacts.read(path).manifest["files"] for path in published(place)]
        results.append({"plan": plan, "codes": codes, "same": files == [expected]})
    print("RESULT " + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
