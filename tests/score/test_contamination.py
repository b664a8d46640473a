"""Contamination: a passage that training gave away is found, and the wording that all rows share is not."""

import pytest

from finetune.config.data import Task
from finetune.corpus.leaks import words
from finetune.corpus.records import Chat
from finetune.score.contamination import contamination, shown

LONG = "the pump on the north deck must be drained before the first frost of the year"
TASK = Task(
    title="t", source="s", prompt="Please read the following note of a workshop with all due care: {text}\nLabel:",
    answer="{label}", metric="exact_match",
)  # fmt: skip


def row(name: str, text: str, label: str = "yes", task: Task = TASK, **more) -> Chat:
    asked = [*more.pop("before", ()), {"role": "user", "content": str(task.prompt).format(text=text)}]
    messages = (*asked, {"role": "assistant", "content": label})
    return Chat(id=name, task="t", messages=messages, source="s", line=1, group=name, **more)


def test_a_passage_in_training_is_told_with_where_it_stands_and_how_much_of_the_row_it_is():
    test = row("a", f"{LONG}, and then some words that nobody else ever wrote in this shape")
    trained = [row("x", "nothing"), row("y", f"As said: {LONG}!")]
    found = contamination([test, row("b", "quite another matter")], trained, TASK)
    assert (found["rows"], found["touched"]) == (1, 1)
    assert shown(found, "full")["overlap"] == [{"id": "a", "source": "y", "span": LONG, "share": round(16 / 28, 4)}]


def test_a_passage_inside_of_a_training_answer_or_of_a_gold_answer_counts_too():
    told = row("y", "nothing", label=f"Here it is: {LONG}")
    assert contamination([row("a", LONG)], [told], TASK)["overlap"][0]["source"] == "y"
    assert contamination([row("a", "nothing", label=LONG)], [row("y", LONG)], TASK)["overlap"][0]["span"] == LONG


def test_the_wording_of_the_task_is_no_overlap():
    """Every row has the words of the template: without content in common nothing is given away."""
    tests = [row(str(number), f"case {number}") for number in range(4)]
    trained = [row(f"t{number}", f"other case {number + 50}") for number in range(4)]
    assert contamination(tests, trained, TASK)["touched"] == 0


def test_an_instruction_that_came_with_the_conversations_is_no_overlap():
    task = Task(title="t", source="s", messages="talk", metric="exact_match")
    bare = Task(title="t", source="s", prompt="{text}", answer="{label}", metric="exact_match")
    order = "You are given a note of a workshop. Say in one word what was done with the machine in question. "
    tests = [row(str(n), f"{order}Note {n} is about part {n * 7}", task=bare) for n in range(5)]
    trained = [row(f"t{n}", f"{order}Note {n} is about piece {n * 11}", task=bare) for n in range(50, 55)]
    assert contamination(tests, trained, task)["touched"] == 0
    found = contamination(tests, [*trained, row("copy", f"{order}Note 3 is about part 21", task=bare)], task)
    assert [one["id"] for one in found["overlap"]] == ["3"]
    assert found["overlap"][0]["share"] == 1.0


def test_a_label_that_several_groups_have_is_no_overlap_and_an_answer_of_one_row_is():
    label = "diseases of the blood and blood forming organs and certain disorders"
    tests = [row("a", "one", label), row("b", "two", label)]
    assert contamination(tests, [row("x", "three", label)], TASK)["touched"] == 0
    value = f'{{"kind": "{label}"}}'
    assert contamination([row("a", "one", value)], [row("x", "3", value)], TASK)["rows"] == 0
    assert contamination([row("a", "one", label)], [row("x", f"{label} of many a patient")], TASK)["rows"] == 1


def test_a_short_question_that_training_asked_as_well_is_given_away_whole():
    found = contamination([row("a", "seal leaks"), row("b", "seal is fine")], [row("x", "Seal leaks!")], TASK)
    assert shown(found, "full")["overlap"] == [{"id": "a", "source": "x", "span": "seal leaks", "share": 1.0}]


def test_chinese_is_compared_by_characters():
    wording = "请阅读以下车间记录并给出标签：{text}\n标签："
    task = Task(title="t", source="s", prompt=wording, answer="{label}", metric="exact_match")
    passage = "北侧甲板上的水泵必须在第一次霜冻之前排空"
    tests = [row("甲", f"注意，{passage}，谢谢", "是", task), row("乙", "完全不同的另一件事情", "否", task)]
    found = contamination(tests, [row("丙", f"如前所述{passage}。", "否", task)], task)
    assert [(one["id"], one["span"].replace(" ", "")) for one in found["overlap"]] == [("甲", passage)]
    shorter = row("丁", f"另外{passage[:12]}", "否", task)
    assert contamination(tests, [shorter], task)["touched"] == 0


PERSONAL = ("Jo.Miller+x@Firm-Works.example", "+49 (170) 555-01 23", "DE89 3704 0044 0532 0130 00", "(212) 555-0198")


@pytest.mark.parametrize("value", PERSONAL)
@pytest.mark.parametrize(
    ("asked", "trained"),
    [
        (f"{LONG}; call {{}}, then go", f"As said: {LONG}; call {{}}, then go!"),
        ("{}: on the deck ask for him and nobody else", "Please, {}: on the deck ask for him and nobody else"),
        ("{}", "{}"),
    ],
)
def test_personal_data_of_a_shared_passage_is_not_shown_though_its_signs_are_gone(value, asked, trained):
    """The words of an address without its signs are the address, and no recogniser sees it in them."""
    found = contamination([row("a", asked.format(value))], [row("x", trained.format(value))], TASK)
    spans = {privacy: shown(found, privacy)["overlap"][0]["span"] for privacy in ("none", "redacted", "full")}
    assert spans["none"] is None
    assert " ".join(words(value)) in spans["full"]
    assert "[PERSONAL]" in spans["redacted"]
    assert not set(words(value)) & set(spans["redacted"].split())
    assert all("redacted" not in shown(found, privacy)["overlap"][0] for privacy in spans)


def test_a_value_that_is_cut_by_the_end_of_a_passage_is_not_shown_in_part():
    tests = [row("a", f"{LONG} call +49 170 5550123 soon")]
    found = contamination(tests, [row("x", f"{LONG} call +49 170 7777777 soon")], TASK)
    assert found["overlap"][0]["span"] == f"{LONG} call 49 170"
    assert shown(found, "redacted")["overlap"][0]["span"] == f"{LONG} call [PERSONAL]"


def test_a_passage_of_an_older_evaluation_is_not_shown_redacted():
    found = {"rows": 1, "touched": 1, "overlap": [{"id": "a", "span": "ask jo example org", "share": 1.0}]}
    assert shown(found, "redacted")["overlap"] == [{"id": "a", "span": None, "share": 1.0}]
