"""The books of the whole stage: what a step gave on is what the next one was given, to the last line that is written.

PREPARE itself asserts it; `tests/mutations/mutations.yaml` has losses at every step that these tests must end at.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
from corpus.conftest import Corpus, Prepared, general

from finetune.artifacts import Artifact
from finetune.corpus import prepare
from finetune.corpus.books import gaps
from finetune.corpus.read import find_documents
from tests.corpus.test_preferences import READY, liked


@pytest.fixture
def full(corpus: Corpus) -> Corpus:
    """With running text, replay, ready-made preferences and general text beside the task."""
    for name, group in (("liked", "{team}"), ("notes", "{id}")):
        corpus.config["sources"][name] = {"path": f"{name}.jsonl", "id": "{id}", "group": group}
    corpus.write_rows("liked.jsonl", liked(30))
    corpus.write_rows("notes.jsonl", general(40)[12:])
    corpus.config["preferences"] = {"ours": READY}
    corpus.config["text"] = [{"source": "notes"}, {"source": "orders"}]
    corpus.config["replay"] = {"source": "notes", "share": 0.1, "tokens": 16}
    return corpus


def sheet_of(made: Prepared) -> dict[str, Any]:
    return {**made.facts, "ledger": made.ledger}


def test_the_books_balance_with_everything_in_them_and_every_number_moved_by_one_is_a_gap(full: Corpus) -> None:
    """So the page says of no sheet that it balances which PREPARE would not have written."""
    made = full.prepare()
    sheet = sheet_of(made)
    assert gaps(sheet) == []
    assert {entry["source"] for entry in made.ledger} >= {
        "text/notes", "text/orders", "replay", "preferences/ours", "general/speeches", "action/train",
    }  # fmt: skip
    for number, entry in enumerate(made.ledger):
        for name in entry.keys() & {"rows_in", "rows_out", "tokens_supervised_in", "tokens_supervised_out"}:
            spoilt = copy.deepcopy(sheet)
            spoilt["ledger"][number][name] += 1
            assert gaps(spoilt), (entry["step"], entry["source"], name)
    for number, entry in enumerate(made.ledger):
        # The entry adds up by itself: only what stands before and behind it tells.
        spoilt = copy.deepcopy(sheet)
        one = spoilt["ledger"][number]
        one["rows_in"] += 1
        one["rows_out"] += 1
        alone = entry["source"] in ("general/speeches",)
        assert alone or gaps(spoilt), (entry["step"], entry["source"])
    for name in ("text_rows", "text_tokens", "preferences", "replay", "supervised_tokens"):
        spoilt = copy.deepcopy(sheet)
        spoilt[name][next(iter(spoilt[name]))] -= 1
        assert gaps(spoilt), name
    spoilt = copy.deepcopy(sheet)
    spoilt["tasks"]["action"]["valid"]["rows"] -= 1
    assert [gap.place for gap in gaps(spoilt)] == ["valid.jsonl, action"]


def test_a_look_at_rows_of_one_mode_says_that_they_cannot_be_mixed_and_goes_on(full: Corpus, tiny_qwen3: Path) -> None:
    """What so few rows are too few for stops nothing, and the books balance there, too."""
    full.base = Artifact(tiny_qwen3, {"stage": "base", "digest": "0", "facts": {}})
    full.config["tasks"]["action"]["reasoning"] = "The text names {action}."
    full.config["model"] = {"modes": ["plain", "think"], "default_mode": "plain"}
    full.config["prepare"] = {"think_share": 0.5}
    settings = prepare.Config.model_validate(full.config)
    documents = find_documents(settings.sources, full.root, settings.prepare.files)
    config, told = settings.model_dump(mode="json"), list[str]()
    out = full.root.parent / "look"
    out.mkdir()
    facts = prepare.run(config, out=out, base=full.base, documents=documents, say=told.append, limit=40)
    assert any("no training example is of mode plain" in line for line in told)
    assert gaps(sheet_of(Prepared(out, facts))) == []
