"""The steps on texts that a recipe turns on, through the whole stage: what they do, count and leave."""

import io
import re
from collections import Counter
from typing import Any

import pytest
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from finetune.chat import ChatFormat
from finetune.errors import RecipeError
from tests.corpus.conftest import Corpus, Prepared, orders

NOTICE = "Sent from the workshop terminal, answers to this address are not read."


def entries(prepared: Prepared, step: str) -> dict[str, dict[str, Any]]:
    return {entry["source"]: entry for entry in prepared.ledger if entry["step"] == step}


def book(pages: list[list[str]], head: str, foot: str) -> bytes:
    """A PDF with a running head, a running foot with the page's number, and these lines."""
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    out = io.BytesIO()
    canvas = Canvas(out, invariant=True)
    for number, lines in enumerate(pages, start=1):
        canvas.setFont("STSong-Light", 11)
        for at, line in enumerate([head, *lines, foot.format(number)]):
            canvas.drawString(60, 800 - 16 * at, line)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def test_several_rows_of_one_page_have_names_of_their_own(corpus: Corpus) -> None:
    page = [f"Article {n}. Rule {n} says that pump {n * 7919} is to be looked at." for n in range(1, 5)]
    corpus.write("law.pdf", book([page[:2], page[2:]], "", ""))
    corpus.config["sources"]["law"] = {"path": "law.pdf", "cut": {"by": "clause"}}
    corpus.config["text"] = [{"source": "law"}]
    corpus.config["prepare"] = {"dedup": {"near": None}}
    rows = [row["id"] for part in ("train", "valid") for row in corpus.prepare().table(f"text_{part}.parquet")]
    assert sorted(rows) == [f"text0/law.pdf:{place}" for place in ("1", "1.2", "2", "2.2")]


def test_a_pdf_loses_its_furniture_and_its_chinese_lines_are_joined(corpus: Corpus) -> None:
    start = "为了保护专利权人的合法权益，鼓励发明创造，推动发明创造的应用，"
    texts = [f"{start}提高创新能力，促进科学技术进步和经济发展，制定本法第{n}章。" for n in "一二三四"]
    lines = [[text[i : i + 15] for i in range(0, len(text), 15)] for text in texts]
    corpus.write(
        "law.pdf",
        book(
            [[f"第{n}条", *page] for n, page in zip("一二三四", lines, strict=True)], "专利法汇编", "第 {} 页 共 4 页"
        ),
    )
    layout = {"furniture": True, "lines": True}
    corpus.config["sources"]["law"] = {"path": "law.pdf", "cut": {"by": "document"}, "layout": layout}
    corpus.config["text"] = [{"source": "law"}]
    corpus.config["prepare"] = {"decontaminate": {"ngram": None, "edited": False}}
    prepared = corpus.prepare()
    assert entries(prepared, "read")["law"]["layout"] == {"furniture": 8, "lines": sum(map(len, lines)) - 4}
    chat = ChatFormat.read(corpus.base.path)
    said = "".join(chat.tokenizer.decode(row["input_ids"]) for row in prepared.table("text_train.parquet"))
    assert [said.count(text) for text in texts] == [1, 1, 1, 1]
    assert "汇编" not in said
    assert "共 4 页" not in said


def test_boilerplate_is_taken_out_and_a_row_that_was_nothing_else_is_dropped(corpus: Corpus) -> None:
    rows = orders(120)
    for row in rows[:40]:
        row["text"] += f"\n\n{NOTICE}"
    rows[80]["text"] = NOTICE.upper()
    corpus.write_rows("orders.jsonl", rows)
    corpus.config["prepare"] = {"filters": {"boilerplate": 5}}
    prepared = corpus.prepare()
    entry = entries(prepared, "boilerplate")["orders"]
    assert (entry["changed"], entry["paragraphs"], entry["dropped"]) == (41, 41, {"only boilerplate": 1})
    assert NOTICE.lower() not in (prepared.out / "train.jsonl").read_text(encoding="utf-8").lower()
    corpus.config["prepare"] = {"filters": {"boilerplate": 40}}
    assert entries(corpus.prepare(), "boilerplate")["orders"]["changed"] == 0


def test_a_task_may_use_what_stood_before_the_codes_were_written_out(corpus: Corpus) -> None:
    corpus.write("codes.csv", "code,words\npump,hydraulic pump\nside,\n".replace("side,\n", "horn,signal horn\n"))
    corpus.config["prepare"] = {"repair": {"glossary": {"file": "codes.csv", "columns": {"orders": ["text"]}}}}
    corpus.config["tasks"]["action"]["prompt"] = "{text}\nas written: {text_original}"
    prepared = corpus.prepare()
    written = Counter(re.findall("pump|horn", " ".join(row["text"] for row in orders(120))))
    assert entries(prepared, "repair")["orders"]["glossary"] == dict(sorted(written.items()))
    for row in prepared.lines("train.jsonl"):
        expanded, original = row["messages"][0]["content"].split("\nas written: ")
        assert original.replace("pump", "hydraulic pump").replace("horn", "signal horn") == expanded
    before = corpus.prepare().files()
    corpus.write("codes.csv", "code,words\npump,water pump\n")
    assert corpus.prepare().files()["train.jsonl"] != before["train.jsonl"]


