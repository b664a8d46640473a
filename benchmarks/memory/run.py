"""Peak memory of every configuration, measured and planned: `python benchmarks/memory/run.py [--only WORD]`.

Each configuration runs in fresh processes; results.json is written after each, so a stopped run goes on where it was.
`--table` measures nothing. The table against the planner of today is printed, and put into RESULTS.md. Peaks are VmHWM
of each rank, the larger of both; of EXPORT that of a process that it starts, if that is larger. Exit code 1: a
configuration could not be measured, or the plan is more than 10 % off.
"""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cases import Case, cases

from finetune.artifacts import write_whole
from finetune.memory import Counted, here, plan, settle

HERE = Path(__file__).resolve().parent
WORKER = [sys.executable, str(HERE / "worker.py")]
RESULTS, PAGE = HERE / "results.json", HERE / "RESULTS.md"
BEGIN, END = "<!-- made by run.py -->", "<!-- end -->"
MIB = 2**20
MOST_OFF = 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of configurations' names")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what was measured before as well")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    file: Path = options.results
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for case in cases():
        if options.table or not any(word in case.name for word in options.only):
            continue
        if case.name in results and not options.again:
            continue
        measured = measure(case)
        print(case.name, measured, flush=True)
        if measured is not None:
            note = {"date": datetime.now(UTC).date().isoformat(), "cores": len(os.sched_getaffinity(0))}
            results[case.name] = {**case.to_json(), **measured, **note, "python": platform.python_version()}
            write_whole(file, json.dumps(results, indent=1, sort_keys=True) + "\n")
    text, off = table(results)
    print(text)
    if file == RESULTS:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 1 if off else 0


def measure(case: Case) -> dict[str, int] | None:
    """Bytes of the rank that needs most; None when it failed, after its last words."""
    with tempfile.TemporaryDirectory() as folder:
        for step in case.steps:  # in processes that are none of the measured one's: their peaks are not its own
            subprocess.run([*WORKER, json.dumps(case.to_json()), folder, step], check=True, cwd=HERE)
        ranks = [start(case, Path(folder), rank, port) for port in (free_port(),) for rank in range(case.processes)]
        outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    found = []
    for rank, output in zip(ranks, outputs, strict=True):
        lines = [line for line in output.splitlines() if line.startswith("MEASURED ")]
        if rank.returncode or not lines:
            print(output[-2000:], file=sys.stderr)
            return None
        found.append(json.loads(lines[-1].removeprefix("MEASURED ")))
    return max(found, key=lambda one: max(one["load_peak"], one["train_peak"]))


def start(case: Case, folder: Path, rank: int, port: int) -> "subprocess.Popen[str]":
    """Rank `rank`, as torchrun would start it; alone without a launcher's environment."""
    environment = dict(os.environ)
    if case.processes > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.processes, "LOCAL_WORLD_SIZE": case.processes}
        environment |= {name: str(value) for name, value in places.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [*WORKER, json.dumps(case.to_json()), str(folder)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def planned(case: Case) -> int:
    """Bytes of the planner's peak for the measured stage on one device, its longest row known."""
    found = plan(settle(case.recipe(), here()), counted={"sft": Counted(case.rows, None, case.length)})
    if case.stage in found.children:
        return found.children[case.stage]
    return next(stage.bytes.peak for stage in found.stages if stage.name == case.stage)


def table(results: dict[str, Any]) -> tuple[str, bool]:
    """The table as Markdown, and whether a plan is more than 10 % off."""
    lines = ["| configuration | measured, MiB | planned, MiB | planned / measured |", "|---|---|---|---|"]
    ratios = []
    for case in cases():
        if case.name in results:
            peak = max(results[case.name]["load_peak"], results[case.name]["train_peak"])
            ratios.append(planned(case) / peak)
            lines.append(f"| {case.name} | {peak / MIB:,.0f} | {planned(case) / MIB:,.0f} | {ratios[-1]:.3f} |")
    if ratios:
        lines.append(f"\n{len(ratios)} configurations, planned / measured {min(ratios):.3f} to {max(ratios):.3f}")
    return "\n".join(lines), not ratios or max(abs(ratio - 1) for ratio in ratios) > MOST_OFF


if __name__ == "__main__":
    raise SystemExit(main())
