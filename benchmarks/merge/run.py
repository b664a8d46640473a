"""Our merge against PEFT's and against a mere copy: `python benchmarks/merge/run.py --folder EMPTY_FOLDER`.

Every contender runs in processes of its own, copies and our merge in turns; the results file is written after each
group, so a stopped run goes on where it was. `--alone CMD` is put before every timed group: something that waits until
the machine is free. `--table` prints what is there. What was made is deleted once a shape is done.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.merge.make import SHAPES, make  # noqa: E402 - started as a script, this file has to say where it is
from finetune.artifacts import hash_file, write_whole  # noqa: E402
from finetune.shards import read_header, shard_names  # noqa: E402

Cell = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints are made, three times their size")
    parser.add_argument("--shapes", nargs="*", default=[name for name in SHAPES if name != "small"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--alone", type=shlex.split, default=[], help="command before every measured one")
    parser.add_argument("--results", type=Path, default=HERE / f"results/{datetime.now(UTC).date()}-cpu.json")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        for name in options.measure:
            print("MEASURED " + json.dumps([name, CONTENDERS[name](options.folder)]), flush=True)
        return 0
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    for name in () if options.table else options.shapes:
        folder = options.folder / name.replace(" ", "-").replace(",", "")
        cells = results.setdefault(name, {"bytes": SHAPES[name].bytes, "cells": {}})["cells"]
        for group in (["copied", "copied_fast", "ours"] * options.repeat, ["four_bit"], ["killed"], ["peft"]):
            if group[-1] in cells:
                continue
            make(SHAPES[name], folder)
            for contender, cell in measure(group, folder, options.alone if group != ["killed"] else ()):
                cells.setdefault(contender, []).append(cell)
                print(name, contender, cell, flush=True)
            results["machine"] = machine()
            write_whole(options.results, json.dumps(results, indent=1) + "\n")
        if folder.exists() and not options.keep:
            shutil.rmtree(folder)
    print(table(results))
    return 0


def measure(contenders: Sequence[str], folder: Path, alone: Sequence[str] = ()) -> list[tuple[str, Cell]]:
    """One after the other; all or none."""
    command = [*alone, sys.executable, str(HERE / "run.py"), "--folder", str(folder), "--measure", *contenders]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.removeprefix("MEASURED ") for line in result.stdout.splitlines() if line.startswith("MEASURED ")]
    assert len(lines) == len(contenders), result.stderr[-2000:] + result.stdout[-2000:]
    return [(name, cell) for name, cell in map(json.loads, lines)]


def ours(folder: Path) -> Cell:
    """The command itself, imports included."""
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    return timed(merge_command(folder, out))


def four_bit(folder: Path) -> Cell:
    """The same merge where every linear layer goes through 4 bit first, as after QLoRA."""
    out = folder / "four_bit"
    found = timed([*merge_command(folder, out), "--trained-on", "nf4-double"])
    shutil.rmtree(out)
    return found


def killed(folder: Path) -> Cell:
    """Killed with SIGKILL three times, each time later, and started again; the same files as undisturbed?"""
    out, kills = folder / "killed", 0
    undisturbed = ours(folder)
    while not out.exists():
        with subprocess.Popen(merge_command(folder, out), stdout=subprocess.DEVNULL) as attempt:
            if kills < 3:
                time.sleep((0.5, 0.65, 0.8)[kills] * undisturbed["wall_s"])
                attempt.send_signal(signal.SIGKILL)
            ended = attempt.wait()
        assert ended in (0, -signal.SIGKILL)
        kills += ended == -signal.SIGKILL
    same = (out / "merge.json").read_bytes() == (folder / "ours/merge.json").read_bytes()
    for name, sha256 in json.loads((out / "merge.json").read_text(encoding="utf-8"))["files"].items():
        same = same and hash_file(out / "model" / name) == sha256
    shutil.rmtree(out)
    return {"kills": kills, "same_bytes": same}


def copied(folder: Path) -> Cell:
    """cp, fsync and coreutils' sha256sum of the same files: what any publication of so many bytes costs."""
    return _copied(folder, ["sha256sum"])


def copied_fast(folder: Path) -> Cell:
    """The same with OpenSSL's sha256, which uses the CPU's instructions for it."""
    return _copied(folder, ["openssl", "dgst", "-sha256"])


