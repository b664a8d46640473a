"""Long contexts: where a fact is planted, how long the prompt is, and what counts as found."""

import re

import pytest
from handmade import chats

from finetune.chat import ChatFormat
from finetune.config.evaluation import Context
from finetune.corpus.records import Chat
from finetune.score.answers import Answer, Asked
from finetune.score.context import KINDS, PIECE, Haystack, beside, measure, question


@pytest.fixture(scope="module")
def chat(tiny_qwen3) -> ChatFormat:
    return ChatFormat.read(tiny_qwen3)


@pytest.fixture(scope="module")
def text(chat) -> Haystack:
    return Haystack.of(chat, chats("train", 20))


class Reader:
    """Finds the value that a question asks for, in prompts of up to `limit` tokens."""

    model = "reader"

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit

    def answer(self, prompts: list[Asked], *, repeat: int = 0) -> list[Answer]:
        texts = [self.read(prompt.text) if len(prompt.ids) <= self.limit else "no idea" for prompt in prompts]
        return [Answer(text, f"It is {text}.", None, True, 1, 0.0) for text in texts]

    def likelihoods(self, prompts, choices):
        raise AssertionError("nothing is chosen by likelihood here")

    @staticmethod
    def read(text: str) -> str:
        if asked := re.search(r"number of file (\w+)\?", text):
            return re.search(rf"number of file {asked[1]} is (\d+)", text)[1]
        asked = re.search(r"amount of annex (\w+)\?", text)
        there = re.search(rf"amount of annex {asked[1]} is the one that is stated in annex (\w+)", text)
        return re.search(rf"Annex {there[1]}: the amount is (\d+)", text)[1]


class Blind(Reader):
    @staticmethod
    def read(text: str) -> str:
        return "no idea"


def test_a_reader_who_follows_the_reference_is_right_everywhere_and_loses_nothing(chat):
    asked = Context(lengths=(400, 900), depths=(0.0, 1.0), each=2)
    found = measure(Reader(), chat, chats("train", 20), asked, seed=1, say=lambda _: None)
    assert found["loss"] == 0
    assert len(found["rows"]) == 2 * 2 * len(KINDS)
    assert {(row["n"], row["right"]) for row in found["rows"]} == {(2, 2)}


def test_what_is_lost_at_the_longest_is_the_loss(chat):
    asked = Context(lengths=(900, 400), depths=(0.5,), each=2)
    found = measure(Reader(limit=600), chat, chats("train", 20), asked, seed=1, say=lambda _: None)
    assert found["lengths"] == [400, 900]
    assert found["loss"] == 1
    assert sum(row["right"] for row in found["rows"]) == 4
    one = measure(Reader(limit=0), chat, chats("train", 20), Context(lengths=(400,)), seed=1, say=lambda _: None)
    same = measure(Reader(), chat, chats("train", 20), Context(lengths=(400, 400)), seed=1, say=lambda _: None)
    assert one["loss"] is same["loss"] is None, "nothing was compared with anything"
    blind = measure(Reader(limit=0), chat, chats("train", 20), asked, seed=1, say=lambda _: None)
    assert blind["loss"] is None


def test_what_training_unlearnt_is_seen_beside_the_base(chat):
    """SmolLM2 tuned to write marginal titles found 0 of 48 where the base found 26: `not measured`."""
    asked = Context(lengths=(400, 900), depths=(0.0, 1.0), each=2)

    def found(limit: int) -> dict:
        return measure(Reader(limit), chat, chats("train", 20), asked, seed=1, say=lambda _: None)

    whole, short, none = found(10**9), found(600), found(0)
    both = beside(base=whole, tuned=none)
    assert (both["loss"], both["base_loss"]) == (1, 0)
    assert {(row["right"], row["base"]) for row in both["rows"]} == {(0, 2)}
    assert (beside(base=short, tuned=whole)["loss"], beside(base=short, tuned=whole)["base_loss"]) == (0, 1)
    assert beside(base=none, tuned=none)["loss"] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [256, 700, 3000])
def test_a_prompt_is_as_long_as_asked_for_and_the_fact_stands_at_its_depth(chat, text, kind, length):
    longest = max(text.tokens)
    for depth in (0.0, 0.5, 1.0):
        prompt, value = question(chat, text, kind, length, depth, "7")
        assert length - 2 * longest <= len(prompt.ids) <= length
        assert prompt.text.count(value) == 1
        name = re.search(r"What is the \w+ ?\w* of (?:file|annex) (\w+)\?", prompt.text)[1]
        lines = prompt.text.split("\n\n")
        place = next(number for number, line in enumerate(lines) if re.search(rf"(?:file|annex) {name} is", line))
        whole = len(lines) - 2 if kind == "needle" else len(lines) - 4
        assert place / whole == pytest.approx(depth, abs=4 / whole)


@pytest.mark.parametrize("break_", ["\n\n", "\n", " ", "", "；"])
def test_prompts_of_long_documents_are_as_long_as_they_are_said_to_be(chat, break_):
    """Rows of 3,000 tokens did not fit, so that a prompt of 60 tokens stood for one of 2,000."""
    said = {"": "第{n}号设备的水泵漏水，已经更换密封件", "；": "第{n}号设备漏水，已经修好"}
    sentence = said.get(break_, "Pump {n} lost oil and its seal was replaced.")
    rows = [
        Chat(str(n), "t", ({"role": "user", "content": break_.join(sentence.format(n=f"{n}-{m}") for m in range(260))},
             {"role": "assistant", "content": "yes"}), "s", 1, "g")
        for n in range(3)
    ]  # fmt: skip
    text = Haystack.of(chat, rows)
    assert max(len(chat.encode(row.prompt[0]["content"])) for row in rows) > 2500
    assert max(text.tokens) <= PIECE + 5
    whole = "".join("".join(row.prompt[0]["content"].split()) for row in rows)
    assert sorted("".join(text.lines).replace("\n", "").replace(" ", "")) == sorted(whole), "nothing is left out"
    asked = Context(lengths=(1000, 2000), depths=(0.5,), each=2)
    for row in measure(Blind(), chat, rows, asked, seed=1, say=lambda _: None)["rows"]:
        assert row["length"] - 2 * PIECE <= row["tokens"]["min"] <= row["tokens"]["mean"] <= row["length"]


def test_a_question_is_the_same_one_at_every_length_and_depth(chat, text):
    asked = [question(chat, text, "needle", length, depth, "3") for length in (300, 800) for depth in (0.1, 0.9)]
    assert len({value for _, value in asked}) == 1
    assert question(chat, text, "needle", 300, 0.1, "4")[1] != asked[0][1]


def test_the_third_clause_is_there_to_be_mistaken(chat, text):
    prompt, value = question(chat, text, "cross_reference", 400, 0.2, "3")
    assert len(set(re.findall(r"the amount is (\d{5})", prompt.text)) - {value}) == 1


def test_chinese_documents_get_chinese_facts(chat):
    rows = [
        Chat(str(n), "t", ({"role": "user", "content": f"第{n}号设备的水泵漏水，已经更换密封件。"},
             {"role": "assistant", "content": "是"}), "s", 1, "g")
        for n in range(9)
    ]  # fmt: skip
    prompt, value = question(chat, Haystack.of(chat, rows), "needle", 300, 0.5, "1")
    assert re.search(rf"号档案的编号为 {value}。", prompt.text)
    assert "只回答数字" in prompt.text
