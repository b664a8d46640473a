"""What holds of every built row, whatever the documents are."""

import re
from collections import Counter

from corpus.builders.built import build, item
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.corpus.build import Item
from finetune.corpus.builders.sentences import squeeze
from finetune.corpus.split import Side

WORDS = "pump valve seller buyer council notice permit licence vessel cargo grant record teacher pupil harbour".split()  # noqa: SIM905
HAN = "保险合同机构当事人法院经营者消费权益公司代理财产责任"
ABSENT = "Not in the text"
BUILDERS = ("definition", "cross_reference", "grounded_question", "citation", "heading", "fields")
LABELS = {"equipment": ["Equipment", "设备"], "fault": ["Fault", "故障"]}
QUESTIONS = {"fault": "What is the fault of {equipment}?"}


@st.composite
def sentence(draw: st.DrawFn, mark: str) -> str:
    """One sentence that holds `mark`, so that a passage tells which item it was cut from."""
    one, other = draw(st.sampled_from(WORDS)), draw(st.sampled_from(WORDS))
    first = draw(st.integers(0, len(HAN) - 5))
    han, number = HAN[first : first + 4], draw(st.integers(1, 9))
    return draw(st.sampled_from([
        f"“{one} {mark}” means a {other} that is kept by the {one} of the district.",
        f"本法所称{han}{mark}，是指依照委托办理{other}业务的机构。",
        f"The {one} {mark} shall give notice to the {other} within {number} days.",
        f"{han}{mark}应当在{number}日内告知有关部门并说明理由。",
        f"Subject to Section {number}, the {mark} {one} pays the {other} in full.",
        f"违反本法第{number}条规定的，{han}{mark}承担责任。",
        f"Equipment: {one} {mark}\nFault: F{number}\n",
        f"A {one} of the {other} is free, except — {mark} —\n\n(a) a {one}; or\n\n(b) a {other}.",
    ]))  # fmt: skip


@st.composite
def corpora(draw: st.DrawFn) -> list[Item]:
    """Up to a dozen clauses; each begins and ends with its mark."""
    found = []
    for number in range(draw(st.integers(1, 12))):
        mark = f"zq{number}x"
        body = " ".join(draw(st.lists(sentence(mark), min_size=1, max_size=3)))
        start = draw(st.sampled_from(["", f"Section {number}. ", f"第{number}条 "]))
        word = draw(st.sampled_from(WORDS)).title()
        heading = draw(st.sampled_from(["", f"Section {number}. {word} {number}", "总则"]))
        found.append(item(number, f"{start}{body}", heading, group=f"g{number % 5}"))
    return found


def options(builder: str, passages: int, share: float) -> dict:
    if builder == "grounded_question":
        return {"passages": passages, "absent_share": share, "not_in_text": ABSENT, "labels": LABELS,
                "questions": QUESTIONS, "ask": ["heading", "definition", "field"], "passage_chars": 200}  # fmt: skip
    if builder == "citation":
        return {"passages": passages, "absent_share": share, "passage_chars": 200}
    return {"labels": LABELS} if builder == "fields" else {}


def side(one: Item) -> Side:
    return {"g0": "test", "g1": "valid"}.get(one.group, "train")


@settings(max_examples=80, deadline=None)
@given(corpora(), st.sampled_from(BUILDERS), st.integers(2, 4), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_span_is_the_quote_and_no_side_meets_another(items, builder, passages, share) -> None:
    rows, rejects = build(items, builder, side, **options(builder, passages, share))
    by_line = {one.line: one for one in items}
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        columns = row.columns
        spans = [re.fullmatch(r"a\.md:(\d+) (\w+)\[(\d+):(\d+)\]", part) for part in columns["_span"].split("; ")]
        texts = [by_line[int(span[1])].columns[span[2]][int(span[3]) : int(span[4])] for span in spans]
        assert columns["_builder"] == builder
        assert all(texts)
        assert columns["quote"] in ("\n".join(texts), "")
        assert (row.group, row.source) == (by_line[row.line].group, "b")
        told = " ".join(value for name, value in columns.items() if name not in ("_file", "_line"))
        for mark in re.findall(r"zq\d+x", told):
            assert side(by_line[int(mark[2:-1])]) == side(row), "a text of another side"
        if builder == "heading":
            assert squeeze(columns["answer"]) not in squeeze(columns["clause"])[: len(squeeze(columns["answer"]))]
        if "position" in columns:
            judge_passages(columns, texts[0], passages)
    assert not any(reject.step != "build" for reject in rejects)
    for reject in rejects:
        if (place := reject.span) is not None:
            assert by_line[reject.line].columns[place.column][place.start : place.end].strip()
        assert (place is not None) >= (builder == "cross_reference" and bool(reject.detail))
    assert rows or rejects, "what was looked at is counted"
    again, also = build(items, builder, side, **options(builder, passages, share))
    assert (again, also) == (rows, rejects), "the same documents give the same rows"


PIECES = [
    "Section ", "Article 5A. ", "第", "十二", "条", "款", "“", "”", '"', " means ", "，是指", "本法所称", "4.2",
    "§ 99.31", "(a)", "（一）", "\n", "\n\n", " | ", "Equipment", "Fault", "设备", ".", "。", ";", "：", "—",
    " and ", " of the ",
    " shall ", "不得", "No ", "buyer", "买方", "1", "ſ", "İ", "\u2028", "【", "】", "《", "》", "[", "{", "}",
    "\\", "𝟏", "㈠",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=25).map("".join), max_size=6))
