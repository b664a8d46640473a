"""The books: whether all that a step gave on was taken up by the next one, and by what was written at the end."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Entry = Mapping[str, Any]
"""An entry of ledger.json."""
_CHAINS = (
    ("read", "where", "unify", "name", "time", "repair", "filter", "markup", "redact", "boilerplate",
     "exact duplicates", "near duplicates", "groups by time"),
    ("build",),
    ("task", "parts", "split"),
    ("text", "preference", "decontaminate", "cap", "length", "mix tasks", "cut text", "cut replay"),
    ("mix",),
)  # fmt: skip
"""Steps in the order in which a row meets them, by what they are taken on: a source, a task, a side of it or a use."""
_PLACES = {step: (number, place) for number, steps in enumerate(_CHAINS) for place, step in enumerate(steps)}


class Gap(NamedTuple):
    """Rows or supervised tokens that were given to a step (or to a file) are not those that it took."""

    place: str
    given: int
    taken: int


def gaps(sheet: Mapping[str, Any]) -> list[Gap]:
    """What is missing in datasheet.json (or in the facts and the `ledger` that it is made of): nothing, or a loss."""
    chains: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in sorted(sheet["ledger"], key=lambda entry: _PLACES[entry["step"]]):
        chains[_PLACES[entry["step"]][0], entry["source"]].append(entry)
    by_step = {(entry["step"], entry["source"]): entry for entry in sheet["ledger"]}
    compared = [
        *_within(sheet["ledger"]), *_between(list(chains.values())), *_of_tasks(sheet, by_step),
        *_of_uses(sheet, list(chains.values())),
    ]  # fmt: skip
    return [gap for gap in compared if gap.given != gap.taken]


def _within(ledger: Sequence[Entry]) -> Iterator[Gap]:
    for entry in ledger:
        out = entry["rows_out"] + sum(entry["dropped"].values())
        yield Gap(_named(entry), entry["rows_in"] + entry.get("made", 0), out)
        if "tokens_supervised_in" in entry:
            out = entry["tokens_supervised_out"] + sum(entry["tokens_dropped"].values())
            yield Gap(_named(entry), entry["tokens_supervised_in"] + entry.get("tokens_made", 0), out)


def _between(chains: Sequence[Sequence[Entry]]) -> Iterator[Gap]:
    mixed = any(entry["step"] == "mix" for chain in chains for entry in chain)
    for before, after in (pair for chain in chains for pair in pairwise(chain)):
        if mixed and after["step"] == "mix tasks":
            continue  # what it was given came out of the mix of modes, which counts turns of all tasks together
        yield Gap(_named(after), before["rows_out"], after["rows_in"])
        if "tokens_supervised_out" in before:
            yield Gap(_named(after), before["tokens_supervised_out"], after.get("tokens_supervised_in", 0))


def _of_tasks(sheet: Mapping[str, Any], by_step: Mapping[tuple[str, str], Entry]) -> Iterator[Gap]:
    """From the split to the examples of each side, as they were written."""

    def find(label: str, *steps: str) -> Entry:
        return next((found for step in steps if (found := by_step.get((step, label)))), _NONE)

    for name in sheet["tasks"]:
        split = find(name, "split")
        firsts = {side: find(f"{name}/{side}", "decontaminate", "cap") for side in sheet["rows"]}
        for side, first in firsts.items():
            yield Gap(f"split, {name}/{side}", split["into"].get(side, 0), first["rows_in"])
        tokens = sum(first["tokens_supervised_in"] for first in firsts.values())
        yield Gap(f"split, {name}", split["tokens_supervised_out"], tokens)
    for side, supervised in sheet["supervised_tokens"].items():
        tokens, beside, mix = 0, 0, by_step.get(("mix", side))
        replay = sheet["replay"] if side == "train" else {"rows": 0, "tokens": 0}
        for name, sides in sheet["tasks"].items():
            last, weighed = find(f"{name}/{side}", "length"), find(f"{name}/{side}", "mix tasks")
            tokens += last["tokens_supervised_out"]
            beside += weighed["tokens_supervised_out"] - weighed["tokens_supervised_in"]
            if weighed is not _NONE or mix is None:
                left = last if weighed is _NONE else weighed
                yield Gap(f"{side}.jsonl, {name}", left["rows_out"] - left.get("made", 0), sides[side]["rows"])
        if mix is not None:
            yield Gap(_named(mix), tokens, mix["tokens_supervised_in"])
            tokens = mix["tokens_supervised_out"]
        yield Gap(f"supervised tokens, {side}", tokens + beside + replay["tokens"], supervised)


_NONE: Entry = {"rows_in": 0, "rows_out": 0, "tokens_supervised_in": 0, "tokens_supervised_out": 0, "into": {}}
"""The entry of a step that was not taken."""


def _of_uses(sheet: Mapping[str, Any], chains: Sequence[Sequence[Entry]]) -> Iterator[Gap]:
    """Running text, replay and ready-made preferences: from their last step to what was written."""
    pieces = tokens = preferences = 0
    replay = {"rows": 0, "tokens": 0}
    for chain in chains:
        last, label = chain[-1], chain[0]["source"]
        if chain[0]["step"] == "preference":
            preferences += last["rows_out"]
        elif chain[0]["step"] == "text" and not label.startswith("general/"):
            if not last["step"].startswith("cut "):
                yield Gap(f"cut text, {label}", last["rows_out"], 0)
            elif last["step"] == "cut replay":
                replay = {"rows": last["chosen"], "tokens": last["tokens_supervised_out"]}
            else:
                pieces, tokens = pieces + last["pieces"], tokens + last["tokens_supervised_out"]
    yield Gap("text_*.parquet", pieces, sum(sheet["text_rows"].values()))
    yield Gap("tokens, text_*.parquet", tokens, sum(sheet["text_tokens"].values()))
    for what, count in replay.items():
        yield Gap(f"replay, {what}", count, sheet["replay"][what])
    yield Gap("preferences.jsonl", preferences, sum(sheet["preferences"].values()))


def _named(entry: Entry) -> str:
    return f"{entry['step']}, {entry['source']}"
