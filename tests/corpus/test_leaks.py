"""What an evaluation row says is found in training rows, however dressed or edited; what only resembles it is not.

Pains: good figures that are leakage (extract0#1, parameter-golf#2127, OpenRLHF#1089).
"""

import csv
import itertools
import json
import pickle
import random
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from corpus.conftest import general
from hypothesis import given, settings
from hypothesis import strategies as st
from real_rows import articles, laws

from finetune.config.prepare import Split
from finetune.corpus.dedup import jaccard, shingles
from finetune.corpus.leaks import EvaluationIndex, _best_place, words
from finetune.corpus.split import side_of

PASSAGE = (
    "the borrower shall repay the principal amount of the loan together with accrued interest in twelve equal monthly "
    "instalments beginning on the first day of march"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPACE = re.compile(r"\s+")


@lru_cache
def rows_of(name: str) -> tuple[str, ...]:
    """Texts of real rows, each once, in an order drawn by a fixed seed."""
    if name == "orders":
        with Path("data/maintenance/work_orders.csv").open(encoding="utf-8") as file:
            found = [max(row.values(), key=len) for row in csv.DictReader(file)]
    elif name == "articles":
        found = [article["text"] for article in articles()]
    elif name == "titles":
        found = [article["title"] for article in articles()]
    elif name == "speeches":
        lines = Path("data/general/speeches.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line)["text"] for line in lines]
    elif name == "laws":
        found = [article["text"] for article in laws()]
    else:
        found = [re.split("[,。;:，；：]", article["text"])[0] for article in laws()]
    distinct = sorted({"".join(words(text)): text for text in found if len("".join(words(text))) >= 10}.values())
    random.Random(5).shuffle(distinct)
    return tuple(distinct)


CORPORA = ("orders", "articles", "titles", "speeches", "laws", "clauses")
LONG = ("articles", "speeches", "laws")


def is_chinese(text: str) -> bool:
    return bool(re.search("[\u4e00-\u9fff]", text))


def full_width(text: str) -> str:
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


def spaced(text: str, draw: random.Random) -> str:
    """Spaces inside words."""
    return "".join(letter + " " * (draw.random() < 0.3) for letter in text)


DRESSES: dict[str, Callable[[str, random.Random], str]] = {
    "verbatim": lambda text, _: text,
    "re-cased": lambda text, _: text.swapcase(),
    "full width": lambda text, _: full_width(text),
    "new lines": lambda text, _: SPACE.sub(" \n\t", text),
    "spaces inside words": spaced,
    "no spaces": lambda text, _: SPACE.sub("", text),
}


def edit(parts: list[str], draw: random.Random, kinds: str, others: list[str]) -> list[str]:
    """A tenth of the parts replaced (r), preceded by another one (i) or left out (d)."""
    parts = list(parts)
    for _ in range(len(parts) // 10):
        place, kind = draw.randrange(len(parts)), draw.choice(kinds)
        if kind == "r":
            parts[place] = draw.choice(others)
        elif kind == "i":
            parts.insert(place, draw.choice(others))
        elif len(parts) > 1:
            del parts[place]
    return parts


def edit_letters(text: str, draw: random.Random, kinds: str) -> str:
    return "".join(edit(list(text), draw, kinds, list(rows_of("laws")[0] if is_chinese(text) else LETTERS)))


def edit_words(text: str, draw: random.Random, kinds: str, vocabulary: list[str]) -> str:
    return "".join(edit(list(text), draw, kinds, vocabulary)) if is_chinese(text) else " ".join(
        edit(text.split(), draw, kinds, vocabulary)
    )  # fmt: skip


@lru_cache
def halves(name: str) -> tuple[EvaluationIndex, tuple[str, ...], tuple[str, ...]]:
    """(index of the evaluation half, that half, the other one)."""
    rows = rows_of(name)
    half = min(len(rows) // 2, 300)
    index = EvaluationIndex(13)
    for number, text in enumerate(rows[:half]):
        index.add(f"test/{number}", [text], [text])
    return index, rows[:half], rows[half : 2 * half]


@pytest.mark.parametrize("dress", DRESSES)
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CORPORA), st.data())
def test_a_leak_is_found_however_it_is_dressed(dress: str, name: str, data: st.DataObject) -> None:
    index, rows, _ = halves(name)
    planted = DRESSES[dress](data.draw(st.sampled_from(rows)), random.Random(data.draw(st.integers(0, 99))))
    assert index.find([planted], [planted])


@pytest.mark.parametrize("dress", DRESSES)
@settings(max_examples=25, deadline=None)
@given(st.sampled_from(LONG), st.data())
def test_a_passage_is_found_at_any_place_of_a_longer_document(dress: str, name: str, data: st.DataObject) -> None:
    index, rows, others = halves(name)
    planted = DRESSES[dress](
        data.draw(st.sampled_from([row for row in rows if len(words(row)) >= 13])), random.Random(0)
    )
    before, after = (" ".join(data.draw(st.lists(st.sampled_from(others), max_size=3))) for _ in "ab")
    assert index.find([f"{before} {planted} {after}"])


def caught(name: str, change: Callable[[str, random.Random], str], count: int, inside: bool = False) -> float:
    """Share of planted copies that are found, `inside` another row of the corpus or as rows of their own."""
    index, rows, others = halves(name)
    draw = random.Random(f"{name}/{inside}")
    long_enough = [row for row in rows if not inside or len(words(row)) >= 20]
    found = 0
    for _ in range(count):
        planted = change(draw.choice(long_enough), draw)
        if inside:
            found += index.find([f"{draw.choice(others)} {planted} {draw.choice(others)}"]) is not None
        else:
            found += index.find([planted], [planted]) is not None
    return found / count


@pytest.mark.parametrize("kinds", ["r", "i", "d", "rid"])
@pytest.mark.parametrize("name", LONG)
def test_a_tenth_edited_hides_no_leak(name: str, kinds: str) -> None:
    vocabulary = [word for row in halves(name)[2] for word in (row if is_chinese(row) else row.split())]
    for inside in (False, True):
        assert caught(name, lambda text, draw: edit_letters(text, draw, kinds), 40, inside) == 1
        assert caught(name, lambda text, draw: edit_words(text, draw, kinds, vocabulary), 40, inside) == 1


@pytest.mark.parametrize(("name", "least"), [("titles", 0.97), ("clauses", 0.97), ("orders", 0.9)])
def test_a_tenth_edited_hides_few_short_rows(name: str, least: float) -> None:
    """What is missed has become another statement: RH for LH, filters for filter, SHD24 for SHD26, another year."""
    vocabulary = [word for row in halves(name)[2] for word in (row if is_chinese(row) else row.split())]
    assert caught(name, lambda text, draw: edit_letters(text, draw, "rid"), 150) >= least
    assert caught(name, lambda text, draw: edit_words(text, draw, "rid", vocabulary), 150) >= least


@pytest.mark.parametrize("name", LONG)
def test_near_duplicates_across_the_split_are_found_whatever_differs(name: str) -> None:
    """Other numbers make another statement, but a row that is the same for the rest gives the answer away."""
    index, rows, _ = halves(name)
    draw, near = random.Random(name), 0
    for row in rows[:150]:
        place, length = draw.randrange(len(row)), draw.randrange(1, 2 + len(row) // 20)
        planted = row[:place] + str(draw.randrange(10**6)) + row[place + length :]
        a, b = (shingles("".join(words(text))) for text in (row, planted))
        if len("".join(words(row))) >= 40 and jaccard(a, b) >= 0.85:
            near += 1
            assert index.find([planted]), planted
    assert near > 20


def test_a_row_with_another_number_is_a_near_duplicate_all_the_same() -> None:
    row = "A company that is registered shall within 30 days of its general meeting file the annual return."
    planted = row.replace("30", "45")
    index = EvaluationIndex(13)
    index.add("test/1", [row], [row])
    assert index.find([planted], [planted]) == ("test/1", "nearly the whole row")


@pytest.mark.parametrize("name", CORPORA)
def test_two_halves_of_a_clean_corpus_pass(name: str) -> None:
    """Beyond rows that share 13 words in a row, hardly any: one in a hundred, and those are the same statement."""
    index, rows, others = halves(name)
    before = EvaluationIndex(13, edited=False)
    for number, text in enumerate(rows):
        before.add(f"test/{number}", [text], [text])
    more = [text for text in others if index.find([text], [text]) and not before.find([text], [text])]
    assert len(more) <= max(1, len(others) // 60), more


@pytest.mark.parametrize(
    ("row", "other"),
    [
        ("malignant neoplasm of larynx, unspecified", "malignant neoplasm of gum, unspecified"),
        ("replace filter on left engine", "replace filter on right engine"),
        ("This law enters into force on 1 January 2020", "This law enters into force on 1 July 2021"),
        ("concentration of sulfate in the blood circulation is below the lower limit of normal",
         "concentration of vitamin B12 in the blood circulation is below the lower limit of normal"),
    ],
)  # fmt: skip
def test_another_statement_in_the_same_form_is_no_leak(row: str, other: str) -> None:
    index = EvaluationIndex(13)
    index.add("test/1", [row], [row])
    index.add("test/2", ["gum", "left", "right", "larynx"])
    assert index.find([other], [other]) is None


def test_a_short_row_leaks_by_its_whole_prompt() -> None:
    index = EvaluationIndex(13)
    index.add("test/1", ["bucket broken"], ["bucket broken"])
    assert index.find(["Bucket  BROKEN"], ["Bucket  BROKEN"]) == ("test/1", "the whole prompt")
    assert index.find(["bucket broken again"], ["bucket broken again"]) is None


def test_the_passage_is_shown() -> None:
    index = EvaluationIndex(13)
    index.add("test/1", [PASSAGE])
    assert index.find([f"As agreed, {PASSAGE}; and so on."]) == ("test/1", " ".join(PASSAGE.split()[:13]))
    edited = PASSAGE.replace("principal", "prinzipal").replace("accrued ", "").replace("equal", "eqaul")
    row, shown = index.find([f"As agreed, {edited}; and so on."]) or ("", "")
    assert row == "test/1"
    assert shown in edited
    assert "prinzipal amount" in shown


def test_an_index_finds_the_same_after_a_journey_to_a_worker() -> None:
    index, rows, others = halves("articles")
    there = pickle.loads(pickle.dumps(index))
    planted = [edit_letters(text, random.Random(1), "rid") for text in rows[:20]]
    assert [there.find([text]) for text in [*planted, *others]] == [index.find([text]) for text in [*planted, *others]]


def test_thirteen_words_are_twenty_six_chinese_characters() -> None:
    """A name such as that of the Standing Committee is no passage; a clause is."""
    text = "根据全国人民代表大会常务委员会的决定,用人单位应当自用工之日起一个月内与劳动者订立书面劳动合同。"
    index = EvaluationIndex(13)
    index.add("test/1", [text])
    assert index.find(["全国人民代表大会常务委员会的报告应当公开。"]) is None
    row, passage = index.find([f"第七条 {text[16:]}"]) or ("", "")
    assert row == "test/1"
    assert len(passage.split()) == 26


def test_chinese_counts_characters() -> None:
    assert words("第12条 合同法") == ["第", "12", "条", "合", "同", "法"]


def distance(pattern: str, text: str, anywhere: bool) -> tuple[int, int]:
    """Edit distance by the table; anywhere: of the best part of the text, and where that ends."""
    before, best = list(range(len(pattern) + 1)), (len(pattern), 0)
    for at, letter in enumerate(text, 1):
        row = [0 if anywhere else at]
        for i, mine in enumerate(pattern, 1):
            row.append(min(before[i] + 1, row[-1] + 1, before[i - 1] + (mine != letter)))
        before = row
        if anywhere and row[-1] < best[0]:
            best = (row[-1], at)
    return best if anywhere else (before[-1], len(text))


@given(st.text("abc", min_size=1, max_size=12), st.text("abc", max_size=24), st.booleans())
def test_distances_are_those_of_the_table(pattern: str, text: str, anywhere: bool) -> None:
    assert _best_place(pattern, text, anywhere) == distance(pattern, text, anywhere)


def test_planted_copies_of_test_rows_are_left_out_of_training(corpus: Any) -> None:
    """Through the whole stage: none of them is trained on, and the rejects name the row that each gives away."""
    before = corpus.prepare()
    orders = [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text().splitlines()]
    text_of = {order["order"]: order["text"] for order in orders}
    tested = [row["id"].removeprefix("action/") for row in before.lines("test.jsonl")][:8]
    machines = (f"planted {number}" for number in range(10**6))
    trained = [name for name in itertools.islice(machines, 300) if side_of(name, 0, Split()) == "train"]
    dresses = [*DRESSES.values(), lambda text, _: re.sub(r"(\w)(\w)(\w+)$", r"\1x\3", text.replace("de", "ed", 1))]
    planted = [
        {
            "order": f"p{number}",
            "machine": trained[number],
            "text": dress(text_of[name], random.Random(0)),
            "action": "go",
        }
        for number, (name, dress) in enumerate(itertools.product(tested, dresses))
    ]
    corpus.config["prepare"] = {"dedup": {"exact": False, "near": None}}
    corpus.write_rows("orders.jsonl", [*orders, *planted])
    after = corpus.prepare()
    assert not [row["id"] for row in after.lines("train.jsonl") if row["id"].startswith("action/p")]
    told = {row["id"]: row for row in after.lines("rejects.jsonl") if row["step"] == "decontaminate"}
    assert len([name for name in told if name.startswith("action/p")]) == len(planted) > 40
    assert all(row["detail"].startswith("action/") for row in told.values())


def test_running_text_and_replay_that_are_a_short_prompt_of_an_evaluation_row_are_left_out(corpus: Any) -> None:
    """No 13 words in a row: 37 of 52 held-out work orders of nine words were trained on as text, word for word."""
    lines = (corpus.root / "orders.jsonl").read_text().splitlines()
    orders = {f"action/{order['order']}": order["text"] for order in map(json.loads, lines)}
    before = corpus.prepare()
    held = [orders[row["id"]] for side in ("valid", "test") for row in before.lines(f"{side}.jsonl")][::4]
    assert max(len(text.split()) for text in held) < 13
    templates = ("{text}", "Order: {text}", "{title}\n{text}")
    dresses = (str, str.upper, lambda text: text.replace(" ", "  \n"), lambda text: re.sub(" (?=[a-z])", "", text))
    planted = [dress(text) for text in held for dress in dresses]
    rows = [{"id": f"p{n}", "title": f"Sheet {n}", "text": text} for n, text in enumerate(planted)]
    clean = [{"id": f"c{n}", "title": f"Sheet {n}", "text": row["text"]} for n, row in enumerate(general(30)[12:])]
    corpus.write_rows("sheets.jsonl", [*rows, *clean])
    corpus.config["sources"]["sheets"] = {"path": "sheets.jsonl", "id": "{id}", "group": "{id}"}
    corpus.config["text"] = [{"source": "sheets", "template": template} for template in templates]
    corpus.config["replay"] = {"source": "sheets", "share": 0.1, "tokens": 16}
    corpus.config["prepare"] = {"dedup": {"exact": False, "near": None}}
    made = corpus.prepare()
    names = [row["id"] for name in ("text_train", "text_valid", "sft_train") for row in made.table(f"{name}.parquet")]
    assert not [name for name in names if name.partition("/")[2].startswith("p")]
    assert len({name.partition("#")[0] for name in names if name.startswith("text")}) == len(templates) * len(clean)
    told = [row["id"] for row in made.lines("rejects.jsonl") if row["step"] == "decontaminate"]
    assert sorted(told) == sorted([row["id"] for row in rows] * (len(templates) + 1))


def test_a_short_general_text_is_trained_on_neither_as_a_row_nor_as_text(corpus: Any) -> None:
    """Forgetting is measured on it: a text of fewer than 13 words counts as a whole prompt does."""
    lines = [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text().splitlines()]
    before = {row["id"].removeprefix("action/") for row in corpus.prepare().lines("train.jsonl")}
    said = [row for row in lines if row["order"] in before][:3]
    corpus.write_rows("sheets.jsonl", [{"id": f"p{row['order']}", "text": row["text"].upper()} for row in said])
    corpus.write_rows("speeches.jsonl", [{"id": f"g{n}", "text": row["text"]} for n, row in enumerate(said)])
    corpus.config["sources"]["sheets"] = {"path": "sheets.jsonl", "id": "{id}", "group": "{id}"}
    corpus.config["text"] = [{"source": "sheets"}]
    made = corpus.prepare()
    told = {row["id"]: row["detail"] for row in made.lines("rejects.jsonl") if row["step"] == "decontaminate"}
    assert set(told) == {f"{mark}{row['order']}" for row in said for mark in ("p", "action/")}
    assert all(detail.startswith("speeches/g") for detail in told.values())
