"""The corpus benchmark in small: its records are what it says, its figures measure all processes, results are whole."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.corpus import run
from benchmarks.corpus.make import make, records
from finetune.corpus.dedup import jaccard, shingles, sketches
from finetune.corpus.near import find_near


def test_records_are_the_same_each_time_short_and_repeat_what_they_say() -> None:
    made = list(records(2000))
    assert made == list(records(2000))
    texts = {record.id: record.text for record in made}
    assert all(100 <= len(record.text) <= 240 for record in made)
    repeats = [record for record in made if record.repeats]
    assert 0.06 < len(repeats) / len(made) < 0.1
    alike = [jaccard(shingles(record.text), shingles(texts[record.repeats])) for record in repeats]
    assert min(alike) > 0.8
    assert sum(one >= 0.85 for one in alike) > 0.99 * len(repeats)


@pytest.mark.slow
def test_planted_repeats_are_found_and_what_is_gone_beside_them_is_counted(tmp_path: Path) -> None:
    path = make(tmp_path, 2000)
    cell = run.measure("near", path, tmp_path, workers=2)
    assert cell["found"] / cell["planted"] > 0.99
    assert cell["rows_out"] + cell["found"] + cell["also_gone"] == 2000
    assert run.judge(path, [record.id for record in records(2000)])["found"] == 0
    assert "2,000" in run.table({"2000": {"near": cell}})


def test_of_four_times_as_many_records_four_times_as_many_texts_are_compared() -> None:
    """One million in small: what is looked into grows with the rows, not with their pairs."""
    read: list[int] = []

    def count(rows: int) -> int:
        texts = [record.text for record in records(rows)]

        def read_texts(places: Sequence[int]) -> list[str]:
            read.extend(places)
            return [texts[place] for place in places]

        before = len(read)
        find_near(sketches(texts), 0.85, read_texts)
        return len(read) - before

    few, many = count(3000), count(12000)
    assert few > 150
    assert many < 5 * few


HELD = "import time; held = bytearray(60_000_000); began = time.process_time()"
CHILD = f"{HELD}\nwhile time.process_time() - began < 0.4: pass"
PARENT = f"""{HELD}
import subprocess, sys
started = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
if sys.argv[1] == "waits": started.wait()
"""
WATCH = "import json, sys; from benchmarks.corpus.run import watched; print(json.dumps(watched(sys.argv[1:])))"


@pytest.mark.slow
@pytest.mark.parametrize("parent", ["waits", "leaves"])
def test_processes_that_their_parent_does_not_wait_for_are_measured_too(parent: str) -> None:
    """The server of a pool of processes ends with nobody waiting for it: its workers' seconds were lost."""
    words = [sys.executable, "-c", WATCH, sys.executable, "-c", PARENT, parent]
    cell = json.loads(subprocess.run(words, check=True, cwd=run.ROOT, capture_output=True, text=True).stdout)
    assert cell["exit"] == 0
    assert cell["cpu_s"] >= 0.4
    assert cell["peak_mib"] > (114 if parent == "waits" else 57)


def test_every_committed_result_is_whole_and_says_where_it_was_measured() -> None:
    small, large = (sorted((run.HERE / "results").glob(f"*-{kind}.json")) for kind in ("cpu", "large"))
    assert small
    assert large
    for file in small:
        results = json.loads(file.read_text(encoding="utf-8"))
        assert {"cpu", "cores", "date"} <= results["machine"].keys()
        for rows, cells in results.items():
            for name, cell in cells.items() if rows.isdigit() else ():
                assert {"wall_s", "cpu_s", "peak_mib", "rows_out"} <= cell.keys(), name
    for told in (told for file in large for told in json.loads(file.read_text(encoding="utf-8"))):
        assert {"cpu", "cores", "date"} <= told["machine"].keys()
        assert told["gb"] > 0 < told["rows"]
        assert all(one["wall_s"] > 0 < one["peak_mib"]["all"] for one in told["runs"])
