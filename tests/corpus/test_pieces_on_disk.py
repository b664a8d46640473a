"""PREPARE on disk: killed it goes on, any number of workers writes the same bytes, and nothing is lost on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.corpus import engine, prepare, rows
from finetune.corpus.engine import Engine
from finetune.corpus.finding import changed
from finetune.corpus.read import SourceFile, find_documents
from finetune.errors import RecipeError
from finetune.provenance import version_of

KILLED = """
import json, os, signal, sys
from pathlib import Path
from finetune.artifacts import Artifact
from finetune.corpus import engine, prepare, rows

config, out, base, data, last = json.loads(sys.argv[1])
rows._UNIT_BYTES = 1
worked = []
work = engine._work

def work_until_killed(function, unit, folder):
    worked.append(folder)
    if len(worked) > last:
        (folder.parent / f".{folder.name}.begun").mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGKILL)
    work(function, unit, folder)

engine._work = work_until_killed
documents = Artifact(Path(data), {"facts": {}})
base = Artifact(Path(base), {"stage": "base", "digest": "0", "facts": {}})
prepare.run(config, out=Path(out), base=base, documents=documents)
"""


@pytest.fixture
def several(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A corpus in several files with running text, replay and duplicates, each file a unit of work."""
    lines = (corpus.root / "orders.jsonl").read_text().splitlines()
    lines.append(json.dumps({**json.loads(lines[0]), "order": "twin"}))
    (corpus.root / "orders.jsonl").unlink()
    for part in range(4):
        corpus.write(f"orders/{part}.jsonl", "\n".join(lines[part::4]))
    corpus.config["sources"]["orders"]["path"] = "orders"
    corpus.config["replay"] = {"source": "speeches", "share": 0.2, "tokens": 16}
    corpus.config["text"] = [{"source": "speeches"}]
    monkeypatch.setattr(rows, "_UNIT_BYTES", 1)
    monkeypatch.setattr(prepare, "_SMALL", -1)
    return corpus


