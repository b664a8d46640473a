"""The benchmark in one command; finished cells are kept, so the same command goes on where it was stopped.

    .venv/bin/python benchmarks/train/run.py [--peers trl,llamafactory] [--steps 12] [--repeats 3] [--seeds 5]
        [--only sft/ours heldout/ ...] [--cells N] [--out benchmarks/train/results/DATE-cpu.json]

A cell of the file is kept while what it was measured of is the same: the contender's packages and settings here, the
rows or pairs, for ours the code that trains. Others are taken out and measured again, the most important first.
"""

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
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
FIRST = (("ours", "direct"), ("trl", "best"), ("llamafactory", "best"))
"""What the comparison stands on, before everything else."""
WARM = {"sft": 3, "dpo": 1}
"""Steps left out before the clock counts: memory is taken, kernels are chosen."""
PYTHON = str(ROOT / ".venv/bin/python")
TRAINS = (
    "arguments", "attention", "base", "collective", "dpo", "fused", "generate", "guard", "head", "libraries", "loop",
    "order", "pairs", "reference", "sft", "train",
)  # fmt: skip
"""Modules of ours that decide how fast and to what a training comes."""
SHARED = ("torch", "transformers", "trl", "peft", "accelerate")


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Nobody spins or has a tracker: without OMP_WAIT_POLICY=PASSIVE CPU seconds measure waiting threads."""
    return {
        **os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1", **extra,
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


# --- rows ------------------------------------------------------------------------------------------------------------


def work(seed: int = 0) -> Path:
    """`whole/` is our own run with this seed, `rows/` what the others are given of it."""
    top = ROOT / "work/benchmark-train"
    return top / "seeds" / str(seed) if seed else top


def stage(name: str, seed: int = 0) -> Path | None:
    whole = work(seed) / "whole"
    return next((path for path in whole.glob(f"{name}-*") if not path.name.endswith(".partial")), None)


def prepare(seed: int) -> Path:
    """PREPARE's folder; every seed draws other rows to train on and to hold out."""
    if stage("prepare", seed) is None:
        words = [word for word in ours.words(work(seed) / "whole", "sft", seed) if not word.startswith("stages=")]
        command = [PYTHON, "-m", "finetune.cli", "prepare", *words]
        subprocess.run(command, cwd=ROOT, env=environment({"PYTHONPATH": str(ROOT)}), check=True, capture_output=True)
    found = stage("prepare", seed)
    assert found is not None, "PREPARE ended without an error and without a result"
    if not (work(seed) / "rows/messages.jsonl").exists():
        rows.export_chats(rows.read(found / "train.jsonl"), work(seed) / "rows")
    return found


def run_until(name: str, stages: str, seed: int) -> Path:
    """Our own run up to the end of stage `name`, in `whole`; what follows is not measured here."""
    folder, log = work(seed) / "whole", work(seed) / "whole.run/output.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [PYTHON, str(ROOT / "finetune/train.py"), *ours.words(folder, stages, seed)]
    with log.open("w") as output:
        here = environment({"PYTHONPATH": str(ROOT)})
        child = subprocess.Popen(words, cwd=ROOT, env=here, stdout=output, stderr=subprocess.STDOUT)
        while child.poll() is None and not list(folder.glob(f"{name}-*/manifest.json")):
            time.sleep(1)
        child.terminate()
        child.wait()
    found = stage(name, seed)
    if found is None:
        raise SystemExit(f"our own run failed: {last_line(log)}")
    return found


