"""The benchmark in one command; finished cells are kept, so the same command goes on where it was stopped.

    .venv/bin/python benchmarks/train/run.py [--peers trl,llamafactory] [--steps 12] [--repeats 3] [--cells N]
                                             [--out benchmarks/train/results/DATE-sft-dpo.json]
"""

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.train import clock, rows  # noqa: E402
from benchmarks.train.job import THREADS, Command, Job  # noqa: E402
from benchmarks.train.peers import axolotl, llamafactory, ms_swift, ours, plain_trl  # noqa: E402

PEERS: dict[str, ModuleType] = {
    "ours": ours, "trl": plain_trl, "llamafactory": llamafactory, "axolotl": axolotl, "ms-swift": ms_swift,
}
WARM = {"sft": 3, "dpo": 1}
"""Steps left out before the clock counts: memory is taken, kernels are chosen."""
PYTHON = str(ROOT / ".venv/bin/python")


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Nobody spins: without OMP_WAIT_POLICY=PASSIVE CPU seconds measure waiting threads."""
    return {
        **os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1", **extra,
    }


def start(command: Command, folder: Path, *, stop: int | None) -> dict[str, Any]:
    """Run to its end with the clock on."""
    folder.mkdir(parents=True, exist_ok=True)
    ticks = folder / "clock.jsonl"
    ticks.unlink(missing_ok=True)
    told = {**command.environment, "BENCH_CLOCK": str(ticks), "PYTHONPATH": str(ROOT / "benchmarks/train/probe")}
    if command.at == ROOT:  # ours: the code of this tree, wherever the environment was made for
        told["PYTHONPATH"] += f":{ROOT}"
    if stop is not None:
        told["BENCH_STOP"] = str(stop)
    with (folder / "output.txt").open("w") as output:
        began = time.time()
        child = subprocess.Popen(
            command.words, stdout=output, stderr=subprocess.STDOUT, env=environment(told), cwd=command.at or folder
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit": child.returncode, "began": began, "peak_mib": round(used.ru_maxrss / 1024), "ticks": clock.read(ticks),
        "last_line": last_line(folder / "output.txt"),
    }


def last_line(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line and ":" in line]
    return (errors or [line for line in lines if line] or [""])[-1][:300].replace(str(ROOT), ".")


def work() -> Path:
    return ROOT / "work/benchmark-train"


def job(kind: Any, variant: str, out: Path) -> Job:
    whole = work() / "whole"
    adapter = next((path for path in whole.glob("sft-*") if not path.name.endswith(".partial")), whole)
    model = subprocess.run(
        [PYTHON, "-c", "from finetune import embedded; print(embedded.locate('smollm2_135m'))"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.strip()
    return Job(kind, variant, work() / "rows", Path(model), adapter, out)


# --- cells -----------------------------------------------------------------------------------------------------------


def timed(kind: str, peer: str, variant: str, name: str, steps: int) -> dict[str, Any]:
    """CPU and wall seconds a step over `steps` steps after the warm ones, and the way to the first step's end."""
    folder = work() / "timed" / name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    command = PEERS[peer].command(job(kind, variant, folder / "out"))
    first = 1 if variant in ("launch", "prepared") else WARM[kind] + steps
    made = start(command, folder, stop=first)
    cell = clock.measure(made, warm=WARM[kind], kind=kind)
    shutil.rmtree(folder / "out", ignore_errors=True)
    return cell


def trained(peer: str, variant: str, name: str) -> dict[str, Any]:
    """A whole SFT and what its adapter gives on the held-out rows."""
    folder = work() / "trained" / name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    command = PEERS[peer].command(job("sft", variant, folder / "out"))
    made = start(command, folder, stop=None)
    found = sorted(command.adapter.rglob("adapter_model.safetensors"), key=lambda path: len(path.parts))
    if not found:
        return {"exit": made["exit"], "error": made["last_line"] or "it left no adapter"}
    return {"exit": made["exit"], **score(found[0].parent)}


