"""A small corpus and a way to prepare it, for tests of the whole stage."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetune.artifacts import Artifact
from finetune.chat import ChatFormat
from finetune.corpus import prepare
from finetune.corpus.engine import Engine
from finetune.corpus.read import find_documents

TRAINING = {"max_length": 256}
MODEL = {"modes": ["plain"], "default_mode": "plain"}
WORDS = ("pump valve bearing seal hose filter tooth track motor cable light horn pin boom seat door tank belt").split()  # noqa: SIM905


def orders(count: int) -> list[dict[str, str]]:
    """Work orders that differ enough not to be near duplicates, four to a machine."""
    rows = []
    for i in range(count):
        picked = [WORDS[(i * step + i // 7) % len(WORDS)] for step in (1, 3, 5, 7)]
        text = f"order {i * 7919} {' '.join(picked)} on side {chr(97 + i % 26)}{i}"
        rows.append({"order": str(i), "machine": f"m{i // 4}", "text": text, "action": picked[0]})
    return rows


def general(count: int) -> list[dict[str, str]]:
    texts = [" ".join(random.Random(i).choices(WORDS, k=90)) for i in range(count)]
    return [{"id": f"g{i}", "text": f"Speech {i}: {text}"} for i, text in enumerate(texts)]


@dataclass(frozen=True)
class Prepared:
    out: Path
    facts: dict[str, Any]

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / name).read_text(encoding="utf-8").splitlines()]

    def table(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.out / name).to_pylist()
        return rows

    @property
    def ledger(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads((self.out / "ledger.json").read_text())
        return entries

    def dropped(self) -> dict[str, int]:
        """reason -> rows, over all steps."""
        counts: dict[str, int] = {}
        for entry in self.ledger:
            for reason, number in entry["dropped"].items():
                counts[reason] = counts.get(reason, 0) + number
        return counts

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out.iterdir())}


@dataclass
class Corpus:
    """A folder with work orders and general text; `config` may be changed before `prepare`."""

    root: Path
    base: Artifact
    config: dict[str, Any]
    made: Iterator[int]

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> Path:
        return self.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def prepare(self, workers: int = 0) -> Prepared:
        settings = prepare.Config.model_validate(self.config)
        out = self.root.parent / f"out{next(self.made)}"
        out.mkdir()
        documents = find_documents(settings.sources, self.root, settings.prepare.files)
        facts = prepare.run(
            settings.model_dump(mode="json"), out=out, base=self.base, documents=documents, engine=Engine(workers),
            say=lambda _: None,
        )  # fmt: skip
        return Prepared(out, facts)


@pytest.fixture(scope="session")
def smollm2_base(smollm2: Path) -> Artifact:
    return Artifact(smollm2, {"stage": "base", "digest": "0", "facts": {"name": "smollm2"}})


@pytest.fixture(autouse=True, scope="module")
def one_tokenizer() -> Iterator[None]:
    """Reading tokenizer.json takes a quarter of a second: the tests of a file share it."""
    read: Callable[[Path], ChatFormat] = ChatFormat.read
    known: dict[Path, ChatFormat] = {}
    patch = pytest.MonkeyPatch()
    patch.setattr(ChatFormat, "read", lambda path: known.setdefault(path, known.get(path) or read(path)))
    yield
    patch.undo()


@pytest.fixture
def corpus(tmp_path: Path, smollm2_base: Artifact) -> Corpus:
    config: dict[str, Any] = {
        "seed": 0,
        "sources": {
            "orders": {"path": "orders.jsonl", "id": "{order}", "group": "{machine}"},
            "speeches": {"path": "speeches.jsonl", "id": "{id}", "group": "{id}"},
        },
        "tasks": {
            "action": {
                "title": "Action",
                "source": "orders",
                "prompt": "Order: {text}\nAction:",
                "answer": "{action}",
                "metric": "exact_match",
                "main": True,
            }
        },
        "text": [],
        "general": {"speeches": {"source": "speeches"}},
        "replay": None,
        "prepare": {},
        "sft": TRAINING,
        "cpt": TRAINING,
        "model": MODEL,
    }
    made = Corpus(tmp_path / "data", smollm2_base, config, iter(range(100)))
    made.root.mkdir()
    made.write_rows("orders.jsonl", orders(120))
    made.write_rows("speeches.jsonl", general(12))
    return made