def test_two_workers_write_the_bytes_of_one_and_small_pieces_those_of_large_ones(
    several: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = several.prepare().files()
    assert one == several.prepare(workers=2).files()
    monkeypatch.setattr(rows, "_UNIT_BYTES", 1 << 30)
    assert one == several.prepare().files()


def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(
    several: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare.Config.model_validate(several.config).model_dump(mode="json")
    documents = find_documents(prepare.Config.model_validate(several.config).sources, several.root)
    outs = {last: tmp_path / f"killed{last}" for last in (2, 6)}  # in the middle of the rows, among the duplicates
    killed = []
    for last, out in outs.items():
        out.mkdir()
        told = json.dumps([config, str(out), str(several.base.path), str(several.root), last])
        killed.append(subprocess.Popen([sys.executable, "-c", KILLED, told], cwd=Path(__file__).parents[2]))
    done: list[Path] = []
    work = engine._work

    def noted(function: Any, unit: Any, folder: Path) -> None:
        done.append(folder)
        work(function, unit, folder)

    monkeypatch.setattr(engine, "_work", noted)
    whole = several.prepare().files()
    every = len(done)
    assert [process.wait(timeout=120) for process in killed] == [-signal.SIGKILL, -signal.SIGKILL]
    for last, out in outs.items():
        done.clear()
        prepare.run(config, out=out, base=several.base, documents=documents, engine=Engine(), say=lambda _: None)
        assert {path.name: path.read_bytes() for path in sorted(out.iterdir())} == whole
        assert len(done) == every - last, "what was done is not done again, and nothing else is"


def test_pieces_that_other_code_left_are_not_gone_on_with(several: Any, tmp_path: Path) -> None:
    out = tmp_path / "upgraded"
    (out / ".pieces" / "0123456789ab" / "rows").mkdir(parents=True)
    (out / ".pieces" / "0123456789ab" / "rows" / "of another version").write_text("")
    scratch = prepare._scratch(out)
    assert [path.name for path in (out / ".pieces").iterdir()] == [scratch.name]


def test_pieces_of_another_chat_format_or_another_library_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "prepare.py").write_text("")
    codes = [prepare._code(tmp_path)]
    (tmp_path / "chat.py").write_text("END = 1\n")
    codes.append(prepare._code(tmp_path))
    assert prepare._code(tmp_path) == codes[-1]
    monkeypatch.setattr(prepare, "version_of", lambda name: "0" if name == "tokenizers" else version_of(name))
    codes.append(prepare._code(tmp_path))
    assert len(set(codes)) == 3


def test_a_document_that_changes_while_it_is_read_is_not_published_under_its_old_digest(
    several: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = engine._work
    path = several.root / "orders" / "0.jsonl"

    def changing(function: Any, unit: Any, folder: Path) -> None:
        work(function, unit, folder)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")

    monkeypatch.setattr(engine, "_work", changing)
    with pytest.raises(RecipeError, match=r"orders/0\.jsonl.*changed, came or went away"):
        several.prepare()
    assert not list(several.root.parent.glob("out*/.pieces"))
    monkeypatch.setattr(engine, "_work", work)
    several.prepare()


@pytest.mark.parametrize("what", ["other text", "same size", "same time", "gone", "new", "glossary"])
def test_a_file_that_changes_between_its_digest_and_its_reading_is_told_and_nothing_is_prepared(
    what: str, several: Any, tmp_path: Path
) -> None:
    """A document that was saved, or a folder that was synchronised, while a run waited for its turn."""
    several.write("tags.csv", "token,meaning\nhyd,hydraulic\n")
    glossary = {"file": "tags.csv", "code": "token", "words": "meaning", "columns": {"orders": ["text"]}}
    several.config["prepare"] = {**several.config.get("prepare", {}), "repair": {"glossary": glossary}}
    asked = prepare.Config.model_validate(several.config)
    documents = find_documents(asked.sources, several.root, asked.prepare.files)
    path = several.root / {"glossary": "tags.csv", "new": "orders/9.jsonl"}.get(what, "orders/0.jsonl")
    text, before = path.read_text() if path.exists() else "", path.stat() if path.exists() else None
    if what == "gone":
        path.unlink()
    elif what in ("same size", "same time"):
        path.write_text(text[::-1])
    else:
        path.write_text(f"{text}\n")
    if what == "same time":  # as `rsync --times` and `cp -p` leave it: another file, moved into its place
        assert before is not None
        path.rename(path.with_suffix(".old"))
        path.write_text(text[::-1])
        path.with_suffix(".old").unlink()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RecipeError, match=rf"{path.name}: this file changed, came or went away"):
        prepare.run(
            asked.model_dump(mode="json"), out=out, base=several.base, documents=documents, say=lambda _: None
        )
    assert not (out / "train.jsonl").exists()


def test_a_file_in_another_inode_is_the_same_while_its_bytes_are(several: Any) -> None:
    asked = prepare.Config.model_validate(several.config)
    documents = find_documents(asked.sources, several.root)
    path = several.root / "orders" / "0.jsonl"
    before, copy = path.stat(), path.with_suffix(".copy")
    shutil.copy2(path, copy)
    copy.rename(path)
    assert path.stat().st_ino != before.st_ino
    stamps, digests = documents.facts["stamps"], documents.facts["files"]
    assert changed({"orders/0.jsonl": path}, stamps, digests) == []
    assert len(changed({"orders/0.jsonl": path}, stamps, {"orders/0.jsonl": "0" * 64})) == 1


def test_problems_of_all_files_are_told_together_and_nothing_is_left_for_the_next_run(several: Any) -> None:
    several.write("orders/0.jsonl", '{"order": "1"\n')
    several.write("orders/3.jsonl", '{"order": "2", "machine": "m", "text": "t"}\n')
    with pytest.raises(RecipeError) as told:
        several.prepare()
    assert [problem.path for problem in told.value.problems] == ["orders/0.jsonl:1", "orders/3.jsonl:1"]


def test_bad_input_is_rejected_and_counted_where_the_recipe_says_so(several: Any) -> None:
    before = several.prepare()
    text = (several.root / "orders/0.jsonl").read_text()
    several.write("orders/0.jsonl", text + '\n{"order": "1"\n{"order": "x", "machine": "m9", "text": "no action"}\n')
    several.write("orders/empty.jsonl", "")
    several.config["prepare"] = {"bad_input": "reject"}
    made = several.prepare()
    rejects = [row for row in made.lines("rejects.jsonl") if row["step"] == "read"]
    last = text.count("\n") + 2
    assert [(row["source"], row["line"], row["reason"]) for row in rejects] == [
        ("orders/0.jsonl", last, "broken JSON"), ("orders/0.jsonl", last + 1, "missing column"),
        ("orders/empty.jsonl", 0, "no rows"),
    ]  # fmt: skip
    assert made.files()["train.jsonl"] == before.files()["train.jsonl"]


def test_supervised_tokens_are_counted_from_the_task_on(several: Any) -> None:
    several.config["tasks"]["action"] |= {"train_rows": 20, "valid_rows": 3, "test_rows": 5}
    made = several.prepare()
    counted = [entry for entry in made.ledger if "tokens_supervised_in" in entry]
    assert {entry["step"] for entry in counted} >= {"task", "split", "decontaminate", "cap", "length", "cut text"}
    for entry in counted:
        lost = sum(entry["tokens_dropped"].values())
        assert entry["tokens_supervised_in"] == entry["tokens_supervised_out"] + lost, entry
        assert lost or not entry["dropped"] or entry["step"] == "task", entry
    written = sum(sum(label != -100 for label in row["labels"]) for row in made.table("sft_train.parquet"))
    length = next(entry for entry in counted if (entry["step"], entry["source"]) == ("length", "action/train"))
    assert length["tokens_supervised_out"] + made.facts["replay"]["tokens"] == written
    assert made.facts["supervised_tokens"]["train"] == written


TEXTS = st.text("abcdefgh xyz,合同法。", min_size=1, max_size=60)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, st.sampled_from(["fix", "check", " "]), st.integers(0, 5)), max_size=30))
def test_no_row_and_no_token_is_lost_whatever_the_rows_are(
    corpus: Any, extra: list[tuple[str, str, int]]
) -> None:
    """Each step is given what the one before it gave on, and the rejects are what is missing at the end."""
    known = [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text().splitlines()[:80]]
    more = [
        {"order": f"x{i}", "machine": f"m{group}", "text": text, "action": action}
        for i, (text, action, group) in enumerate(extra)
    ]
    corpus.write_rows("orders.jsonl", known + more)
    made = corpus.prepare()
    steps: dict[str, dict[str, Any]] = {}
    for entry in made.ledger:
        assert entry["rows_in"] == entry["rows_out"] + sum(entry["dropped"].values())
        if entry["source"] == "orders":
            steps[entry["step"]] = entry
    chain = list(steps.values())
    assert chain[0]["rows_in"] == len(known) + len(more)
    assert all(before["rows_out"] == after["rows_in"] for before, after in pairwise(chain))
    kept = sum(len(made.lines(f"{side}.jsonl")) for side in ("train", "valid", "test"))
    listed = [row for row in made.lines("rejects.jsonl") if row["source"] == "orders.jsonl"]
    assert kept + len(listed) == len(known) + len(more)