def test_no_text_breaks_a_builder_and_every_row_is_a_quote(texts) -> None:
    items = [item(number, text, text[: number * 7]) for number, text in enumerate(texts)]
    for builder in BUILDERS:
        rows, rejects = build(items, builder, **options(builder, 2, 0.3))
        assert {row.line for row in rows} | {reject.line for reject in rejects} == set(range(len(items)))
        for row in rows:
            spans = re.findall(r"a\.md:(\d+) (\w+)\[(\d+):(\d+)\]", row.columns["_span"])
            quotes = [items[int(line)].columns[name][int(start) : int(end)] for line, name, start, end in spans]
            assert row.columns["quote"] in ("\n".join(quotes), "")


def judge_passages(columns: dict[str, str], answer: str, passages: int) -> None:
    shown = [columns[f"passage_{number}"] for number in range(1, passages + 1)]
    assert columns["passages"] == "\n\n".join(f"[{number}] {text}" for number, text in enumerate(shown, start=1))
    holding = [str(number) for number, text in enumerate(shown, start=1) if squeeze(answer) in squeeze(text)]
    if columns["position"]:
        assert holding == [columns["position"]], "the answer stands in one passage, the one that is named"
        assert answer in shown[int(columns["position"]) - 1]
    else:
        assert holding == []
        assert columns["answer"] in (ABSENT, "[]")
        assert columns["quote"] == ""


def clauses(count: int) -> list[Item]:
    texts = [f"“term{i}q” means {WORDS[i % 15]} {WORDS[(i * 7) % 15]} number {i}." for i in range(count)]
    return [item(i, text) for i, text in enumerate(texts)]


def test_positions_go_round_and_the_share_without_an_answer_is_kept() -> None:
    for passages in (2, 3, 4):
        rows, _ = build(
            clauses(200), "grounded_question", ask=["definition"], heading=None, passages=passages, absent_share=0.25
        )
        counts = Counter(row.columns["position"] for row in rows)
        assert counts[""] == 50
        assert set(counts) == {"", *map(str, range(1, passages + 1))}
        placed = [count for position, count in counts.items() if position]
        assert max(placed) - min(placed) <= 1


def test_a_text_that_is_about_the_same_never_distracts() -> None:
    items = [
        item(0, "The harbour master shall keep a record of every vessel in port.", "Record of vessels"),
        item(1, "A record of vessels that were sold is kept for ten years by the registrar.", "Sold ships"),
        item(2, "A pupil may leave school at the age of sixteen years.", "Leaving school"),
        item(3, "The council grants a permit for each market.", "Markets"),
    ]
    rows, rejects = build(items, "grounded_question", ask=["heading"], passages=3, absent_share=0.0)
    (row,) = [row for row in rows if row.columns["asked"] == "heading" and "Record" in row.columns["question"]]
    assert "sold" not in row.columns["passages"]
    assert not [reject for reject in rejects if reject.id == "i0"]


def test_an_answer_that_stands_in_another_passage_keeps_it_out() -> None:
    rule = "The council keeps a list of all boats that lie in the harbour."
    items = [
        item(0, rule, "Vessels"),
        item(1, f"Pupils leave at the age of sixteen. {rule}", "Leaving"),
        item(2, "A seller of grain needs a permit that is valid for a year.", "Grain"),
        item(3, "Each office answers a letter within two weeks of its date.", "Letters"),
    ]
    rows, _ = build(items, "grounded_question", ask=["heading"], passages=3, absent_share=0.0)
    (row,) = [row for row in rows if row.columns["answer"] == rule]
    assert "Pupils" not in row.columns["passages"]
    rows, _ = build(items, "grounded_question", ask=["heading"], passages=2, absent_share=1.0)
    (row,) = [row for row in rows if "Vessels" in row.columns["question"]]
    assert "Pupils" not in row.columns["passages"]


def test_rows_of_short_documents_are_balanced_over_documents_too() -> None:
    counts: Counter[str] = Counter()
    for number in range(120):
        items = [item(10 * number + i, f"“word{i}k{number}” means a thing of kind {i} in {number}.") for i in range(3)]
        rows, _ = build(items, "grounded_question", ask=["definition"], heading=None, passages=2, absent_share=0.25)
        counts.update(row.columns["position"] for row in rows)
    assert 60 < counts[""] < 120
    assert abs(counts["1"] - counts["2"]) < 60
