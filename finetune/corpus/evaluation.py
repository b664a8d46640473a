"""What evaluation rows say, in files that units of work read, and the rejects of rows that say the same."""

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.artifacts import hash_file
from finetune.config.prepare import Decontaminate
from finetune.corpus.leaks import EvaluationIndex
from finetune.corpus.ledger import Ledger, Reject, sample_of
from finetune.corpus.places import Named, find_passage
from finetune.corpus.records import write_line


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation rows say, in a file: {"name", "values", "prompt"} a line. None: nothing is compared."""

    settings: Decontaminate
    file: Path

    @property
    def on(self) -> bool:
        return self.settings.ngram is not None

    def add(self, rows: Iterable[tuple[str, list[str], list[str]]]) -> int:
        """So many were added."""
        count = 0
        with self.file.open("a", encoding="utf-8") as file:
            for name, values, prompt in rows:
                file.write(write_line({"name": name, "values": values, "prompt": prompt}) + "\n")
                count += 1
        return count

    def frozen(self) -> "Evaluation":
        """As it is now, under a name of its content: what units of work read does not change under them."""
        other = Evaluation(self.settings, self.file.with_name(f"evaluation-{hash_file(self.file)[:12]}.jsonl"))
        other.file.write_bytes(self.file.read_bytes())
        return other

    def index(self) -> EvaluationIndex:
        assert self.settings.ngram is not None, "asked for where decontamination is on"
        return _index(self.settings.ngram, self.settings.edited, self.file)


@functools.lru_cache(maxsize=2)
def _index(n: int, edited: bool, file: Path) -> EvaluationIndex:
    """Read once in a process."""
    index = EvaluationIndex(n, edited)
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            index.add(row["name"], row["values"], row["prompt"])
    return index


def leak(row: Mapping[str, Any], hit: tuple[str, str], texts: Iterable[Named], tokens: int = 0) -> Reject:
    """A row that shares a passage with an evaluation row: `hit` as EvaluationIndex.find gives it, in these `texts`."""
    why, detail, place = "shared with an evaluation row", f"{hit[0]}: {hit[1]}", find_passage(hit[1], texts)
    return Reject(row["file"], row["line"], row["id"], "decontaminate", why, detail, place, tokens)


def show(ledger: Ledger, label: str, reject: Reject, hit: tuple[str, str], text: str) -> None:
    if ledger.wants("decontaminate"):
        sample = sample_of(label, reject, text)
        ledger.sample("decontaminate", {**sample, "evaluation": hit[0], "passage": hit[1]})
