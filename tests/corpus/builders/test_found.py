"""What builders find in texts, English and Chinese, and why they leave the rest."""

import json
import time
from pathlib import Path

import pytest
from corpus.builders.built import build, document, item, reasons

from finetune.config.data import Cut, Source
from finetune.corpus.builders.clauses import read_chinese, references
from finetune.corpus.builders.definitions import definitions
from finetune.corpus.builders.sentences import first_whole, sentences
from finetune.corpus.finding import SourceFile
from finetune.corpus.read import pieces
from finetune.corpus.read import rows as rows_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("“Goods” means the things of which Annex 2 tells. More.", [("Goods", "the things of which Annex 2 tells")]),
        ('In this Part, (a) "district" means a district in a State; (b) "Fund" shall mean the fund under section 4.',
         [("district", "a district in a State"), ("Fund", "the fund under section 4")]),
        ("Education records means those records that are kept by a school.",
         [("Education records", "those records that are kept by a school")]),
        ("本法所称保险代理人，是指根据委托办理保险业务的机构。", [("保险代理人", "根据委托办理保险业务的机构")]),
        ("（一）“侦查”是指收集证据的工作；\n（二）当事人，是指被害人和自诉人。",
         [("侦查", "收集证据的工作"), ("当事人", "被害人和自诉人")]),
        ('"本条所称权利人，是指商业秘密的所有人。【含义】本法所称告诉，是指被害人告诉才处理。',
         [("权利人", "商业秘密的所有人"), ("告诉", "被害人告诉才处理")]),
        ("It means that the buyer pays. By no means is this the end. A means of transport is a car.", []),
        ("保险人应当指定一名代理人，指导其工作。", []),
    ],
)  # fmt: skip
def test_definitions_are_found_and_other_meanings_are_not(text, found) -> None:
    told = [one for one in definitions(text) if not one.reason]
    assert [(text[slice(*one.term)], text[slice(*one.definition)]) for one in told] == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"Goods" has the meaning given in Schedule 1.', "the meaning is given elsewhere"),
        ('"law" includes any Ordinance of a State.', "says only what a term includes"),
        ('"Goods" means:\n\n(a) ships;\n\n(b) cars.', "the definition is a list of items"),
        ('“transitional area” or “urban area” means an area that is notified.', "defines several terms at once"),
        ("本法所称当事人，是指下列人员：\n（一）原告；\n（二）被告。", "the definition is a list of items"),
    ],
)
def test_a_definition_that_is_none_by_itself_is_counted(text, reason) -> None:
    rows, rejects = build(document(text), "definition")
    assert reason in reasons(rejects)
    assert all("area" in row.columns["term"] for row in rows) or not rows


def test_both_ways_and_never_a_definition_that_says_its_term() -> None:
    text = "“Fund” means the money of the State. “Committee” means a Committee of five."
    rows, rejects = build(document(text), "definition")
    asked = [(row.columns["direction"], row.columns["answer"]) for row in rows]
    assert asked == [("define", "the money of the State"), ("name", "Fund"), ("define", "a Committee of five")]
    assert reasons(rejects) == ["the definition says its term"]


def test_a_glossary_is_read_by_its_pattern() -> None:
    pattern = r"^(?P<term>[^—\n]+) — (?P<definition>[^\[\n]+?) \["
    rows, _ = build(document("perjury — false statements under oath [crime; 1]"), "definition", pattern=pattern)
    assert [row.columns["answer"] for row in rows] == ["false statements under oath", "perjury"]
    assert rows[0].columns["_span"] == "a.md:0 text[10:37]"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Subject to Section 4.2 the buyer pays.", [("Section 4.2", "4.2", "")]),
        ("as in clause (2) of article 15A, or § 99.31(a)",
         [("clause (2) of article 15A", "15a", ""), ("§ 99.31(a)", "99.31", "")]),
        ("Section 3 and Section 4 of the Sale Act",
         [("Section 3", "3", "refers to another document"), ("Section 4", "4", "refers to another document")]),
        ("under sections 5 and 6", [("sections 5 and 6", "5", "names several clauses")]),
        ("section 34 of the Companies Act", [("section 34", "34", "refers to another document")]),
        ("section 34 of this Act", [("section 34", "34", "")]),
        ("5 U.S.C. § 552", [("§ 552", "552", "refers to another document")]),
        ("the proviso to article 131", [("article 131", "131", "names several parts, or a proviso, of a clause")]),
        ("依照本法第三十条第二款规定", [("本法第三十条第二款", "30", "")]),
        ("依照《民法典》第十二条、第十三条", [("《民法典》第十二条、第十三条", "12", "names several clauses")]),
        ("刑法第二百三十九条", [("第二百三十九条", "239", "refers to another document")]),
        ("本法第五条、第六条和第七条",
         [("本法第五条、第六条", "5", "names several clauses"), ("第七条", "7", "names several clauses")]),
    ],
)  # fmt: skip
def test_references_are_read_and_those_to_elsewhere_are_told_apart(text, found) -> None:
    read = [(text[one.start : one.end], one.label.number, one.reason) for one in references(text)]
    assert read == found


