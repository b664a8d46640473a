"""The ledger: at every step rows in = rows out + rows dropped, by reason. And the list of what was dropped."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from finetune.corpus.records import write_line

Item = TypeVar("Item")


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

    def to_json(self) -> str:
        return write_line(vars(self))


@dataclass
class Ledger:
    """Collects one entry for each step and source, and every reject."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def record(
        self, step: str, source: str, rows_in: int, rows_out: int, rejects: Sequence[Reject] = (), **more: Any
    ) -> None:
        """Add an entry; the sum must hold. `more` are further facts, such as `changed` or `into`."""
        dropped = Counter(reject.reason for reject in rejects)
        assert rows_in == rows_out + dropped.total(), (step, source, rows_in, rows_out, dropped)
        entry = {"step": step, "source": source, "rows_in": rows_in, "rows_out": rows_out}
        self.entries.append({**entry, "dropped": dict(sorted(dropped.items())), **more})
        self.rejects += rejects

    def keep(
        self, step: str, source: str, items: Sequence[Item], judge: Callable[[Item], Reject | None], **more: Any
    ) -> list[Item]:
        """The items that `judge` has nothing against, in order; the others are rejected and counted."""
        kept, rejects = [], []
        for item in items:
            reject = judge(item)
            if reject is None:
                kept.append(item)
            else:
                rejects.append(reject)
        self.record(step, source, len(items), len(kept), rejects, **more)
        return kept

    def to_json(self) -> str:
        return json.dumps(self.entries, ensure_ascii=False, indent=1) + "\n"
