"""A large file of JSON lines through `finetune prepare`: the memory of all processes together, and a kill half way.

    .venv/bin/python benchmarks/corpus/large.py --folder /somewhere/with/room --gb 10 --kill

Rows are about `--body` bytes: a short record (see make.py) and a body of sentences of data/. With `--kill` the whole
group of processes gets SIGKILL once half of the file's pieces are done, and the same command goes on; `--compare` runs
once more, not killed, and asks that both results have one digest. The result is added to `--results`.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.corpus.make import DATA, records  # noqa: E402 - started as a script, this file has to say where it is
from benchmarks.corpus.run import machine  # noqa: E402
from finetune.artifacts import write_whole  # noqa: E402

_TEXTS = ("legal/us_constitution.txt", "legal/cfr_34_part_99.txt", "legal/cfr_34_part_668.txt")
_LINES = ("general/speeches.jsonl", "general/countries.jsonl", "general/replay_speeches.jsonl")
_SENTENCE = re.compile(r"(?<=[.;:?!])\s+|\n\s*\n")
_SEED = 6
_PIECE = 1 << 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the file and the outputs are made")
    parser.add_argument("--gb", type=float, default=10.0, help="10^9 bytes")
    parser.add_argument("--body", type=int, default=10_000, help="bytes of a row, about; 0: no body")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=HERE / f"results/{datetime.now(UTC).date()}-large.json")
    parser.add_argument("words", nargs="*", help="further words of the recipe, such as prepare.repair.enabled=false")
    options = parser.parse_args()
    path = make(options.folder, int(options.gb * 1e9), options.body)
    rows = sum(block.count(b"\n") for block in _blocks(path))
    told: dict[str, Any] = {
        "gb": round(path.stat().st_size / 1e9, 2), "rows": rows, "body": options.body, "words": options.words,
        "workers": options.workers, "machine": machine(), "runs": [],
    }  # fmt: skip
    half = path.stat().st_size // _PIECE // 2
    work = options.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    if options.kill:
        told["runs"].append(watched(path, work, options, half))
    told["runs"].append(watched(path, work, options))
    told["digest"] = digest(work)
    if options.compare:
        told["runs"].append(watched(path, options.folder / "again", options))
        told["same"] = digest(options.folder / "again") == told["digest"]
        shutil.rmtree(options.folder / "again")
    for manifest in work.glob("prepare-*/manifest.json"):
        facts = json.loads(manifest.read_text(encoding="utf-8"))["facts"]
        told |= {"rows_out": facts["rows"], "rejects": facts["rejects"]}
    shutil.rmtree(work)
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else []
    write_whole(options.results, json.dumps([*results, told], indent=1) + "\n")
    print(json.dumps(told, indent=1))
    return 0 if told.get("same", True) else 1


def make(folder: Path, size: int, body: int) -> Path:
    """data/large.jsonl of about `size` bytes in `folder`, always the same for the same numbers."""
    path = folder / "data" / "large.jsonl"
    if path.exists() and size <= path.stat().st_size < size + (1 << 20):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    random, sentences = Random(_SEED), _sentences()  # noqa: S311 - reproducible, not secret
    count = round(body / (sum(map(len, sentences)) / len(sentences)))
    with path.open("wb") as file:
        for record in records(1 << 40):
            row: dict[str, str] = record._asdict()
            if body:
                row["body"] = " ".join(random.choices(sentences, k=count))
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if file.tell() >= size:
                return path
    raise AssertionError("there are always more records")


def _sentences() -> list[str]:
    texts = [(DATA / name).read_text(encoding="utf-8") for name in _TEXTS]
    texts += [json.loads(line)["text"] for name in _LINES for line in (DATA / name).open(encoding="utf-8")]
    found = (" ".join(part.split()) for text in texts for part in _SENTENCE.split(text))
    return [part for part in found if 20 <= len(part) <= 600]


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            yield block


def watched(path: Path, work: Path, options: argparse.Namespace, kill_at: int | None = None) -> dict[str, Any]:
    """One run of the command: wall seconds, and the most that all of its processes held at one time, by step.

    Proportional set sizes, once a second: what processes share counts once. `mapped`: of it, pages of mapped files,
    which the system may take back. With `kill_at` it is killed when so many pieces of the file are there.
    """
    words = [
        "recipe=large", "model=smollm2_135m", "machine=cpu", f"data_root={path.parent}", f"work={work}",
        f"machine.prepare.workers={options.workers}", *options.words,
    ]  # fmt: skip
    command = [str(Path(sys.executable).with_name("finetune")), "prepare", "--config-dir", str(HERE), *words]
    log = options.folder / "prepare.log"
    before = len(_rows_done(work))
    began = time.perf_counter()
    peak: dict[str, int] = {"all": 0}
    steps: dict[str, int] = {}
    with log.open("ab") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True, cwd=ROOT)
        while process.poll() is None:
            held = [_held(number) for number in _session(process.pid)]
            now = {name: sum(one[name] for one in held) // 1024 for name in ("Pss", "Pss_File")}
            if now["Pss"] > peak["all"]:
                largest = max((one["Pss"] for one in held), default=0) // 1024
                peak = {"all": now["Pss"], "mapped": now["Pss_File"], "largest": largest, "processes": len(held)}
            step = _step(work, steps)
            steps[step] = max(steps.get(step, 0), now["Pss"])
            if kill_at is not None and len(_rows_done(work)) >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                for number in _session(process.pid):
                    os.kill(number, signal.SIGKILL)
            time.sleep(1)
    killed = process.returncode == -signal.SIGKILL
    assert process.returncode == 0 or (killed and kill_at is not None), log.read_text(encoding="utf-8")[-3000:]
    run: dict[str, Any] = {"wall_s": round(time.perf_counter() - began), "peak_mib": peak, "step_mib": steps}
    if killed:
        return run | {"killed_after_pieces": len(_rows_done(work))}
    said = re.findall(r"^rows: (\d+) of (\d+) pieces are there from before", log.read_text(encoding="utf-8"), re.M)
    if before:
        run["pieces_from_before"], run["pieces"] = map(int, said[-1])
    return run


def _rows_done(work: Path) -> list[Path]:
    return list(work.glob("prepare-*.partial/.pieces/*/rows/[0-9]*"))


def _step(work: Path, before: Iterable[str]) -> str:
    """The folder of pieces that was begun last; there is none before the first, while files are hashed, and at the
    end, when the page is drawn."""
    found = [(path.stat().st_ctime, path.name) for path in work.glob("prepare-*.partial/.pieces/*/*/")]
    return max(found)[1] if found else "page" if "task" in before else "start"


def _session(leader: int) -> list[int]:
    """All processes of a session: workers of a server of processes too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(path.parent.name))
        except (OSError, ValueError):  # ended since
            continue
    return found


def _held(process: int) -> dict[str, int]:
    """KiB by kind."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {"Pss": 0, "Pss_File": 0}
    pairs = (line.split()[:2] for line in lines if line.startswith("Pss"))
    return {name.rstrip(":"): int(count) for name, count in pairs}


def digest(work: Path) -> str:
    manifests = list(work.glob("prepare-*/manifest.json"))
    assert len(manifests) == 1, f"{len(manifests)} results in {work}"
    found: str = json.loads(manifests[0].read_text(encoding="utf-8"))["digest"]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
