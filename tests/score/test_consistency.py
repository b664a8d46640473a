"""Consistency: what counts as the same answer, what is changed in a prompt, and who notices."""

import pytest
from handmade import chats

from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.corpus.records import Chat
from finetune.score.answers import Answer, Asked
from finetune.score.consistency import measure, paraphrase
from finetune.score.questions import Questions

TASK = Task(title="t", source="s", prompt="Name the part: {text}\nPart:", answer="{x}", metric="exact_match")


class Rule:
    """An `Answerer` that answers by a rule of prompt text and repeat."""

    model = "rule"

    def __init__(self, rule) -> None:
        self.rule, self.asked = rule, []

    def answer(self, prompts: list[Asked], *, repeat: int = 0) -> list[Answer]:
        self.asked.append((repeat, len(prompts)))
        texts = [self.rule(prompt.text, repeat) for prompt in prompts]
        return [Answer(text, text, tuple(text.encode()), True, 1, 0.0) for text in texts]

    def likelihoods(self, prompts, choices):
        raise AssertionError("nothing is chosen by likelihood here")


@pytest.fixture(scope="module")
def questions(tiny_qwen3) -> Questions:
    tasks = {"parts": TASK, "thing": TASK.model_copy(update={"title": "Thing"})}
    rows = {name: [row for row in chats("test", 12) if row.task == name] for name in tasks}
    return Questions(rows, [], tasks, ChatFormat.read(tiny_qwen3), shots=0, seed=1)


def consistency(questions: Questions, rule, prompts: int = 8) -> dict:
    found = measure(Rule(rule), questions, prompts=prompts, say=lambda _: None)
    assert found is not None
    return found


def test_a_model_that_says_one_thing_is_consistent_and_deterministic(questions):
    found = consistency(questions, lambda text, repeat: f"A  {'b' if repeat else 'B'}.")
    assert (found["prompts"], found["share_same"], found["repeats"]) == (8, 1.0, 2)
    assert found["determinism"] == {"prompts": 8, "identical": 8}
    assert set(found["kinds"].values()) == {1.0}


def test_each_way_of_asking_is_told_apart(questions):
    greedy = consistency(questions, lambda text, repeat: "other" if repeat else "one")
    assert greedy["kinds"]["repeated"] == 0.0
    assert greedy["determinism"]["identical"] == 8
    assert greedy["share_same"] == pytest.approx((greedy["paraphrases"]) / (greedy["paraphrases"] + 1))
    drawn = consistency(questions, lambda text, repeat: str(repeat))
    assert drawn["determinism"] == {"prompts": 8, "identical": 0}
    polite = consistency(questions, lambda text, repeat: "sure" if "Please help" in text else "one")
    assert {kind for kind, share in polite["kinds"].items() if share < 1} == {"courteous"}
    low, high = polite["ci95"]
    assert low <= polite["share_same"] <= high


def test_prompts_are_taken_from_all_tasks_alike_and_never_more_than_there_are(questions):
    rule = Rule(lambda text, repeat: "one")
    assert measure(rule, questions, prompts=5, say=lambda _: None)["prompts"] == 5
    assert rule.asked[:3] == [(0, 5), (1, 5), (2, 5)]
    assert measure(rule, questions, prompts=999, say=lambda _: None)["prompts"] == 24
    assert measure(rule, questions, prompts=0, say=lambda _: None) is None


def said(task: Task, kind: str, **columns: str) -> str | None:
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": str(task.prompt).format(**columns)})
    row = Chat("a", "t", (*messages, {"role": "assistant", "content": "x"}), "s", 1, "g")
    changed = paraphrase(row, task, kind)
    assert row.prompt == list(messages)
    return None if changed is None else changed[-1]["content"]


def test_paraphrases_change_the_wording_and_never_what_fills_it():
    text = "Pump: north\nDeck"
    assert said(TASK, "spaced", text=text) == "\nName the part: Pump: north\n\nDeck\n\nPart:\n"
    assert said(TASK, "recased", text=text) == f"NAME THE PART: {text}\nPART:"
    assert said(TASK, "courteous", text=text) == f"Please help with the following.\nName the part: {text}\nPart:"
    assert said(TASK, "thankful", text=text).endswith(f"please.\nName the part: {text}\nPart:")


def test_chinese_is_paraphrased_in_chinese():
    task = TASK.model_copy(update={"prompt": "请写出部件：{text}\n部件："})
    assert said(task, "courteous", text="水泵漏水") == "请帮忙处理以下内容。\n请写出部件：水泵漏水\n部件："
    assert said(task, "recased", text="水泵：漏水") == "请写出部件:水泵：漏水\n部件:"


def test_a_rule_that_finds_nothing_to_change_is_not_asked():
    bare = TASK.model_copy(update={"prompt": "{text}"})
    assert said(bare, "recased", text="Pump") is None