def test_a_look_at_a_folder_of_many_documents_opens_few_of_them(
    several: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = SourceFile.open

    def noted(file: SourceFile) -> BinaryIO:
        opened.append(file.name)
        return plain(file)

    monkeypatch.setattr(SourceFile, "open", noted)
    for number in range(90):
        several.write(f"docs/{number:02d}.md", "".join(f"# Part {number} {n}\n\nrow {n}\n\n" for n in range(8)))
    several.config["sources"]["docs"] = {"path": "docs/*.md", "cut": {"by": "heading"}}
    several.config["text"] = [{"source": "docs"}]
    recipe = prepare.Config.model_validate(several.config)
    out = tmp_path / "look"
    out.mkdir()
    prepare.run(
        recipe.model_dump(mode="json"), out=out, base=several.base,
        documents=find_documents(recipe.sources, several.root), limit=50, say=lambda _: None,
    )  # fmt: skip
    read = {entry["source"]: entry["rows_out"] for entry in json.loads((out / "ledger.json").read_text())
            if entry["step"] == "read"}  # fmt: skip
    seen = sorted({name for name in opened if name.startswith("docs/")})
    assert read["docs"] == 50
    assert len(seen) == 17  # three rows of each
    assert (seen[0], seen[-1]) == ("docs/00.md", "docs/80.md")


def test_a_look_at_the_first_rows_publishes_nothing_and_tells_what_they_are_too_few_for(
    several: Any, tmp_path: Path
) -> None:
    several.config["replay"]["share"] = 1.0
    config = prepare.Config.model_validate(several.config).model_dump(mode="json")
    documents = find_documents(prepare.Config.model_validate(several.config).sources, several.root)
    told: list[str] = []
    (tmp_path / "look").mkdir()
    prepare.run(config, out=tmp_path / "look", base=several.base, documents=documents, limit=8, say=told.append)
    ledger = json.loads((tmp_path / "look" / "ledger.json").read_text())
    read = {entry["source"]: entry["rows_out"] for entry in ledger if entry["step"] == "read"}
    assert read == {"orders": 8, "speeches": 8}
    assert any(line.startswith("  among these rows: ") for line in told)
