"""A teacher behind a real HTTP server: what it is sent, what is kept, what is left out."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from corpus.builders.built import build, document, reasons
from local_server import Handler, Local

from finetune.corpus.builders.teacher import bears, find_quote
from finetune.errors import RecipeError

TEXTS = (
    "The buyer pays 1,200 euros to Mercator within thirty days.", "第三条 保险人应当在三十日内作出核定。",
    "Nothing of note.", "The seller delivers\nthe goods in May.",
)  # fmt: skip


class Teacher(Handler):
    """Says of a passage what `replies` has under a word of it."""

    replies: dict[str, str]

    retry_after = "0"

    def do_POST(self) -> None:
        body = self.asked()
        if self.failed(self.server.next_fault()):
            return
        passage = body["messages"][0]["content"].partition("Passage:\n")[2]
        fitting = [reply for word, reply in self.replies.items() if word in passage]
        told = fitting[0] if fitting else said("q?", "a", "no such words")
        finish = "length" if told == "CUT" else "stop"
        self.send({"choices": [{"message": {"content": told}, "finish_reason": finish}]})


def said(question: str, answer: str, quote: str) -> str:
    return json.dumps({"question": question, "answer": answer, "quote": quote}, ensure_ascii=False)


GOOD = {
    "euros": said("How much is paid?", "1200 euros to Mercator", "pays 1,200 euros to Mercator"),
    "核定": "```json\n" + said("多少日内核定？", "三十日", "在三十日内作出核定") + "\n```",
    "seller": f"<think>hm {{}}</think>{said('What is delivered?', 'the goods', 'delivers the goods')}",
}


@contextmanager
def teaching(replies: dict[str, str]) -> Iterator[Local]:
    server = Local((), None, 0)
    server.RequestHandlerClass = type("Handler", (Teacher,), {"replies": replies})
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server: Local, books: Path, texts=TEXTS, **options: Any):
    given = {"send_documents": True, "concurrency": 2, "tries": 2, "timeout_s": 5.0, **options}
    return build(document(*texts), "teacher", books=books, endpoint=f"{server.url}#wise", **given)


def test_rows_are_marked_and_every_quote_stands_in_its_text(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "for-the-teacher")
    monkeypatch.setenv("VLLM_API_KEY", "for-the-served-model")
    with teaching(GOOD) as server:
        rows, rejects = ask(server, tmp_path)
        assert {path for path, _ in server.asked} == {"/v1/chat/completions"}
        assert {body["model"] for _, body in server.asked} == {"wise"}
        assert server.keys == {"Bearer for-the-teacher"}, "another server's key goes nowhere"
        again = ask(server, tmp_path)
        assert len(server.asked) == len(TEXTS), "what is kept is not asked again"
    assert again == (rows, rejects)
    assert [(row.columns["question"], row.columns["answer"]) for row in rows] == [
        ("How much is paid?", "1200 euros to Mercator"), ("多少日内核定？", "三十日"),
        ("What is delivered?", "the goods"),
    ]  # fmt: skip
    assert {row.columns["_builder"] for row in rows} == {"teacher:wise"}
    for row in rows:
        start, end = map(int, re.findall(r"\d+", row.columns["_span"].partition("[")[2]))
        assert row.columns["quote"] == row.columns["text"][start:end]
    assert rows[2].columns["quote"] == "delivers\nthe goods", "as the text has it, line end and all"
    assert reasons(rejects) == ["its quote does not stand in the text"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Sure! The buyer pays.", "the reply is no JSON"),
        ('["q", "a", "pays"]', "the reply lacks question, answer or quote"),
        (said("q?", " ", "pays"), "the reply lacks question, answer or quote"),
        ('{"question": 1, "answer": "a", "quote": "pays"}', "the reply lacks question, answer or quote"),
        (said("q?", "1,200 euros", "pays 1,200 dollars"), "its quote does not stand in the text"),
        (said("q?", "Berlin", "pays 1,200 euros"), "its quote does not hold the answer"),
        (said("q?", "mercator gmbh", "."), "its quote does not hold the answer"),
        (said("q?", "1,300 euros", "pays 1,200 euros"), "its quote does not hold the answer"),
        (said("q?", "yes", "pays 1,200 euros"), "its quote does not hold the answer"),
        (said("q?", "The buyer pays 1,300 euros to Mercator within thirty days.", TEXTS[0]),
         "a number of its answer does not stand in the text"),
        (said("q?", "Berlin buyer pays 1,200 euros to Mercator within thirty days.", TEXTS[0]),
         "a name of its answer does not stand in the text"),
        ("CUT", "the reply was cut off at max_new_tokens"),
    ],
)
def test_what_the_text_does_not_bear_out_is_left_out(reply, reason, tmp_path) -> None:
    with teaching({"euros": reply}) as server:
        rows, rejects = ask(server, tmp_path, TEXTS[:1])
    assert rows == []
    assert reasons(rejects) == [reason]
    assert all("Gerhard" not in reject.detail for reject in rejects), "nothing of a reply gets into the rejects"


@pytest.mark.parametrize(
    ("quote", "answer", "holds"),
    [
        ("The capital of France is Paris.", "paris", True),
        ("The capital of France is Paris.", "Par", False),
        ("pays 1,200 euros", "1200 euros", True),
        ("weighs 20 kg", "20 tonnes", False),
        ("weighs 20 kg", "twenty kilograms", False),
        ("法国的首都是巴黎。", "巴黎", True),
        ("法国的首都是巴黎。", "柏林", False),
        ("重量为二十公斤", "五公斤", False),
        ("The buyer pays within thirty days of delivery.", "Payment is due by the buyer within thirty days.", True),
        ("The buyer pays.", "The seller has to deliver all goods to the port of Hamburg.", False),
        ("保险人应当在三十日内作出核定", "保险人收到请求后应当在三十日内作出核定并通知", True),
        ("保险人应当在三十日内作出核定", "投保人可以随时解除合同而不必说明任何理由", False),
    ],
)
def test_a_quote_holds_a_short_answer_as_it_is_and_half_of_a_long_one(quote, answer, holds) -> None:
    """A lying teacher got through with any quote at all, a full stop even: its answer was looked for nowhere."""
    assert bears(quote, answer) is holds


@pytest.mark.parametrize("fault", ["429", "500", "garbage", "cut", "aborted"])
def test_a_fault_that_passes_is_asked_again_and_one_that_stays_keeps_what_came(fault, tmp_path) -> None:
    with teaching(GOOD) as server:
        server.faults = [fault]
        rows, _ = ask(server, tmp_path / "passing", TEXTS[:1])
        assert (len(rows), len(server.asked)) == (1, 2)
        server.faults, server.asked = ["", "", fault, fault, fault, fault], []
        with pytest.raises(RecipeError, match=r"2 replies are kept in .*asks only for what is missing"):
            ask(server, tmp_path / "staying", concurrency=1)
        server.faults, server.asked = [], []
        rows, _ = ask(server, tmp_path / "staying")
        assert (len(rows), len(server.asked)) == (3, len(TEXTS) - 2)


def test_what_was_kept_for_one_document_is_not_read_again_for_the_next(tmp_path) -> None:
    """Its kept file was read whole for each document: quadratic in the corpus."""
    with teaching(GOOD) as server:
        ask(server, tmp_path, TEXTS[:1])
        (book,) = tmp_path.glob("teacher-*.jsonl")
        book.write_bytes(b" " * (book.stat().st_size - 1) + b"\n")  # what is read again is lost now
        ask(server, tmp_path, TEXTS[1:2])
        server.asked = []
        rows, _ = ask(server, tmp_path, TEXTS[:2])
        assert (len(rows), server.asked) == (2, [])


def test_a_missing_key_is_told_and_a_torn_line_is_asked_again(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    with teaching(GOOD) as server:
        server.faults = ["denied"]
        with pytest.raises(RecipeError, match=r"build\.b\.endpoint.*export TEACHER_API_KEY"):
            ask(server, tmp_path, TEXTS[:1])
        assert server.keys == {None}
        ask(server, tmp_path, TEXTS[:2])
        (book,) = tmp_path.glob("teacher-*.jsonl")
        book.write_bytes(book.read_bytes()[:-20])
        server.asked = []
        rows, _ = ask(server, tmp_path, TEXTS[:2])
        assert (len(rows), len(server.asked)) == (2, 1)


def test_a_quote_is_found_by_its_words_in_their_order() -> None:
    assert find_quote("pay  the\nprice (in full).", "pay the price (in full)") == (0, 24)
    assert find_quote("pay the price", "pay price") is None
    assert find_quote("应当赔偿。", "应当赔") == (0, 3)
