"""datasheet.json: what went in, what each step removed or changed, what came out. `finetune.datasheet` has the page.

The page is no part of the artifact: its language and `privacy.samples` change no example, and must not train anew.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.corpus.ledger import Ledger

_BINS = 32
Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""Step -> rows {source, file, line, and before and after, or before and reason}; personal data already replaced."""


def write(
    out: Path,
    *,
    facts: Mapping[str, Any],
    settings: Any,
    ledger: Ledger,
    lengths: Mapping[str, Sequence[int]],
    samples: Samples,
) -> None:
    """Write datasheet.json: no times, no host names, no absolute paths; equal runs, equal bytes."""
    sheet = collect(facts, settings, ledger, lengths, samples)
    (out / "datasheet.json").write_text(json.dumps(sheet, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def headline(facts: Mapping[str, Any]) -> list[str]:
    """What the terminal says at the end of the stage."""
    rows, supervised = facts["rows"], facts["supervised_tokens"]
    lines = [
        f"  {rows['train']} training rows ({facts['tokens']['train']} tokens, {supervised['train']} supervised; "
        f"{facts['replay']['rows']} of them replay), {rows['valid']} for validation, {rows['test']} for the test"
    ]
    if "think" in facts["modes"]["train"]:
        lines.append("  by mode: " + ", ".join(f"{mode} {count}" for mode, count in facts["modes"]["train"].items()))
    if not rows["valid"]:
        lines.append("  no validation row: there will be no evaluation loss (raise prepare.split.valid)")
    lines.append(f"  languages: {_total(facts.get('recognised') or facts['languages'])}")
    if facts["personal"]:
        lines.append("  replaced: " + ", ".join(f"{kind} {count}" for kind, count in facts["personal"].items()))
    lines.append(f"  {facts['rejects']} rows rejected, each with its reason in rejects.jsonl")
    return lines


def _total(counted: Mapping[str, Mapping[str, int]]) -> str:
    """Rows of all sources by language, or by writing where the recipe asks for no language."""
    total: Counter[str] = Counter()
    for counts in counted.values():
        total.update(counts)
    return ", ".join(f"{name} {rows}" for name, rows in total.most_common()) or "no row"


def collect(
    facts: Mapping[str, Any],
    settings: Any,
    ledger: Ledger,
    lengths: Mapping[str, Sequence[int]],
    samples: Samples,
) -> dict[str, Any]:
    """The datasheet as JSON; `datasheet.schema.json` says what each field is."""
    limit = settings.sft.max_length
    return {
        **facts,
        "max_length": limit,
        "lengths": {side: histogram(values, limit) for side, values in lengths.items()},
        "ledger": ledger.entries,
        "drops": _drops(ledger.entries),
        "samples": {step: [dict(sample) for sample in found] for step, found in samples.items()},
    }


def _drops(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows dropped by step and reason, all sources together."""
    counts: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        for reason, rows in entry["dropped"].items():
            counts[entry["step"], reason] += rows
    return [{"step": step, "reason": reason, "rows": rows} for (step, reason), rows in counts.items()]


def histogram(values: Sequence[int], limit: int) -> dict[str, Any]:
    """Counts of row lengths (tokens) in 32 equal bins of `width`, of which the last one reaches `limit`."""
    width = max(1, -(-limit // _BINS))
    counts = Counter(min((value - 1) // width, _BINS - 1) for value in values)
    bins = -(-limit // width)
    return {"width": width, "counts": [counts[i] for i in range(bins)], "longest": max(values, default=0)}
