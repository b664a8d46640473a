"""The same removal of near duplicates by others: `python peers.py NAME RECORDS.jsonl FOLDER WORKERS`.

Runs where the peer is installed (setup.sh) and imports nothing of finetune. Each is set up as its own page says, 128
permutations and a threshold of 0.85 where it asks for them. The ids that are left are written to FOLDER/kept.txt, from
files of the peer's own where it writes files.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

BATCH = 10_000


def rensa(records: Path, folder: Path, workers: int) -> None:
    """Its deduplicator: signatures of character 5-grams, similarity estimated from them; threads are its own."""
    from rensa import RMinHashDeduplicator

    seen = RMinHashDeduplicator(threshold=0.85, num_perm=128, use_lsh=True)
    spent = 0.0
    with (folder / "kept.txt").open("w", encoding="utf-8") as kept:
        for rows in _batches(_read(records)):
            began = time.process_time()
            fresh = seen.add_pairs((row["id"], _shingles(row["text"])) for row in rows)
            spent += time.process_time() - began
            kept.writelines(row["id"] + "\n" for row, new in zip(rows, fresh, strict=True) if new)
    (folder / "near_cpu_s").write_text(f"{spent:.2f}")


def rensa_bands(records: Path, folder: Path, workers: int) -> None:
    """Its fastest path: a matrix of signatures, and a flag for each row that shares a band with another. Nothing says
    with which, so both rows of a pair would go: a lower bound on the time, not a result."""
    from rensa import RMinHash, RMinHashLSH

    index, ids, key = RMinHashLSH(0.85, 128, 16), [], 0
    flags: list[bool] = []
    for rows in _batches(_read(records)):
        matrix = RMinHash.digest_matrix_from_token_sets([_shingles(row["text"]) for row in rows], 128, 42)
        flags += index.insert_matrix_and_query_duplicate_flags(matrix, key)
        key += len(rows)
        ids += [row["id"] for row in rows]
    kept = (f"{name}\n" for name, flag in zip(ids, flags, strict=True) if not flag)
    (folder / "kept.txt").write_text("".join(kept), encoding="utf-8")


def datatrove(records: Path, folder: Path, workers: int) -> None:
    """Its four stages with its local executor: word 5-grams, 14 bands of 8. Sixteen files: one file is one task."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    at = {name: str(folder / name) for name in ("parts", "signatures", "buckets", "remove", "kept")}
    config = MinhashConfig()
    tasks = _divide(records, Path(at["parts"]), 16)
    stages = [
        (tasks, [JsonlReader(at["parts"]), MinhashDedupSignature(at["signatures"], config)]),
        (config.num_buckets, [MinhashDedupBuckets(at["signatures"], at["buckets"], config=config)]),
        (1, [MinhashDedupCluster(at["buckets"], at["remove"], config=config)]),
        (
            tasks,
            [JsonlReader(at["parts"]), MinhashDedupFilter(at["remove"]), JsonlWriter(at["kept"], compression=None)],
        ),
    ]
    for number, (count, pipeline) in enumerate(stages):
        logs = str(folder / f"logs{number}")
        LocalPipelineExecutor(pipeline, tasks=count, workers=min(workers, count), logging_dir=logs).run()
    _write_ids(folder, (row["id"] for file in sorted(Path(at["kept"]).iterdir()) for row in _read(file)))


def text_dedup(records: Path, folder: Path, workers: int) -> None:
    """Its MinHash command: word 5-grams and union-find, which joins rows through others that resemble both."""
    words = {
        "path": "json", "data_files": records, "split": "train", "cache_dir": folder / "cache", "column": "text",
        "output": folder / "kept", "num_proc": workers, "num_perm": 128, "threshold": 0.85,
    }  # fmt: skip
    flags = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "text_dedup.minhash", *flags], check=True)
    from datasets import load_from_disk

    _write_ids(folder, load_from_disk(str(folder / "kept"))["id"])


def _read(records: Path) -> Iterator[dict[str, str]]:
    with records.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _batches(rows: Iterable[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    held: list[dict[str, str]] = []
    for row in rows:
        held.append(row)
        if len(held) == BATCH:
            yield held
            held = []
    if held:
        yield held


def _shingles(text: str) -> list[str]:
    """Character 5-grams; of what we take out before, only case and runs of spaces."""
    text = " ".join(text.lower().split())
    return [text[i : i + 5] for i in range(max(1, len(text) - 4))]


def _divide(records: Path, into: Path, count: int) -> int:
    into.mkdir()
    files = [(into / f"{number:02d}.jsonl").open("wb") for number in range(count)]
    size, place = records.stat().st_size, 0
    with records.open("rb") as lines:
        for line in lines:
            files[min(count - 1, place * count // size)].write(line)
            place += len(line)
    for file in files:
        file.close()
    return count


def _write_ids(folder: Path, ids: Iterable[str]) -> None:
    (folder / "kept.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")


PEERS = {"rensa": rensa, "rensa_bands": rensa_bands, "datatrove": datatrove, "text_dedup": text_dedup}

if __name__ == "__main__":
    PEERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