def test_a_reference_leads_to_the_one_clause_that_it_means() -> None:
    texts = (
        "Section 1. The seller delivers the goods subject to Section 2(b), and Section 9 holds as well.",
        "Section 2.\n(a) The price is fixed.\n(b) The buyer must pay within thirty days.",
        "Section 3. Under Section 5 and Section 4 of the Sale Act nothing is due.",
    )
    rows, rejects = build(document(*texts), "cross_reference", heading=None)
    (row,) = rows
    assert row.columns["reference"] == "Section 2(b)"
    assert (row.columns["target"], row.columns["answer"]) == ("Section 2", "The buyer must pay within thirty days.")
    assert row.columns["_span"] == f"a.md:1 text[{texts[1].index('The buyer')}:{len(texts[1])}]"
    assert sorted(reasons(rejects)) == [
        "no clause of this document has that number", "refers to another document", "refers to another document",
        "refers to no clause by its number",
    ]  # fmt: skip
    rows, rejects = build(
        document(*texts), "cross_reference", lambda one: "test" if one.id == "i1" else "train", heading=None
    )
    assert rows == []
    assert "the clause lies on another side of the split" in reasons(rejects)


def test_a_chinese_paragraph_of_a_clause_is_found_by_its_number() -> None:
    texts = (
        "第一条 为了保护消费者的权益，制定本法。\n经营者应当提供真实的信息。",
        "第二条 违反本法第一条第二款规定的，责令改正。",
    )
    rows, _ = build(document(*texts), "cross_reference", heading=None)
    assert [row.columns["answer"] for row in rows] == ["经营者应当提供真实的信息。"]
    numbers = {"十": 10, "一百零五": 105, "二〇五": 205, "二百三十九": 239, "12": 12}
    assert {number: read_chinese(number) for number in numbers} == numbers


def test_a_value_with_a_run_of_spaces_does_not_cost_its_square() -> None:
    begun = time.process_time()
    rows, _ = build(document(f"Pump: a{' ' * 100_000}b \nFault: x"), "fields", labels={"p": ["Pump"], "f": ["Fault"]})
    assert rows
    assert time.process_time() - begun < 5


def test_values_under_labels_and_in_tables() -> None:
    labels = {"equipment": ["Equipment", "设备"], "fault": ["Fault code", "故障代码"]}
    rows, rejects = build(
        document(
            "Equipment: pump P-1\nFault code: F07\nDone.", "设备：水泵\n故障代码：F08", "Nothing here.",
            "Fault code: F1\nEquipment: a\nFault code: F2",
        ), "fields", labels=labels, least=2,
    )  # fmt: skip
    assert [json.loads(row.columns["answer"]) for row in rows] == [
        {"equipment": "pump P-1", "fault": "F07"}, {"equipment": "水泵", "fault": "F08"},
    ]  # fmt: skip
    assert reasons(rejects) == ["no label or pattern is found", "fewer values than `least`"]


