"""The datasheet page in Debian's Chromium, and what it says: every row, no text that privacy forbids, no markup."""

import ast
import json
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.artifacts import Stage, build
from finetune.config.prepare import Prepare
from finetune.corpus.books import gaps
from finetune.datasheet import flow, page
from finetune.datasheet.differences import around, differing
from finetune.errors import RecipeError
from finetune.report.strings import words
from tests.datasheet.made import CHINESE, DOCUMENTS, SECRET, collected, ledger, shown
from tests.report.conftest import browser, visit
from tests.report.looking import DESK, PHONE, Visit, violations

__all__ = ["browser", "visit"]
A4_WIDTH = 672  # CSS px between the page's own margins of 16 mm


def test_the_page_is_accessible_on_phone_desk_and_paper_in_both_languages(visit: Visit) -> None:
    for language, width, scheme in (("en", DESK, "light"), ("zh", PHONE, "dark"), ("en", PHONE, "light")):
        looked = visit(page.render(shown(), language), width, scheme, wait=False)
        assert looked.evaluate("document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]
        assert violations(looked) == []
        assert looked.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
        assert looked.locator("main section").count() == 11
        trunks = looked.locator(".stream .trunk svg .kept").evaluate_all("all => all.map(one => one.getBBox().width)")
        assert len(trunks) == len([step for steps in flow.streams(ledger().entries).values() for step in steps])
        assert all(0 < width <= 100 for width in trunks)
        assert looked.locator(".stream .trunk svg").first.bounding_box()["width"] > 100
        bars = looked.locator(".bars .meter").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
        assert min(bars) > 100, "on a phone each bar was two pixels wide, whatever it stood for"
    looked.set_viewport_size({"width": A4_WIDTH, "height": 1000})
    looked.emulate_media(media="print")
    right = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
    assert looked.locator("main *").evaluate_all(right) <= A4_WIDTH + 1, "nothing is cut off on paper"


def test_the_same_sheet_gives_the_same_bytes_and_asks_for_nothing_outside() -> None:
    made = page.render(shown())
    assert made == page.render(shown())
    assert re.findall(r"(?:src|href)=[\"'](?!data:|#)", made) == []
    assert "<script" not in made


def test_what_a_document_says_never_becomes_markup() -> None:
    evil = "<img src=x onerror=alert(1)>"
    sheet = shown()
    for sample in sheet["samples"]["repair"]:
        sample |= {"before": evil, "after": f"{evil}!", "file": evil}
    sheet["near_duplicates"][0]["kept"] = evil
    sheet["about"]["title"] = evil
    made = page.render(sheet)
    assert "<img" not in made
    assert "&lt;img" in made


@pytest.mark.parametrize("samples", ["none", "redacted", "full"])
def test_privacy_decides_whether_texts_of_rows_are_shown(tmp_path: Path, samples: str) -> None:
    def made(config: object, *, out: Path) -> dict[str, object]:
        (out / "datasheet.json").write_text(json.dumps(collected(), ensure_ascii=False))
        return {}

    prepared = build(Stage("prepare", 1, made), {}, root=tmp_path, inputs={}, say=lambda _: None)
    recipe = SimpleNamespace(
        name="letters", title="Letters", description="", licence="", limits="", language="en",
        privacy=SimpleNamespace(samples=samples), prepare=Prepare(), seed=0,
    )  # fmt: skip
    page.write(tmp_path, prepared, recipe, {**DOCUMENTS, "general": {"of 078-05-1120.txt": "c" * 64}})
    for name in ("datasheet.html", "datasheet.json"):
        told = re.sub("</?mark>", "", (tmp_path / name).read_text())
        assert (SECRET in told, CHINESE[:4] in told) == ((False, False) if samples == "none" else (True, True))
        assert str(tmp_path) not in told
        assert "a" * 64 in told
        assert "c" * 64 in told
        assert "078-05-1120" not in told, "a file's name is shown as the rows have it"
    prepared.file("datasheet.json").write_text("{}")
    with pytest.raises(RecipeError):
        page.write(tmp_path, prepared, recipe, DOCUMENTS)


def test_the_streams_hold_every_row_of_the_ledger_and_are_joined_without_a_gap() -> None:
    entries = ledger().entries
    streams = flow.streams(entries)
    assert list(streams) == list(flow.LANES)
    for steps in streams.values():
        for step in steps:
            assert step.rows_in == step.rows_out + sum(step.dropped.values())
        for before, after in pairwise(steps):
            assert after.rows_in == before.rows_out
    dropped = sum(sum(step.dropped.values()) for steps in streams.values() for step in steps)
    assert dropped == sum(sum(entry["dropped"].values()) for entry in entries)
    assert gaps(shown()) == []


def test_books_that_do_not_balance_are_said_in_red(visit: Visit) -> None:
    sheet = shown()
    sheet["ledger"][0]["rows_out"] -= 1
    looked = visit(page.render(sheet), wait=False)
    told = looked.locator(".verdict.fail .signed").all_inner_texts()
    assert told == ["read, letters: 104 ≠ 103", "repair, letters: 103 ≠ 104"]


def test_differences_are_words_and_in_chinese_characters() -> None:
    left, right = differing("pay within ten days", "pay within thirty days")
    assert [text for text, differs in left if differs] == ["ten"]
    assert [text for text, differs in right if differs] == ["thirty"]
    left, right = differing("收到货物后十日内付款", "收到货物后三日内付款")
    assert [text for text, differs in left if differs] == ["十"]
    assert [text for text, differs in right if differs] == ["三"]


@given(st.text(max_size=80), st.text(max_size=80))
def test_the_pieces_of_a_difference_are_the_texts_themselves(before: str, after: str) -> None:
    left, right = differing(before, after)
    assert "".join(text for text, _ in left) == before
    assert "".join(text for text, _ in right) == after
    assert [text for text, differs in left if not differs] == [text for text, differs in right if not differs]
    assert [piece for piece in around(left) if piece[1]] == [piece for piece in left if piece[1]]


def reasons() -> set[str]:
    """Every reason for a dropped row that the code of the corpus spells out."""
    places = {"bad": 2, "BadInput": 2, "Unused": 1, "reject": 1, "Reject": 4, "refused": 2}
    found: list[ast.expr] = []
    for file in (Path(page.__file__).parents[1] / "corpus").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                at = places.get(getattr(node.func, "id", getattr(node.func, "attr", "")), 99)
                found += node.args[at : at + 1]
            elif isinstance(node, ast.Assign) and "reason" in [getattr(one, "id", "") for one in node.targets]:
                found.append(node.value)
    said = {part.value for one in found for part in ast.walk(one) if isinstance(part, ast.Constant)}
    return {text for text in said if isinstance(text, str) and re.fullmatch(r"\w+( [\w`,]+)+", text)}


def test_every_reason_is_said_in_chinese_on_a_chinese_page() -> None:
    known = {**page._strings("zh")["why"], **words("zh")["data"]["why"]}
    assert len(reasons()) > 50
    assert reasons() - known.keys() == set()


def test_the_page_says_which_languages_the_rows_are_in() -> None:
    """Rows by language were counted nowhere: the page knew Latin and Han only."""
    made = page.render(shown())
    assert "English</dt>" in made
    assert "asks for no language" not in made
    assert "too short or not certain 10 rows" in made
    assert "中文</dt>" in page.render(shown(), "zh")
    plain = shown()
    del plain["recognised"]
    assert "Latin letters 90 rows, Chinese characters 40 rows" in page.render(plain)
    assert "asks for no language" in page.render(plain)


def test_the_page_says_what_was_not_looked_for() -> None:
    """`None was found` of a recipe that keeps e-mail addresses, and `no row was the same` of one that compares none."""
    quiet = [entry for entry in shown()["ledger"] if not entry["step"].endswith("duplicates")]
    found = {"personal": {}, "drops": [], "duplicates": {}, "near_duplicates": []}
    told = page.render(shown(kept=["email", "name"], ledger=quiet, **found))
    assert "Not looked for, and left as it is, if there is any: e-mail address, name of a person" in told
    assert "Nothing was compared (prepare.dedup is off)." in told
    assert "No row was the same as another one." not in told
    assert "Not looked for" not in page.render(shown(kept=[]))
