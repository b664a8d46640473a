"""Preparing many short records, and removing their near duplicates beside others: one command, one run.

    .venv/bin/python benchmarks/corpus/run.py --folder /somewhere/with/6/GB [--rows 1000000]

Contenders run one after the other, each in processes of its own; the results file is written after each, so a stopped
run goes on where it was. `--alone CMD` is put before every measured command: something that waits until the machine is
free. `--table` prints what is there. What was made is deleted.
"""

import argparse
import ctypes
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.corpus.make import make  # noqa: E402 - started as a script, this file has to say where it is
from finetune.artifacts import write_whole  # noqa: E402

PEERS = ROOT / ".venv-bench-corpus/bin/python"
Cell = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where records and outputs are made")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--alone", type=shlex.split, default=[], help="command before every measured one")
    parser.add_argument("--results", type=Path, default=HERE / f"results/{datetime.now(UTC).date()}-cpu.json")
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print("MEASURED " + json.dumps(watched(options.measure)), flush=True)
        return 0
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    cells = results.setdefault(str(options.rows), {})
    for name in () if options.table else options.only:
        if name in cells and not options.again:
            continue
        records = make(options.folder / "records", options.rows)
        cells[name] = measure(name, records, options.folder, options.workers, options.alone)
        print(name, cells[name], flush=True)
        results["machine"] = machine()
        options.results.parent.mkdir(exist_ok=True)
        write_whole(options.results, json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


def measure(name: str, records: Path, folder: Path, workers: int, alone: Sequence[str] = ()) -> Cell:
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = [str(word) for word in CONTENDERS[name](records, out, workers)]
    own = [sys.executable, str(HERE / "run.py"), "--folder", str(out), "--measure", *command]
    done = subprocess.run([*alone, *own], capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [line.removeprefix("MEASURED ") for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
    assert len(lines) == 1, done.stderr[-3000:] + done.stdout[-3000:]
    cell: Cell = json.loads(lines[0])
    assert cell.pop("exit") == 0, done.stderr[-3000:] + done.stdout[-3000:]
    if (spent := out / "near_cpu_s").exists():
        cell["near_cpu_s"] = float(spent.read_text())
    if (kept := out / "kept.txt").exists():
        cell |= judge(records, kept.read_text(encoding="utf-8").split())
    for manifest in out.glob("work/prepare-*/manifest.json"):
        facts = json.loads(manifest.read_text(encoding="utf-8"))["facts"]
        cell |= {"rows_out": sum(facts["rows"].values()), "tokens": sum(facts["tokens"].values())}
    shutil.rmtree(out)
    return cell


def prepare(records: Path, out: Path, workers: int) -> list[Any]:
    """The command itself: read, repair, redact, duplicates, split, decontaminate, tokens, datasheet."""
    words = [
        "recipe=short_records", "model=smollm2_135m", "machine=cpu", f"data_root={records.parent}",
        f"sources.records.path={records.name}", f"work={out / 'work'}", f"machine.prepare.workers={workers}",
    ]  # fmt: skip
    return [ROOT / ".venv/bin/finetune", "prepare", "--config-dir", HERE, *words]


def near(records: Path, out: Path, workers: int) -> list[Any]:
    return [sys.executable, HERE / "ours.py", records, out, workers]


def peer(name: str, python: Path) -> Any:
    return lambda records, out, workers: [python, HERE / "peers.py", name, records, out, workers]


CONTENDERS = {
    "prepare": prepare,
    "near": near,
    "rensa": peer("rensa", Path(sys.executable)),
    "rensa_bands": peer("rensa_bands", Path(sys.executable)),
    "datatrove": peer("datatrove", PEERS),
    "text_dedup": peer("text_dedup", PEERS),
}


def watched(command: Sequence[str]) -> Cell:
    """Wall seconds, CPU seconds of all processes (workers of servers of processes too) and the most memory they held.

    Memory is the sum of their proportional set sizes, looked at five times a second: what they share counts once.
    """
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: processes whose parent has ended become ours, and count
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    ended, peak = threading.Event(), [0]

    def look() -> None:
        while not ended.wait(0.2):
            peak[0] = max(peak[0], sum(map(_pss, _below(os.getpid()))))

    watcher = threading.Thread(target=look)
    watcher.start()
    cpu, code = 0.0, -1
    while True:
        try:
            number, status, spent = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu += spent.ru_utime + spent.ru_stime
        if number == process.pid:
            code, wall = os.waitstatus_to_exitcode(status), time.perf_counter() - began
            process.returncode = code
    ended.set()
    watcher.join()
    return {"exit": code, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "peak_mib": round(peak[0] / 1024)}


def _below(top: int) -> set[int]:
    """Processes below one, itself not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # ended since
            continue
    found = {top}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {top}


def _pss(process: int) -> int:
    """KiB."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def judge(records: Path, kept: Sequence[str]) -> Cell:
    """Of the planted repeats, how many are gone; and how many records are gone that nothing planted repeats."""
    stands_for: dict[str, str] = {}
    with records.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            stands_for[row["id"]] = row["repeats"] or row["id"]
    sizes, left = Counter(stands_for.values()), Counter(stands_for[name] for name in kept)
    planted = sum(sizes.values()) - len(sizes)
    found = sum(size - max(1, left[name]) for name, size in sizes.items())
    return {
        "rows_out": len(kept),
        "planted": planted,
        "found": found,
        "also_gone": sum(not left[name] for name in sizes),
    }


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    return {
        "cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
        "rensa": version("rensa"), "date": str(datetime.now(UTC).date()),
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    lines = [
        "| rows | contender | wall s | CPU s | peak MiB | CPU s of signatures and search | rows left | planted found | "
        "others gone |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rows, cells in sorted(((int(rows), cells) for rows, cells in results.items() if rows.isdigit())):
        for name, cell in cells.items():
            found = f"{cell['found'] / cell['planted']:.2%}" if "planted" in cell else ""
            words = (
                f"{rows:,}", name, cell["wall_s"], cell["cpu_s"], f"{cell['peak_mib']:,}", cell.get("near_cpu_s", ""),
                f"{cell['rows_out']:,}", found, cell.get("also_gone", ""),
            )  # fmt: skip
            lines.append("| " + " | ".join(map(str, words)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