def peft(folder: Path) -> Cell:
    """PEFT's own merge, imports included, nothing hashed and no fsync; then whether the tensors are the same."""
    out = folder / "peft"
    shutil.rmtree(out, ignore_errors=True)
    script = str(HERE / "peft_merge.py")
    found = timed([sys.executable, script, str(folder / "base"), str(folder / "adapter"), str(out)])
    theirs = _tensors(out)
    found["same_tensors"] = _tensors(folder / "ours/model") == theirs if (folder / "ours").exists() else None
    shutil.rmtree(out)
    return found


CONTENDERS: dict[str, Callable[[Path], Cell]] = {
    "copied": copied, "copied_fast": copied_fast, "ours": ours, "four_bit": four_bit, "killed": killed, "peft": peft,
}  # fmt: skip


def merge_command(folder: Path, out: Path) -> list[str]:
    words = ["merge", "--base", str(folder / "base"), "--adapter", str(folder / "adapter"), "--out", str(out)]
    return [sys.executable, "-m", "finetune.cli", *words]


def timed(command: Sequence[str]) -> Cell:
    """Wall and CPU seconds of a command and the most memory that it held, over a bare interpreter with torch."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=HERE.parents[1]) as process:
        _, status, spent = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    assert process.returncode == 0, command
    bare = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=True).stdout
    peak = spent.ru_maxrss * 1024
    cpu = spent.ru_utime + spent.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_over_bare_mb": round((peak - int(bare)) / 1e6)}


BARE = "import torch, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def _copied(folder: Path, hasher: Sequence[str]) -> Cell:
    files = [folder / "base" / name for name in shard_names(folder / "base")]
    copies = folder / "copies"
    copies.mkdir(exist_ok=True)
    seconds = {}
    for name, command in (
        ("cp", ["cp", *map(str, files), str(copies)]),
        ("fsync", ["sync", *(str(copies / file.name) for file in files)]),
        ("sha256", [*hasher, *(str(copies / file.name) for file in files)]),
    ):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds[f"{name}_s"] = round(time.perf_counter() - began, 2)
    shutil.rmtree(copies)
    return {"wall_s": round(sum(seconds.values()), 2), **seconds}


def _tensors(directory: Path) -> dict[str, str]:
    from finetune.deltas import hash_tensor

    found = {}
    for name in shard_names(directory):
        found |= {tensor.name: hash_tensor(tensor) for tensor in read_header(directory / name).values()}
    return found


def machine() -> dict[str, Any]:
    import peft
    import torch
    import transformers

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(line.split(": ")[1] for line in lines if "model name" in line)
    return {
        "date": datetime.now(UTC).date().isoformat(), "cores": len(os.sched_getaffinity(0)), "cpu": model,
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "peft": peft.__version__,
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Medians, as Markdown."""
    lines = [
        "| shape | GB | cp + fsync + sha256sum | with OpenSSL's sha256 | finetune merge | to the first | CPU s "
        "| peak over bare | through 4 bit | CPU s | peak over bare | PEFT | CPU s | peak over bare | same tensors "
        "| times killed: same bytes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for name, found in results.items():
        if name == "machine":
            continue
        middle = {key: sorted(cells, key=lambda cell: cell.get("wall_s", 0))[len(cells) // 2]
                  for key, cells in found["cells"].items()}  # fmt: skip
        if not {"copied", "copied_fast", "ours", "killed"} <= set(middle):
            continue
        mine, copy, theirs = middle["ours"], middle["copied"], middle.get("peft")
        rounded = _three(middle.get("four_bit"))
        peft_cells = f"{_three(theirs)} | {'' if theirs is None else 'yes' if theirs['same_tensors'] else 'no'} |"
        lines.append(
            f"| {name} | {found['bytes'] / 1e9:.2f} | {copy['wall_s']:.1f} s | {middle['copied_fast']['wall_s']:.1f} s "
            f"| {mine['wall_s']:.1f} s | {mine['wall_s'] / copy['wall_s']:.2f} x | {mine['cpu_s']:.1f} "
            f"| {mine['peak_over_bare_mb']} MB | {rounded} | {peft_cells} "
            f"{middle['killed']['kills']}: {'yes' if middle['killed']['same_bytes'] else 'no'} |"
        )
    return "\n".join(lines)


def _three(cell: Cell | None) -> str:
    """Wall, CPU and peak."""
    if cell is None:
        return "not measured | |"
    return f"{cell['wall_s']:.1f} s | {cell['cpu_s']:.1f} | {cell['peak_over_bare_mb']} MB"


if __name__ == "__main__":
    raise SystemExit(main())
