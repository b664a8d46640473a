"""The datasheet: what went in, what each step removed, what came out. One self-contained page and the same as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from finetune.corpus.ledger import Ledger

_BINS = 24
_EXAMPLES = 3


def write(
    out: Path, *, facts: Mapping[str, Any], settings: Any, ledger: Ledger, lengths: Mapping[str, Sequence[int]]
) -> None:
    """Write datasheet.json and datasheet.html. No times, no host names, no absolute paths: equal runs, equal bytes."""
    sheet = collect(facts, settings, ledger, lengths)
    (out / "datasheet.json").write_text(json.dumps(sheet, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (out / "datasheet.html").write_text(render(sheet), encoding="utf-8")


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
    if facts["personal"]:
        lines.append("  replaced: " + ", ".join(f"{kind} {count}" for kind, count in facts["personal"].items()))
    lines.append(f"  {facts['rejects']} rows rejected, each with its reason in rejects.jsonl; see datasheet.html")
    return lines


def collect(
    facts: Mapping[str, Any], settings: Any, ledger: Ledger, lengths: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The datasheet as JSON."""
    limit = settings.sft.max_length
    examples: dict[str, list[dict[str, Any]]] = {}
    for reject in ledger.rejects:
        shown = examples.setdefault(f"{reject.step}: {reject.reason}", [])
        if len(shown) < _EXAMPLES:
            shown.append({"source": reject.source, "line": reject.line, "id": reject.id, "detail": reject.detail})
    reasons = Counter((reject.step, reject.reason) for reject in ledger.rejects)
    return {
        **facts,
        "max_length": limit,
        "lengths": {side: histogram(values, limit) for side, values in lengths.items()},
        "ledger": ledger.entries,
        "drops": [{"step": step, "reason": reason, "rows": n} for (step, reason), n in reasons.items()],
        "reject_examples": examples,
    }


def histogram(values: Sequence[int], limit: int) -> dict[str, Any]:
    """Counts of row lengths in 24 equal bins from 0 to max_length (tokens)."""
    width = max(1, -(-limit // _BINS))
    counts = Counter(min(value // width, _BINS - 1) for value in values)
    return {"width": width, "counts": [counts[i] for i in range(_BINS)], "longest": max(values, default=0)}


def render(sheet: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["n"] = lambda number: f"{number:,}".replace(",", "\u202f")
    template = Path(__file__).with_name("datasheet.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(sheet=sheet) + "\n"