def dated(count: int) -> list[dict[str, str]]:
    """Orders of machine m0 in January, of m1 in February and so on, and one of m0 in December."""
    rows = orders(count)
    for i, row in enumerate(rows):
        row["date"] = f"20{20 + (i // 4) // 12:02d}-{(i // 4) % 12 + 1:02d}-15"
    rows[0]["date"] = "2022-12-01"
    return rows


TIME = {"columns": {"orders": "date"}, "valid_from": "2021-09-01", "test_from": "2022-01-01"}


def test_a_split_by_time_tests_on_what_came_last(corpus: Corpus) -> None:
    corpus.write_rows("orders.jsonl", dated(120))
    corpus.config["prepare"] = {"split": {"time": TIME}}
    prepared = corpus.prepare()
    sides = {side: {row["group"] for row in prepared.lines(f"{side}.jsonl")} for side in ("train", "valid", "test")}
    assert sides["train"] == {f"m{n}" for n in range(1, 20)}
    assert sides["valid"] == {f"m{n}" for n in range(20, 24)}
    assert sides["test"] == {"m0", *(f"m{n}" for n in range(24, 30))}
    entry = entries(prepared, "groups by time")["orders"]
    assert (entry["groups"], entry["straddling"], entry["moved"]) == (30, 1, 3)


def test_a_time_that_cannot_be_read_names_its_row_or_is_a_reject(corpus: Corpus) -> None:
    rows = dated(120)
    rows[7]["date"] = "7 May 2021, call 13812345678"
    corpus.write_rows("orders.jsonl", rows)
    corpus.config["prepare"] = {"split": {"time": TIME}}
    with pytest.raises(RecipeError, match=r"orders.jsonl:8") as caught:
        corpus.prepare()
    assert "13812345678" not in str(caught.value)
    corpus.config["prepare"]["bad_input"] = "reject"
    prepared = corpus.prepare()
    assert entries(prepared, "time")["orders"]["dropped"] == {"no time": 1}
    assert "13812345678" not in (prepared.out / "rejects.jsonl").read_text(encoding="utf-8")


def test_tasks_are_mixed_by_weight_with_and_without_repeating_rows(corpus: Corpus) -> None:
    task = corpus.config["tasks"]["action"]
    where = {"text": "pump"}
    corpus.config["tasks"]["pumps"] = {**task, "main": False, "prompt": "Pump: {text}", "where": where}
    plain = {name: sides["train"]["rows"] for name, sides in corpus.prepare().facts["tasks"].items()}
    assert plain["pumps"] < plain["action"]
    corpus.config["prepare"] = {"mix": {"weights": {"action": 1, "pumps": 1}}}
    even = corpus.prepare()
    rows = Counter(row["task"] for row in even.table("sft_train.parquet"))
    assert rows == {"action": plain["pumps"], "pumps": plain["pumps"]}
    over = plain["action"] - plain["pumps"]
    assert entries(even, "mix tasks")["action/train"]["dropped"] == {"over the weight of its task": over}
    corpus.config["prepare"]["mix"]["repeats"] = 2
    twice = corpus.prepare()
    found = Counter((row["task"], row["id"]) for row in twice.table("sft_train.parquet"))
    rows = Counter(row["task"] for row in twice.table("sft_train.parquet"))
    wanted = min(2 * plain["pumps"], 2 * plain["action"])
    assert rows["action"] == rows["pumps"] == wanted
    assert max(found.values()) == 2
    assert entries(twice, "mix tasks")["pumps/train"]["made"] == wanted - plain["pumps"]
    assert twice.files() == corpus.prepare().files()


def test_with_every_step_on_two_workers_write_what_one_writes(corpus: Corpus) -> None:
    rows = dated(120)
    for row in rows[:40]:
        row["text"] += f"\n\n{NOTICE}"
    rows[50]["text"] = "\n\n".join(row["text"] for row in orders(160)[120:])
    corpus.write_rows("orders-a.jsonl", rows[:60])
    corpus.write_rows("orders-b.jsonl", rows[60:])
    corpus.write("codes.csv", "code,words\npump,hydraulic pump\n")
    corpus.config["sources"]["orders"]["path"] = "orders-*.jsonl"
    corpus.config["tasks"]["action"]["split_column"] = "text"
    corpus.config["prepare"] = {
        "repair": {"glossary": {"file": "codes.csv", "columns": {"orders": ["text"]}}},
        "filters": {"languages": ["en", "zh"], "repetition": 4.0, "boilerplate": 5},
        "split": {"time": TIME},
        "length": {"policy": "split"},
        "mix": {"weights": {"action": 1.0}},
    }
    one = corpus.prepare(workers=1)
    assert entries(one, "parts")["action"]["cut"] == 1
    assert one.files() == corpus.prepare(workers=2).files()
