"""The ledger: at every step in = out + dropped by reason, of rows and of supervised tokens. What was dropped is listed.

Rejects go straight to a file. Each unit of work has a ledger of its own; that of the run takes them in, in order.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, TypeVar

from finetune.corpus.places import Place
from finetune.corpus.records import write_line

Item = TypeVar("Item")
REJECTS = "rejects.jsonl"
_COUNTS = "ledger.json"
_SAMPLES = 3
_SHOWN = 600


@dataclass(frozen=True)
class Reject:
    """One dropped row. `detail` says why in words and never holds the value of personal data."""

    source: str
    """The file it came from."""
    line: int
    id: str
    step: str
    reason: str
    detail: str = ""
    span: Place | None = None
    """Where in the row the reason stands, if it stands at one place."""
    supervised_tokens: int = 0

    def to_json(self) -> str:
        raw = {**vars(self), "span": self.span and vars(self.span)}
        optional = ("span", "supervised_tokens")
        return write_line({name: value for name, value in raw.items() if value or name not in optional})


@dataclass
class Entry:
    """The counts of one step on one source. Tokens are None before there are supervised ones."""

    step: str
    source: str
    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens_supervised_in: int | None = None
    tokens_supervised_out: int | None = None
    tokens_dropped: Counter[str] = field(default_factory=Counter)
    more: dict[str, Any] = field(default_factory=dict)
    """Further facts: counts, or counts by name, which are added up; words, which stay."""

    def check(self) -> None:
        rows_in, rows_out, dropped = self.rows_in + self.more.get("made", 0), self.rows_out, self.dropped
        assert rows_in == rows_out + dropped.total(), (self.step, self.source, rows_in, rows_out, dropped)
        tokens_in = (self.tokens_supervised_in or 0) + self.more.get("tokens_made", 0)
        tokens_out = self.tokens_supervised_out or 0
        lost = self.tokens_dropped.total()
        assert tokens_in == tokens_out + lost, (self.step, self.source, tokens_in, tokens_out, lost)

    def add(self, other: "Entry") -> None:
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.dropped += other.dropped
        self.tokens_dropped.update(other.tokens_dropped)
        for name in ("tokens_supervised_in", "tokens_supervised_out"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs if mine is None else mine + (theirs or 0))
        for name, value in other.more.items():
            self.more[name] = _sum(self.more.get(name), value)

    def to_json(self) -> dict[str, Any]:
        tokens = {
            "tokens_supervised_in": self.tokens_supervised_in, "tokens_supervised_out": self.tokens_supervised_out,
            "tokens_dropped": dict(sorted(self.tokens_dropped.items())),
        }  # fmt: skip
        return {
            "step": self.step, "source": self.source, "rows_in": self.rows_in, "rows_out": self.rows_out,
            "dropped": dict(sorted(self.dropped.items())), **(tokens if self.tokens_supervised_in is not None else {}),
            **self.more,
        }  # fmt: skip

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Entry":
        known = {name: raw.pop(name) for name in list(raw) if name in cls.__dataclass_fields__}
        for name in ("dropped", "tokens_dropped"):
            known[name] = Counter(known.get(name, {}))
        return cls(**known, more=raw)


def _sum(mine: Any, theirs: Any) -> Any:
    if mine is None:
        return theirs
    if isinstance(mine, dict):
        return {name: _sum(mine.get(name), theirs.get(name, 0)) for name in sorted({*mine, *theirs})}
    return mine if isinstance(mine, str) else mine + theirs


class Ledger:
    """Entries by step and source, up to three samples of each step, and every reject, written to `rejects`."""

    def __init__(self, rejects: TextIO, hide: Callable[[str], str] = str) -> None:
        """`hide` takes personal data out of the id and the file of a row that is dropped before it was looked for."""
        self._rejects, self._hide = rejects, hide
        self._entries: dict[tuple[str, str], Entry] = {}
        self.samples: dict[str, list[dict[str, Any]]] = {}
        self.counts: dict[str, Counter[str]] = {}
        """Further counts for the datasheet, such as personal data by kind."""

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, hide: Callable[[str], str] = str) -> Iterator["Ledger"]:
        """The ledger of a unit of work: rejects and counts are in its folder when it is done."""
        with (folder / REJECTS).open("w", encoding="utf-8") as rejects:
            ledger = cls(rejects, hide)
            yield ledger
        counts = {"entries": ledger.entries, "samples": ledger.samples, "counts": ledger.counts}
        (folder / _COUNTS).write_text(json.dumps(counts, ensure_ascii=False), encoding="utf-8")

    def take_in(self, folders: Iterable[Path]) -> None:
        """What the ledgers of these units of work say, in order."""
        for folder in folders:
            raw = json.loads((folder / _COUNTS).read_text(encoding="utf-8"))
            for entry in map(Entry.from_json, raw["entries"]):
                entry.check()
                self.entry(entry.step, entry.source).add(entry)
            for step, shown in raw["samples"].items():
                for sample in shown:
                    self.sample(step, sample)
            for name, found in raw["counts"].items():
                self.counts.setdefault(name, Counter()).update(found)
            with (folder / REJECTS).open(encoding="utf-8") as file:
                shutil.copyfileobj(file, self._rejects)

    def record(
        self,
        step: str,
        source: str,
        rows_in: int,
        rows_out: int,
        rejects: Iterable[Reject] = (),
        tokens: tuple[int, int] | None = None,
        lost: Mapping[str, int] = MappingProxyType({}),
        **more: Any,
    ) -> None:
        """Add an entry; the sums must hold. `tokens`: supervised ones in and out, of which `lost` belong to no dropped
        row, by reason; `more`: such as `changed`, `into`."""
        entry = Entry(step, source, rows_in, rows_out, tokens_dropped=Counter(lost), more=more)
        if tokens is not None:
            entry.tokens_supervised_in, entry.tokens_supervised_out = tokens
        for reject in rejects:
            self._write(entry, reject)
        entry.check()
        self.entry(step, source).add(entry)

    def keep(
        self,
        step: str,
        source: str,
        items: Iterable[Item],
        judge: Callable[[Item], Reject | None],
        show: Callable[[Item], str] = lambda _: "",
    ) -> Iterator[Item]:
        """The items that `judge` has nothing against, in order; the others are rejected and counted.

        `show`: the text of a rejected item as it may be shown, personal data replaced.
        """
        entry = Entry(step, source)
        for item in items:
            entry.rows_in += 1
            reject = judge(item)
            if reject is None:
                entry.rows_out += 1
                yield item
            else:
                hidden = self._write(entry, reject)
                if self.wants(step):
                    self.sample(step, sample_of(source, hidden, show(item)))
        entry.check()
        self.entry(step, source).add(entry)

    def count(self, step: str, source: str) -> None:
        """A row that goes on."""
        entry = self.entry(step, source)
        entry.rows_in += 1
        entry.rows_out += 1

    def drop(self, step: str, source: str, reject: Reject) -> None:
        """A row that does not."""
        entry = self.entry(step, source)
        entry.rows_in += 1
        self._write(entry, reject)

    def made(self, step: str, source: str, tokens: int) -> None:
        """So many supervised tokens were made at this step: it was given them, and gives them on."""
        self.entry(step, source).add(Entry(step, source, tokens_supervised_in=tokens, tokens_supervised_out=tokens))

    def wants(self, step: str) -> bool:
        return len(self.samples.get(step, ())) < _SAMPLES

    def sample(self, step: str, shown: dict[str, Any]) -> None:
        if self.wants(step):
            self.samples.setdefault(step, []).append(shown)

    def follow(self, source: str, steps: Sequence[str]) -> Entry:
        """The last of these steps on `source`; each that was taken was given what the one before it gave on."""
        entries = [entry for step in steps if (entry := self._entries.get((step, source)))]
        for before, after in pairwise(entries):
            assert before.rows_out == after.rows_in, (source, before, after)
            assert before.tokens_supervised_out in (None, after.tokens_supervised_in), (source, before, after)
        return entries[-1]

    def find(self, step: str, source: str) -> Entry | None:
        return self._entries.get((step, source))

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [entry.to_json() for entry in self._entries.values()]

    @property
    def dropped(self) -> int:
        return sum(entry.dropped.total() for entry in self._entries.values())

    def to_json(self) -> str:
        return json.dumps(self.entries, ensure_ascii=False, indent=1) + "\n"

    def entry(self, step: str, source: str) -> Entry:
        return self._entries.setdefault((step, source), Entry(step, source))

    def _write(self, entry: Entry, reject: Reject) -> Reject:
        """The reject as it was written: without personal data in its id and its file's name."""
        entry.dropped[reject.reason] += 1
        if reject.supervised_tokens:
            entry.tokens_dropped[reject.reason] += reject.supervised_tokens
        hidden = replace(reject, source=self._hide(reject.source), id=self._hide(reject.id))
        self._rejects.write(hidden.to_json() + "\n")
        return hidden


def sample_of(source: str, reject: Reject, before: str) -> dict[str, Any]:
    """A dropped row as the datasheet shows it; `before` is its text, personal data replaced."""
    sample = {"source": source, "file": reject.source, "line": reject.line, "before": cut(before)}
    return {**sample, "reason": reject.reason, **({"detail": reject.detail} if reject.detail else {})}


def cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def table(ledger: str) -> str:
    """ledger.json as lines for a terminal."""
    head = ("step", "source", "in", "out", "tokens", "dropped")
    rows = [head]
    for entry in json.loads(ledger):
        dropped = ", ".join(f"{reason} {count}" for reason, count in entry["dropped"].items())
        tokens = str(entry.get("tokens_supervised_out", ""))
        rows.append((entry["step"], entry["source"], str(entry["rows_in"]), str(entry["rows_out"]), tokens, dropped))
    wide = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    align = (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
    return "\n".join(
        "  ".join([*(fit(cell, size) for fit, cell, size in zip(align, row, wide, strict=False)), row[-1]]).rstrip()
        for row in rows
    )
