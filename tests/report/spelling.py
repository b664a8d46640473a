"""Numbers as a report spells them, taken out of its text and looked up in the facts."""

import re
from collections.abc import Iterator
from typing import Any

from finetune.report.strings import translated, words

_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e-?\d+)?")
_PLACEHOLDER = re.compile(r"\{[a-z0-9_]*\}")


def numbers(value: Any) -> Iterator[float]:
    """Every number of a JSON value; the length of a list or mapping counts as one (how many near ties there were)."""
    if isinstance(value, dict):
        yield float(len(value))
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        yield float(len(value))
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def strings(value: Any) -> Iterator[str]:
    """Every text of a JSON value, names of keys too."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def derived(facts: dict[str, Any]) -> list[float]:
    """What the report works out itself: sums, shares of rows, counts."""
    found = [sum(facts["timings"].values()), float(len(facts["lineage"]))]
    if facts["cost"]:
        found.append(sum(facts["cost"]["gpu_hours"].values()))
    found += [task["contamination"]["rows"] / task["n"] for task in facts["tasks"] if task.get("contamination")]
    cells = (facts.get("context") or {}).get("rows", ())
    found += [row[who] / row["n"] for row in cells for who in ("right", "base") if who in row]
    found += [float(len(entry["files"])) for entry in facts["lineage"]]
    found.append(sum(len(entry["files"]) for entry in facts["lineage"]))
    found.append(sum(len(files) for files in facts["documents"].values()))
    found.append(sum(len(task["contamination"]["overlap"]) for task in facts["tasks"] if task.get("contamination")))
    found += [sum(len(row.get("spikes", ())) for row in rows) for rows in facts["curves"].values()]
    for step in {row["step"] for row in facts["ledger"]}:
        rows = [row for row in facts["ledger"] if row["step"] == step]
        found += [sum(row["rows_out"] for row in rows), sum(sum(row["dropped"].values()) for row in rows)]
    if at := facts["parity"].get("kl_max_at"):
        found.append(at["position"] + 1)
    named = [at, *(one for task in facts["tasks"] for one in (task.get("contamination") or {}).get("overlap", ()))]
    for one in filter(None, named):
        found += [place + 1 for place, row in enumerate(facts["samples"]) if row["id"] == one["id"]]
    return [float(value) for value in found]


def without_words(text: str, facts: dict[str, Any]) -> str:
    """The text without what is quoted from the facts as it is (names, versions, hashes) and without the report's own
    words: what is left of digits is numbers that were measured."""
    fixed = ["sha256", *(part for leaf in strings(words(facts["language"])) for part in _PLACEHOLDER.split(leaf))]
    written = set(strings({name: value for name, value in facts.items() if name not in ("samples", "config")}))
    quoted = written | {translated(text, facts["language"]) for text in written}
    hashes = [digest[:8] for entry in facts["lineage"] for digest in entry["inputs"].values()]
    for part in sorted({*fixed, *quoted, *hashes}, key=len, reverse=True):
        # A lone digit in a text is no reason to strike it out everywhere.
        if len(part) > 3 and re.search(r"\d", part):
            text = text.replace(part, " ")
    return text


def spelled(text: str) -> list[str]:
    """The numbers of a text as Python would write them."""
    text = re.sub(r"\u00a0×\u00a010([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda found: "e" + found[1].translate(_RAISED), text)
    return _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text.replace("−", "-")))


def stands_in(word: str, known: list[float]) -> bool:
    """Is `word` one of `known` (or that times 100) rounded to the digits shown?"""
    digits, _, power = word.partition("e")
    half = 0.5000001 * 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return any(abs(scale * value - float(word)) <= half for value in known for scale in (1.0, 100.0))


def strangers(text: str, facts: dict[str, Any]) -> tuple[list[str], int]:
    """(numbers of a shown text that stand nowhere in the facts, how many were looked up)."""
    measured = {name: value for name, value in facts.items() if name not in ("samples", "config")}
    # At most 100 %, "p < 0.001", and the 95 of an interval's name in a table's head.
    known = [*numbers(measured), *derived(facts), 1.0, 0.001]
    found = spelled(without_words(text, facts))
    return [word for word in found if not stands_in(word, known)], len(found)
