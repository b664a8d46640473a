"""`finetune show`: what is shown is what PREPARE wrote, trained tokens marked, and a document steers nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import sync_playwright

from finetune import artifacts, show
from finetune.artifacts import Artifact
from finetune.base import find_base
from finetune.chat import IGNORED, ChatFormat
from finetune.cli import main
from finetune.config import Recipe, load
from finetune.corpus.records import Preference
from finetune.errors import RecipeError
from tests.report.conftest import QUIET
from tests.report.looking import violations

REASONING = 'tasks.term.reasoning="It is a kind of {broader}."'


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    work = tmp_path_factory.mktemp("show") / "work"
    return ["recipe=legal", "model=tiny_qwen3", "stages=[cpt,sft,dpo]", REASONING, f"work={work}"]


@pytest.fixture(scope="module")
def recipe(words: list[str]) -> Recipe:
    return load(words)


@pytest.fixture(scope="module")
def prepared(recipe: Recipe) -> Artifact:
    return show.find_prepared(recipe, find_base(recipe.model))


@pytest.fixture(scope="module")
def chat(tiny_qwen3: Path) -> ChatFormat:
    return ChatFormat.read(tiny_qwen3)


def test_every_example_is_shown_token_for_token_as_prepare_wrote_it(
    recipe: Recipe, chat: ChatFormat, prepared: Artifact
) -> None:
    rows = {row["id"]: row for row in pq.read_table(prepared.file("sft_train.parquet")).to_pylist()}
    shown = {one.id: one for one in show.collect(recipe, chat, prepared, 10_000)}
    assert set(rows) < set(shown)
    records = {row["id"]: row for row in map(json.loads, prepared.file("train.jsonl").read_text().split("\n")[:-1])}
    for name, row in rows.items():
        labels = [label for label in row["labels"] if label != IGNORED]
        one = shown[name]
        assert "".join(piece.text for piece in one.pieces) == chat.decode(row["input_ids"], skip_special=False)
        trained = "".join(piece.text for piece in one.pieces if piece.trained)
        assert trained == chat.decode(labels, skip_special=False)
        assert (one.tokens, one.trained, one.mode) == (len(row["input_ids"]), len(labels), row["mode"])
        if name in records:
            assert one.origin == f"{records[name]['source']}:{records[name]['line']}"


def test_each_task_and_mode_comes_in_turn(recipe: Recipe, chat: ChatFormat, prepared: Artifact) -> None:
    shown = show.collect(recipe, chat, prepared, 5)
    kinds = [(one.task, one.mode) for one in shown]
    assert kinds[:4] == [("title", "plain"), ("term", "think"), ("replay", "plain"), ("running text", "none")]
    assert kinds[4] == ("title", "plain")


def test_a_finished_prepare_is_used_and_not_made_again(words: list[str], prepared: Artifact, capsys: Any) -> None:
    before = (prepared.path / artifacts.MANIFEST).stat().st_mtime_ns
    assert main(["show", *words, "--rows", "1"]) == 0
    said = capsys.readouterr()
    assert "starting" not in said.out + said.err
    assert (prepared.path / artifacts.MANIFEST).stat().st_mtime_ns == before


def test_one_record_is_found_by_its_id_and_a_typo_answered(words: list[str], prepared: Artifact, capsys: Any) -> None:
    assert main(["show", "--id", "title/article-3", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("title/article-3  title, mode plain, constitution_of_india.html:")
    assert re.search(r"</think>\n  \n  ⟦Formation of new States[^⟧]+<\|im_end\|>⟧\n", out)
    assert main(["show", *words, "--id", "titel/article-3"]) == 2
    assert "did you mean title/article-3?" in capsys.readouterr().err
    assert main(["show", *words, "--rows", "0"]) == 2
    assert "--rows=0" in capsys.readouterr().err


def test_colour_stands_only_on_a_terminal_that_wants_it(words: list[str], prepared: Artifact, monkeypatch: Any) -> None:
    written: list[str] = []

    class Terminal:
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["show", *words, "--id", "title/article-3"]) == 0
    coloured = "".join(written)
    assert "\x1b[1;32mFormation of new States" in coloured
    assert "⟦" not in coloured
    written.clear()
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["show", *words, "--id", "title/article-3"]) == 0
    assert "\x1b" not in "".join(written)
    assert "⟦Formation of new States" in "".join(written)


def test_a_document_steers_neither_terminal_nor_page(recipe: Recipe, prepared: Artifact) -> None:
    evil = "\x1b[2J\x9b31m\u202e<script>alert(1)</script>"
    shown = [show.Shown(evil, "t", "plain", evil, (show.Piece(evil, True),), 1, 1)]
    for text in (show.render_text(shown, colour=False), show.render_page(recipe, prepared, shown)):
        assert not re.search("[\x1b\x9b\u202e]", text)
        assert "\\u001b[2J" in text
    assert "<script" not in show.render_page(recipe, prepared, shown)


def test_a_character_of_several_tokens_is_shown_whole(chat: ChatFormat) -> None:
    text = "𓀀 ok 🙂"
    ids = chat.encode(text)
    pieces = show.cut_pieces(chat, ids, [True] * len(ids))
    assert "".join(piece.text for piece in pieces) == text
    assert 1 < len(pieces) < len(ids)


def test_preferences_are_shown_with_both_answers(recipe: Recipe, chat: ChatFormat, prepared: Artifact) -> None:
    def answer(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    pair = Preference(
        "title/x", "title", ({"role": "user", "content": "Which?"},), answer("This."), answer("That."), "on_policy",
        "group",
    )  # fmt: skip
    folder = Path(recipe.work) / "pairs-0123456789abcdef"
    folder.mkdir()
    (folder / "preferences.jsonl").write_text(pair.to_json() + "\n")
    manifest = {"stage": "pairs", "digest": "0", "inputs": {"prepared": prepared.digest}, "facts": {}}
    (folder / artifacts.MANIFEST).write_text(json.dumps(manifest))
    try:
        chosen, rejected = show.collect(recipe, chat, prepared, 1, "title/x")
        without = load([*recipe_words(recipe), "stages=[sft]"])
        with pytest.raises(RecipeError, match="no training example"):
            show.collect(without, chat, prepared, 1, "title/x")
    finally:
        shutil.rmtree(folder)
    assert (chosen.task, rejected.task) == ("dpo chosen", "dpo rejected")
    assert [span.text for span in chosen.spans if span.trained] == ["This.<|im_end|>"]
    assert [span.text for span in rejected.spans if span.trained] == ["That.<|im_end|>"]
    assert chosen.origin == "on_policy preference, trained"


def recipe_words(recipe: Recipe) -> list[str]:
    return ["recipe=legal", "model=tiny_qwen3", REASONING, f"work={recipe.work}"]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark"), (390, "dark")])
def test_the_page_is_accessible_and_never_wider_than_the_screen(
    words: list[str], prepared: Artifact, tmp_path: Path, width: int, scheme: Any
) -> None:
    page_file = tmp_path / "show.html"
    assert main(["show", *words, "--rows", "6", "--html", str(page_file)]) == 0
    html = page_file.read_text()
    assert not re.search(r'(src|href)="(?!data:)', html)
    chromium = shutil.which("chromium")
    assert chromium
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(page) == []
        assert page.locator("article").count() == 6
        assert "Formation of new States" in "".join(page.locator("article").first.locator("mark").all_inner_texts())
        assert said == []
        browser.close()


def test_showing_imports_no_torch(words: list[str], prepared: Artifact) -> None:
    script = (
        "import sys; from finetune.cli import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, "show", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Definition:" in done.stdout