def job(kind: Any, variant: str, out: Path, seed: int = 0) -> Job:
    model = subprocess.run(
        [PYTHON, "-c", "from finetune import embedded; print(embedded.locate('smollm2_135m'))"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.strip()
    return Job(kind, variant, work(seed) / "rows", Path(model), stage("sft") or work() / "whole", out, seed)


# --- cells -----------------------------------------------------------------------------------------------------------


def whole(name: str) -> dict[str, Any]:
    """Our SFT and PAIRS: the rows, the pairs and the adapter that everyone's DPO starts from."""
    for old in ("sft", "pairs", "dpo"):
        for folder in (work() / "whole").glob(f"{old}-*"):
            shutil.rmtree(folder)
    pairs_made = run_until("pairs", "sft,dpo", 0)
    prepared = prepare(0)
    pairs = [pair for pair in rows.read(pairs_made / "preferences.jsonl") if not pair["held_out"]]
    rows.export_pairs(pairs, work() / "rows")
    counts = {"rows": len(rows.read(prepared / "train.jsonl")), "pairs": len(pairs)}
    return {**counts, "base": score("none", 0)}


def timed(kind: str, peer: str, variant: str, steps: int, name: str) -> dict[str, Any]:
    """CPU and wall seconds a step over `steps` steps after the warm ones, and the way to the first step's end."""
    folder = work() / "timed" / name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    command = PEERS[peer].command(job(kind, variant, folder / "out"))
    first = 1 if variant in ("launch", "prepared") else WARM[kind] + steps
    made = start(command, folder, stop=first)
    cell = clock.measure(made, warm=WARM[kind], kind=kind)
    shutil.rmtree(folder / "out", ignore_errors=True)
    return cell


def held_out(peer: str, variant: str, seed: int, name: str) -> dict[str, Any]:
    """A whole SFT and what its adapter gives on the held-out rows of the same seed."""
    prepare(seed)
    if peer == "ours":
        for old in (work(seed) / "whole").glob("sft-*"):
            shutil.rmtree(old)
        return {"exit": 0, **score(run_until("sft", "sft", seed), seed)}
    folder = work() / "trained" / name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    command = PEERS[peer].command(job("sft", variant, folder / "out", seed))
    made = start(command, folder, stop=None)
    found = sorted(command.adapter.rglob("adapter_model.safetensors"), key=lambda path: len(path.parts))
    if not found:
        return {"exit": made["exit"], "error": made["last_line"] or "it left no adapter"}
    return {"exit": made["exit"], **score(found[0].parent, seed)}


def score(adapter: Path | str, seed: int) -> dict[str, Any]:
    base, test = job("sft", "", work()).base, prepare(seed) / "test.jsonl"
    words = [PYTHON, str(ROOT / "benchmarks/train/heldout.py"), str(base), str(adapter), str(test)]
    done = subprocess.run(words, env=environment({}), cwd=ROOT, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def documented(peer: str, name: str) -> dict[str, Any]:
    """The peer's own documented first command, nothing but model, rows and folder put in: does it run on a CPU?"""
    folder = work() / "documented" / peer
    shutil.rmtree(folder, ignore_errors=True)
    command = PEERS[peer].documented(job("sft", "documented", folder / "out"))
    made = start(command, folder, stop=1)
    ran = any(tick["event"] == "on_step_end" for tick in made["ticks"])
    shown = [word.replace(str(ROOT), ".") for word in command.words]
    return {"command": shown, "exit": made["exit"], "first_step": ran, "error": None if ran else made["last_line"]}


def plan(peers: list[str], repeats: int, steps: int, seeds: int) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Names of cells in their order, with what fills them. Contenders take turns, so that drift hits all alike."""
    known = [(peer, variant) for peer in peers for variant in PEERS[peer].VARIANTS]
    first = [pair for pair in FIRST if pair in known]
    starts = [pair for pair in known if pair[0] == "ours" and pair not in first]
    pinned = [pair for pair in known if pair not in [*first, *starts]]
    groups = [("sft", first + starts), ("dpo", first)]
    later = [(kind, [pair]) for pair in pinned for kind in ("sft", "dpo")]
    yield "whole", whole
    for kind, contenders in groups:
        yield from _turns(kind, contenders, repeats, steps)
    for seed in range(1, seeds + 1):  # 0 is the timed cells'
        for peer, variant in first:
            yield f"heldout/{peer}.{variant}/{seed}", partial(held_out, peer, variant, seed)
    for kind, contenders in later:
        yield from _turns(kind, contenders, repeats, steps)
    for peer in peers:
        if peer != "ours":
            yield f"documented/{peer}", partial(documented, peer)


def _turns(
    kind: str, contenders: list[tuple[str, str]], repeats: int, steps: int
) -> Iterator[tuple[str, Callable[[str], Any]]]:
    counted = steps if kind == "sft" else max(1, steps // 3)
    for turn in range(repeats):
        for peer, variant in contenders:
            yield f"{kind}/{peer}.{variant}/{turn}", partial(timed, kind, peer, variant, counted)


# --- what a cell was measured of -------------------------------------------------------------------------------------


def measured_of(name: str) -> str:
    """A digest of all that may change this cell, the machine left out."""
    kind, _, rest = name.partition("/")
    peer = rest.partition("/")[0].partition(".")[0] or "ours"
    parts = [Path(PEERS[peer].__file__ or "").read_bytes(), (ROOT / "benchmarks/train/job.py").read_bytes()]
    if peer in ("ours", "trl"):
        parts.append(" ".join(f"{package} {version(package)}" for package in SHARED).encode())
    else:
        parts.append((ROOT / f"benchmarks/train/locks/{peer}.txt").read_bytes())
    if peer == "ours":
        parts += [(ROOT / f"finetune/{module}.py").read_bytes() for module in TRAINS]
    if kind != "whole":
        seed = int(rest.rpartition("/")[2]) if kind == "heldout" else 0
        prepare(seed)
        given = "pairs_trl.jsonl" if kind == "dpo" else "messages.jsonl"
        parts.append((work(seed) / "rows" / given).read_bytes())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    there = [peer for peer in PEERS if peer == "trl" or (ROOT / f".venv-bench-{peer}").exists()]
    parser.add_argument("--peers", default=",".join(there), help="beside ours; those that setup.sh has installed")
    parser.add_argument("--steps", type=int, default=12, help="SFT steps that count; a third of it for DPO")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each contender for the held-out loss")
    parser.add_argument("--cells", type=int, default=0, help="stop after so many new cells")
    parser.add_argument("--only", nargs="*", default=[""], help="only cells whose name begins so")
    parser.add_argument("--list", action="store_true", help="say what is missing, measure nothing")
    today = dt.datetime.now(dt.UTC).date()
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/train/results/{today}-cpu.json")
    asked = parser.parse_args()
    book: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {"cells": {}}
    book["machine"] = {
        "cores": os.cpu_count(), "threads": THREADS, "cpu": cpu_name(), "python": platform.python_version(),
    }
    cells, done = book["cells"], 0
    for name, fill in plan(["ours", *filter(None, asked.peers.split(","))], asked.repeats, asked.steps, asked.seeds):
        if not name.startswith(tuple(asked.only)):
            continue
        of = measured_of(name)
        if cells.get(name, {}).get("of") == of:
            continue
        if asked.list:
            print(name)
            continue
        began = time.monotonic()
        cell = fill(name)
        took = round(time.monotonic() - began)
        if name == "whole":  # what it made may be what others were measured of
            of = measured_of(name)
        cells[name] = {**cell, "took_s": took, "date": str(today), "commit": commit(), "of": of}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(book, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(cell), f"{took} s", flush=True)
        done += 1
        if done == asked.cells:
            return
    if not asked.list:
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
