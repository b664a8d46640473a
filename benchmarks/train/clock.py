"""What the ticks of probe/sitecustomize.py say."""

import json
from pathlib import Path
from typing import Any

from benchmarks.train.job import DPO


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def measure(made: dict[str, Any], *, warm: int, kind: str) -> dict[str, Any]:
    """Figures of one run: `began` and `ticks` as `run.start` gives them.

    first_step_s: from the process's start to the end of its first optimiser step. cpu_step, wall_step: means over the
    steps after `warm`. supervised_per_cpu_s: supervised tokens of those steps by their CPU seconds (SFT only).
    What DPO computes between the trainer's construction and its first step (we score the reference there, once for all
    pairs of the run; peers do it inside each step) is spread over the run's steps and counted with them.
    """
    steps = [tick for tick in made["ticks"] if tick["event"] == "on_step_end"]
    cell: dict[str, Any] = {"exit": made["exit"], "peak_mib": made["peak_mib"]}
    if not steps:
        return {**cell, "error": made["last_line"] or "no step was made"}
    assert kind == "sft" or "dpo" in steps[0]["output_dir"], "a stage before DPO was trained in the measured run"
    cell["first_step_s"] = round(steps[0]["time"] - made["began"], 2)
    cell["first_step_cpu"] = round(steps[0]["cpu"], 2)
    if len(steps) > warm:
        begin, end, count = steps[warm - 1], steps[-1], len(steps) - warm
        cpu = end["cpu"] - begin["cpu"]
        cell |= {"steps": count, "cpu_step": round(cpu / count, 3)}
        cell["wall_step"] = round((end["time"] - begin["time"]) / count, 3)
        cell["peak_mib"] = round(end["peak_kib"] / 1024)
        if kind == "dpo":
            before = {tick["event"]: tick for tick in made["ticks"] if tick["event"] != "on_step_end"}
            ready, built = before["on_train_begin"], before["on_init_end"]
            cell["reference_cpu_step"] = round((ready["cpu"] - built["cpu"]) / DPO["steps"], 3)
            cell["cpu_step"] = round(cell["cpu_step"] + cell["reference_cpu_step"], 3)
            cell["wall_step"] = round(cell["wall_step"] + (ready["time"] - built["time"]) / DPO["steps"], 3)
        if kind == "sft":
            tokens = end["supervised"] - begin["supervised"]
            cell |= {"supervised_step": round(tokens / count, 1), "supervised_per_cpu_s": round(tokens / cpu, 1)}
    return cell
