"""Near duplicates on labelled sets that are not ours, beside rensa and datasketch: `python run.py FOLDER`.
With `--ship` it writes the one of them that the tests read, and measures nothing.

README.md says which sets, what their labels mean and where the files of FOLDER come from; each is held against its
sha256. Rows are dealt to two halves by their cluster: the threshold is chosen on one and every figure is of the other.
"""

import argparse
import csv
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from finetune.corpus.dedup import shingles, sketches
from finetune.corpus.near import find_near

Pairs = set[tuple[int, int]]
THRESHOLDS = [step / 20 for step in range(6, 20)]
SHIPPED = Path(__file__).resolve().parents[2] / "tests/corpus/duplicates/cytology_screening.json.gz"
FIELDS = ("title", "author", "journal", "year", "volume", "pages")
FILES = {
    "articles_2500.train": "0f0b0d60b2cb00e910f5623f7b1cf2284f3ecd63c9abf24e13c2a20ea8feb6ab",
    "articles_2500.truth": "3c8a63529ffa02159fcc9242ef31f4b89955201e6ce202827b54222fb9b70793",
    "cytology_screening/merged_record_ids.csv": "36acc06f6ecf31cfc4b04390469e2962520df0b43f503bbbeac50dd5e4f1b7e3",
    "cytology_screening/records_pre_merged.csv": "ed5f10365f1f96d60ed0f0888c5cd53f833c3d3c4e71ede233e93632aeb6d44a",
    "haematology/merged_record_ids.csv": "89b44c105524135c7565d27c780ff8cbe022782efbd8fda5e91e6f22d2716548",
    "haematology/records_pre_merged.csv": "c8ec567898eb90ef53bbd9db3924ecbebd4eb6efbe2bca4fa28bda2f893cb8b7",
    "respiratory/merged_record_ids.csv": "e1499be388326dff85becb8e440d60c158dacc81647ae72fb209cb1861f7cdc6",
    "respiratory/records_pre_merged.csv": "979dca5cf19faae228210aff77478ac7da0590e9c3b1d96c34cda140fdc40fb1",
    "stroke/merged_record_ids.csv": "f932a243ef78d5909d2a8c23a2db7c440de7b8bf732c80d351366aaec10e0987",
    "stroke/records_pre_merged.csv": "a1ea76cdfe5c0fa98896fec8fa74d116deac3b20e06a67ba7a288b787c7793ed",
}


def read_articles(folder: Path) -> tuple[list[str], Pairs]:
    lines = (folder / "articles_2500.train").read_text(encoding="utf-8").splitlines()
    ids, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    place = {name: at for at, name in enumerate(ids)}
    truth = (folder / "articles_2500.truth").read_text(encoding="utf-8").splitlines()
    return list(texts), {_pair(*(place[name] for name in line.split())) for line in truth}