def score(adapter: Path | str) -> dict[str, Any]:
    prepared = next(path for path in (work() / "whole").glob("prepare-*") if not path.name.endswith(".partial"))
    base = job("sft", "", work()).base
    words = [PYTHON, str(ROOT / "benchmarks/train/heldout.py"), str(base), str(adapter), str(prepared / "test.jsonl")]
    done = subprocess.run(words, env=environment({}), cwd=ROOT, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def whole(name: str) -> dict[str, Any]:
    """Our SFT, PAIRS and DPO: the rows, the pairs and the adapter that everyone's DPO starts from."""
    folder = work() / "whole"
    words = [PYTHON, str(ROOT / "finetune/train.py"), *ours.words(folder, "sft,dpo")]
    (work() / "whole.run").mkdir(parents=True, exist_ok=True)
    with (work() / "whole.run/output.txt").open("w") as output:
        here = environment({"PYTHONPATH": str(ROOT)})
        child = subprocess.Popen(words, cwd=ROOT, env=here, stdout=output, stderr=subprocess.STDOUT)
        while child.poll() is None and not list(folder.glob("dpo-*/manifest.json")):
            time.sleep(1)
        child.terminate()  # what follows DPO is not measured here
        child.wait()
    made = {path.name.split("-")[0]: path for path in folder.glob("*-*/") if not path.name.endswith(".partial")}
    if "dpo" not in made:
        raise SystemExit(f"the run that makes rows and pairs failed: {last_line(work() / 'whole.run/output.txt')}")
    rows.export_chats(rows.read(made["prepare"] / "train.jsonl"), work() / "rows")
    pairs = [pair for pair in rows.read(made["pairs"] / "preferences.jsonl") if not pair["held_out"]]
    rows.export_pairs(pairs, work() / "rows")
    counts = {"rows": len(rows.read(made["prepare"] / "train.jsonl")), "pairs": len(pairs)}
    return {**counts, "base": score("none"), "ours": score(made["sft"])}


def documented(peer: str, name: str) -> dict[str, Any]:
    """The peer's own documented first command, nothing but model, rows and folder put in: does it run on a CPU?"""
    folder = work() / "documented" / peer
    shutil.rmtree(folder, ignore_errors=True)
    command = PEERS[peer].documented(job("sft", "documented", folder / "out"))
    made = start(command, folder, stop=1)
    ran = any(tick["event"] == "on_step_end" for tick in made["ticks"])
    shown = [word.replace(str(ROOT), ".") for word in command.words]
    return {"command": shown, "exit": made["exit"], "first_step": ran, "error": None if ran else made["last_line"]}


def plan(peers: list[str], repeats: int) -> Iterator[tuple[str, Any]]:
    """Names of cells in their order, with what fills them. Contenders take turns, so that drift hits all alike."""
    yield "whole", whole
    for peer in peers:
        if peer != "ours":
            yield f"documented/{peer}", lambda name, peer=peer: documented(peer, name)
    pairs = [(peer, variant) for peer in peers for variant in PEERS[peer].VARIANTS]
    for kind in ("sft", "dpo"):
        for turn in range(repeats):
            for peer, variant in pairs:
                if kind == "sft" or variant in ("direct", "default", "best"):
                    yield f"{kind}/{peer}.{variant}/{turn}", (kind, peer, variant)
    for peer, variant in pairs:
        if peer != "ours":
            yield f"trained/{peer}.{variant}", lambda name, peer=peer, variant=variant: trained(peer, variant, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peers", default="trl,llamafactory", help="beside ours; axolotl and ms-swift where installed")
    parser.add_argument("--steps", type=int, default=12, help="SFT steps that count; a third of it for DPO")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cells", type=int, default=0, help="stop after so many new cells")
    parser.add_argument("--only", default="", help="only cells whose name begins so")
    today = dt.datetime.now(dt.UTC).date()
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/train/results/{today}-cpu.json")
    asked = parser.parse_args()
    book: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {"cells": {}}
    book["machine"] = {
        "cores": os.cpu_count(), "threads": THREADS, "cpu": cpu_name(), "python": platform.python_version(),
    }
    done = 0
    for name, what in plan(["ours", *filter(None, asked.peers.split(","))], asked.repeats):
        if name in book["cells"] or not name.startswith(asked.only):
            continue
        if isinstance(what, tuple):
            kind, peer, variant = what
            cell = timed(kind, peer, variant, name, asked.steps if kind == "sft" else max(1, asked.steps // 3))
        else:
            cell = what(name)
        book["cells"][name] = {**cell, "date": str(today), "commit": commit()}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(book, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(cell), flush=True)
        done += 1
        if done == asked.cells:
            return
    print("every cell is filled:", asked.out)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