def test_rows_of_a_table_are_read_under_its_head(tmp_path: Path) -> None:
    page = (
        "<table><tr><th>Equipment</th><th>Found on</th><th>Fault code</th></tr>"
        "<tr><td>pump P-1</td><td>Monday</td><td>F07</td></tr>"
        "<tr><td>valve</td><td>Friday</td><td>F08</td></tr></table>"
        "<p>End of table.</p><table><tr><td>not</td><td>of</td><td>it</td></tr></table>"
    )
    labels = {"equipment": ["Equipment"], "fault": ["Fault code"]}
    (tmp_path / "a.html").write_text(page)
    for by in ("paragraph", "document"):
        source = Source(path="a.html", cut=Cut(by=by))
        (piece,) = pieces(SourceFile("a.html", tmp_path / "a.html"), source, "s")
        items = [item(int(row["_line"]), row["text"]) for row in rows_of(piece, source, "s", [])]
        rows, rejects = build(items, "fields", labels=labels)
        assert reasons(rejects).count("the head of a table alone") == (by == "paragraph")
        assert [row.columns["answer"] for row in rows] == [
            '{"equipment":"pump P-1","fault":"F07"}', '{"equipment":"valve","fault":"F08"}',
        ]  # fmt: skip
        assert rows[0].columns["header"] == "Equipment | Found on | Fault code"


def test_a_heading_is_asked_for_without_its_number_and_without_itself_in_the_text() -> None:
    headings = ["Article 5. Payment of the price", "第三条 【适用范围】", "4.2", "Delivery"]
    texts = (
        "The buyer pays within thirty days of the day on which the goods are handed over.",
        "第三条 【适用范围】在中华人民共和国境内从事保险活动，适用本法，法律另有规定的除外。",
        "A clause whose heading is only its number.",
        "Delivery: on the day that the parties agree.",
    )  # fmt: skip
    rows, rejects = build(document(*texts, headings=headings), "heading")
    assert [row.columns["answer"] for row in rows] == ["Payment of the price", "适用范围", "Delivery"]
    assert all(row.columns["answer"] not in row.columns["clause"] for row in rows)
    assert reasons(rejects) == ["no heading, or its number alone"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Art. 5 holds. It is so, e.g. here. No. 7 too.", ["Art. 5 holds.", "It is so, e.g. here.", "No. 7 too."]),
        ("(1) One. (2) Two (see below).", ["(1) One.", "(2) Two (see below)."]),
        ("甲方付款。乙方交货；逾期的，支付违约金。", ["甲方付款。", "乙方交货；逾期的，支付违约金。"]),
        ("First line\nsecond line.\n\nNext paragraph", ["First line\nsecond line.", "Next paragraph"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, parts) -> None:
    assert [text[start:end] for start, end in sentences(text)] == parts


def test_a_few_words_with_a_full_stop_are_a_heading_and_a_numbered_item_ends_a_sentence() -> None:
    text = "Progress policy. An institution must have one. (1A) It may change it (w.e.f. 1978)."
    assert [text[slice(*extent)] for extent in sentences(text)] == [
        "Progress policy.", "An institution must have one.", "(1A) It may change it (w.e.f. 1978).",
    ]  # fmt: skip
    assert first_whole(text, 200) == (0, text.index(" (1A)"))


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("No person shall be a member of both Houses of Parliament.",
         "No person may be a member of both Houses of Parliament."),
        ("No person shall be a member of both, and provision shall be made by law.", None),
        ("Subject to section 5, no money shall be taken out of the Fund.", None),
        ("The State shall teach all children as soon as may be after the day.",
         "The State must teach all children as soon as may be after the day."),
        ("The buyer may not sell the goods before the price has been paid.",
         "The buyer cannot sell the goods before the price has been paid."),
        ("Such person shall give notice to the council within five days.", None),
        ("经营者不得排除或者限制消费者的权利，但是法律另有规定的除外。",
         "经营者不可以排除或者限制消费者的权利，但是法律另有规定的除外。"),
        ("该机构应当在三十日内告知有关部门并且说明理由。", None),
    ],
)  # fmt: skip
def test_a_rule_said_in_other_words_means_the_same(text, statement) -> None:
    other = ["The council keeps a list of boats.", "Grain is stored in dry places."]
    rows, _ = build(document(text, *other), "citation", heading=None)
    assert [row.columns["statement"] for row in rows] == [statement] * bool(statement)


def test_a_sentence_brings_the_list_that_it_announces() -> None:
    text = "The buyer may—\n\n(a) withdraw; or\n\n(b) pay.\n\nNothing else."
    extent = first_whole(text, 200)
    assert extent is not None
    assert text[slice(*extent)] == "The buyer may—\n\n(a) withdraw; or\n\n(b) pay."
    assert first_whole(text, 30) is None