def read_records(folder: Path, name: str) -> tuple[list[str], Pairs]:
    with (folder / name / "records_pre_merged.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    place = {row["ID"]: at for at, row in enumerate(rows)}
    with (folder / name / "merged_record_ids.csv").open(encoding="utf-8", newline="") as file:
        clusters = [[place[one] for one in row["merged_ids"].split(";")] for row in csv.DictReader(file)]
    texts = ["\n".join(row[field] for field in FIELDS if row[field]) for row in rows]
    return texts, {_pair(a, b) for cluster in clusters for a, b in combinations(cluster, 2)}


def read_shipped() -> tuple[list[str], Pairs]:
    raw = json.loads(gzip.decompress(SHIPPED.read_bytes()))
    return raw["texts"], {_pair(*pair) for pair in raw["pairs"]}


def ship(texts: list[str], gold: Pairs) -> None:
    raw = json.dumps({"texts": texts, "pairs": sorted(gold)}, ensure_ascii=False)
    SHIPPED.write_bytes(gzip.compress(raw.encode(), mtime=0))


def ours(texts: Sequence[str], threshold: float) -> Pairs:
    found = find_near(sketches(texts), threshold, lambda places: [texts[place] for place in places])
    clusters: dict[int, list[int]] = {}
    for dropped, kept in zip(found.dropped.tolist(), found.kept.tolist(), strict=True):
        clusters.setdefault(kept, [kept]).append(dropped)
    return {_pair(a, b) for cluster in clusters.values() for a, b in combinations(cluster, 2)}


def rensa(texts: Sequence[str], threshold: float) -> Pairs:
    """Signatures of the same shingles; its LSH proposes, its estimate decides."""
    from rensa import RMinHash, RMinHashLSH

    made = []
    for text in texts:
        made.append(RMinHash(128, 42))
        made[-1].update(sorted(shingles(text)))
    index = RMinHashLSH(threshold, 128, 32)
    found: Pairs = set()
    for at, one in enumerate(made):
        found |= {_pair(at, other) for other in index.query(one) if one.jaccard(made[other]) >= threshold}
        index.insert(at, one)
    return found


def datasketch(texts: Sequence[str], threshold: float) -> Pairs:
    """Signatures of the same shingles; what its LSH proposes, as its page shows it."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=128)
    found: Pairs = set()
    for at, text in enumerate(texts):
        one = MinHash(128)
        one.update_batch([part.encode() for part in shingles(text)])
        found |= {_pair(at, other) for other in index.query(one)}
        index.insert(at, one)
    return found


def halves(texts: Sequence[str], gold: Pairs) -> list[tuple[list[str], Pairs]]:
    """Two halves that no labelled pair lies across, dealt by a hash of each cluster's first text."""
    first = list(range(len(texts)))
    for a, b in sorted(gold):
        first[b] = first[a]
    side = [hashlib.sha256(texts[first[at]].encode()).digest()[0] % 2 for at in range(len(texts))]
    made = []
    for half in (0, 1):
        places = [at for at in range(len(texts)) if side[at] == half]
        new = {at: number for number, at in enumerate(places)}
        made.append(([texts[at] for at in places], {_pair(new[a], new[b]) for a, b in gold if side[a] == half}))
    return made


def score(found: Pairs, gold: Pairs) -> dict[str, Any]:
    hit = len(found & gold)
    f1 = 2 * hit / (len(found) + len(gold))
    return {
        "pairs": len(gold), "found": len(found), "precision": round(hit / max(1, len(found)), 4),
        "recall": round(hit / len(gold), 4), "f1": round(f1, 4),
    }  # fmt: skip


def measure(texts: Sequence[str], gold: Pairs, find: Callable[[Sequence[str], float], Pairs]) -> dict[str, Any]:
    (chosen_on, its_gold), (told_of, gold_of) = halves(texts, gold)
    tried = {threshold: score(find(chosen_on, threshold), its_gold)["f1"] for threshold in THRESHOLDS}
    # Of equally good thresholds the middle one: the edge of a plateau is an accident of the half.
    best = [threshold for threshold in THRESHOLDS if tried[threshold] == max(tried.values())]
    threshold = best[len(best) // 2]
    began = time.process_time()
    made = score(find(told_of, threshold), gold_of)
    return {"threshold": threshold, **made, "cpu_s": round(time.process_time() - began, 2),
            "at_0.85": score(find(told_of, 0.85), gold_of)["f1"]}  # fmt: skip


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--results", type=Path)
    options.add_argument("--ship", action="store_true")
    given = options.parse_args()
    for name, digest in FILES.items():
        if hashlib.sha256((given.folder / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{given.folder / name} is not the file that README.md names")
    if given.ship:
        ship(*read_records(given.folder, "cytology_screening"))
        return
    sets = {"articles": read_articles(given.folder)}
    sets |= {
        name: read_records(given.folder, name)
        for name in ("cytology_screening", "haematology", "respiratory", "stroke")
    }
    made: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "sets": {}}
    for name, (texts, gold) in sets.items():
        made["sets"][name] = {"rows": len(texts), "pairs": len(gold)}
        for find in (ours, rensa, datasketch):
            made["sets"][name][find.__name__] = measure(texts, gold, find)
            print(name, find.__name__, made["sets"][name][find.__name__], flush=True)
    if given.results:
        given.results.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
