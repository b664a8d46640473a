"""Rows that are conversations already: what is accepted, what is refused and where, and that it reaches training."""

import json
from typing import Any

import pytest

from finetune.artifacts import Artifact
from finetune.chat import IGNORED, ChatFormat
from finetune.corpus import conversations
from finetune.corpus.conversations import WrongConversationError, unify
from finetune.corpus.datasheet import headline
from finetune.corpus.records import Chat
from finetune.errors import RecipeError
from tests.corpus.conftest import WORDS, orders

BOTH = ("plain", "think")
USER = {"role": "user", "content": "Which unit?"}
SAID = {"role": "assistant", "content": "Unit 7."}
TOOL = {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, "name": "find_unit"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "c1", "type": "function", "function": {"name": "find_unit", "arguments": '{"z": 1, "a": "x"}'}}
]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "c1", "content": '{"unit": 7}'}


def unified(messages: Any, tools: Any = "") -> dict[str, Any]:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (messages, tools)]
    row = dict(zip("mt", texts, strict=True))
    return {name: json.loads(text) for name, text in unify(row, "m", "t", BOTH).items()}


def test_openai_messages_come_out_as_a_server_renders_them() -> None:
    made = unified([{"role": "system", "content": "Be brief."}, USER, CALL, RESULT, {**SAID, "refusal": None}], [TOOL])
    call = {"id": "c1", "type": "function", "function": {"name": "find_unit", "arguments": {"z": 1, "a": "x"}}}
    assert made["m"][2] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert list(made["m"][2]["tool_calls"][0]["function"]["arguments"]) == ["z", "a"]
    assert made["m"][-1] == SAID
    assert list(made["t"][0]["function"].items()) == [
        ("name", "find_unit"), ("description", None), ("parameters", TOOL["function"]["parameters"]),
    ]  # fmt: skip


def test_sharegpt_turns_are_the_same_conversation() -> None:
    turns = [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Which unit?"},
        {"from": "function_call", "value": '{"name": "find_unit", "arguments": {"z": 1, "a": "x"}}'},
        {"from": "observation", "value": '{"unit": 7}'}, {"from": "gpt", "value": "Unit 7."},
    ]  # fmt: skip
    plain_call = {**CALL, "tool_calls": [{"function": CALL["tool_calls"][0]["function"]}]}  # type: ignore[index]
    result = {"role": "tool", "content": '{"unit": 7}'}
    assert unified(turns) == unified([{"role": "system", "content": "Be brief."}, USER, plain_call, result, SAID])


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "<think>\nIt says 7.\n</think>\n\nUnit 7."},
        {"content": "It says 7.\n</think>\n\nUnit 7."},
        {"content": "Unit 7.", "reasoning_content": "It says 7."},
        {"content": "Unit 7.", "reasoning": "It says 7."},
    ],
)
def test_reasoning_gets_its_own_field_however_it_was_written(answer: dict[str, str]) -> None:
    """trl#6361, trl#6363: raw completions carry only the closer, or both tags."""
    (_, turn) = unified([USER, {"role": "assistant", **answer}])["m"]
    assert turn == {"role": "assistant", "reasoning_content": "It says 7.", "content": "Unit 7."}


@pytest.mark.parametrize("content", ["<think>\n\n</think>\n\nUnit 7.", "</think>\n\nUnit 7."])
def test_an_empty_think_block_in_the_data_is_a_plain_answer(content: str) -> None:
    """ms-swift#9829, LF#9365: an empty block belongs to the prompt of plain mode and is never trained."""
    assert unified([USER, {"role": "assistant", "content": content}])["m"][1] == SAID


WRONG: dict[str, tuple[Any, str]] = {
    "no json": ("{[", "m is not valid JSON"),
    "no list": ({"role": "user"}, "m is no list"),
    "a text as turn": ([USER, "hello"], r"m\[1\] is no object"),
    "a key that would be lost": ([USER, {**SAID, "weight": 0}], r"m\[1\] has keys that would not be trained: 1 of 3"),
    "an unknown role": ([{"role": "developer", "content": "x"}, SAID], r"m\[0\]\.role is none of the known"),
    "an unknown speaker": ([{"from": "bing", "value": "x"}], r"m\[0\] is no ShareGPT turn"),
    "an image": ([{"role": "user", "content": [{"type": "image_url"}]}, SAID], r"m\[0\]\.content is no text"),
    "a turn without content": ([{"role": "user"}, SAID], r"m\[0\]\.content is no text"),
    "a user who thinks": ([{**USER, "reasoning": "hm"}, SAID], r"reasoning_content stands in a user turn"),
    "a call without a name": ([USER, {"role": "assistant", "tool_calls": [{}]}], "holds something that is no call"),
    "calls that are no list": ([USER, {"role": "assistant", "tool_calls": "f()"}], "holds something that is no call"),
    "arguments that are no object": (
        [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}], "arguments is no object",
    ),
    "a constant that is no JSON": (
        [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": NaN}'}]}], "is not valid JSON",
    ),
    "half a surrogate pair": ('[{"role": "user", "content": "\\ud800"}]', "is not valid JSON"),
    "the assistant first": ([SAID, USER], r"m\[0\] of role assistant is the first turn"),
    "the user last": ([USER, SAID, USER], "does not end with an answer of the assistant"),
    "nobody": ([], "does not end with an answer of the assistant"),
    "two answers": ([USER, SAID, SAID], r"m\[2\] of role assistant follows a assistant turn"),
    "a call without result": ([USER, CALL, USER, SAID], r"m\[2\] of role user follows a assistant turn with calls"),
    "a result without call": ([USER, SAID, RESULT, SAID], r"m\[2\] of role tool follows"),
    "a late system turn": ([USER, {"role": "system", "content": "x"}, SAID], r"m\[1\] of role system follows a user"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_trained_is_refused_with_its_place(name: str) -> None:
    messages, rule = WRONG[name]
    with pytest.raises(WrongConversationError, match=rule) as caught:
        unified(messages)
    assert caught.value.fix


def test_a_broken_tool_is_refused() -> None:
    with pytest.raises(WrongConversationError, match=r"t\[0\] is no tool"):
        unified([USER, SAID], [{"type": "function"}])


def test_texts_are_changed_in_place_and_nothing_else() -> None:
    value = {"a": ["x", {"b": "y", "n": 1, "none": None}], "c": True, "d": "z"}
    assert list(conversations.texts_in(value)) == ["x", "y", "z"]
    changed = json.loads(conversations.with_texts(json.dumps(value), iter("XYZ")))
    assert changed == {"a": ["X", {"b": "Y", "n": 1, "none": None}], "c": True, "d": "Z"}


def talks(count: int) -> list[dict[str, Any]]:
    """Conversations of three kinds in turn: plain, with reasoning, with a tool call; two supervised turns each."""
    rows = []
    for number, order in enumerate(orders(count)):
        ask = {"role": "user", "content": order["text"]}
        more = {"role": "user", "content": f"And what does {WORDS[number % 18]} number {number} need?"}
        first, last = ({"role": "assistant", "content": f"{word} {number}."} for word in (order["action"], "Oil"))
        kind = number % 3
        if kind == 1:
            last = {**last, "reasoning_content": f"Part {number} runs dry."}
        messages = [ask, first, more, last]
        if kind == 2:
            call = {"name": "find_part", "arguments": {"zone": f"z{number}", "axis": [number, {"deep": "mail me"}]}}
            messages = [ask, {"role": "assistant", "tool_calls": [{"function": call}]}, {**RESULT}, last]
        rows.append({"talk": str(number), "group": order["machine"], "talks": messages,
                     "tools": [TOOL | {"function": {"name": "find_part"}}] if kind == 2 else None})  # fmt: skip
    return rows


@pytest.fixture
def talking(corpus: Any, tiny_qwen3: Any) -> Any:
    corpus.base = Artifact(tiny_qwen3, {"stage": "base", "digest": "0", "facts": {}})
    corpus.write_rows("talks.jsonl", talks(90))
    corpus.config["sources"]["talks"] = {"path": "talks.jsonl", "id": "{talk}", "group": "{group}"}
    corpus.config["tasks"] = {"talk": {
        "title": "Talk", "source": "talks", "messages": "talks", "tools": "tools", "system": "You mend machines.",
        "metric": "exact_match", "main": True,
    }}  # fmt: skip
    corpus.config["model"] = corpus.config["model"] | {"modes": ["plain", "think"]}
    return corpus


def test_every_assistant_turn_is_one_example_in_its_own_mode(talking: Any) -> None:
    made = talking.prepare()
    chat = ChatFormat.read(talking.base.path)
    records = {row["id"]: Chat.from_json(json.dumps(row)) for row in made.lines("train.jsonl")}
    rows = made.table("sft_train.parquet")
    assert len(rows) == 2 * len(records) > 20
    seen = set()
    for row in rows:
        record = records[row["id"].rpartition("#")[0]]
        turn = [i for i, message in enumerate(record.messages) if message["role"] == "assistant"][
            int(row["id"].rpartition("#")[2]) - 1
        ]
        expected = chat.supervise(record.messages[: turn + 1], row["mode"], record.tools)
        assert (row["input_ids"], row["labels"]) == (expected.input_ids, expected.labels)
        text = chat.decode([i for i in row["labels"] if i != IGNORED], skip_special=False)
        assert ("<think>" in text) == (row["mode"] == "think")
        seen.add((row["mode"], "<tool_call>" in text))
        assert record.messages[0] == {"role": "system", "content": "You mend machines."}
    assert seen == {("plain", False), ("think", False), ("plain", True)}
    modes = made.facts["modes"]["train"]
    assert sum(modes.values()) == len(rows)
    assert f"  by mode: plain {modes['plain']}, think {modes['think']}" in headline(made.facts)


def test_a_conversation_with_an_empty_answer_anywhere_is_left_out_and_counted(talking: Any) -> None:
    """Each assistant turn is trained: only the last one was looked at, and silence in the middle was taught."""
    rows = talks(90)
    rows[0]["talks"][1]["content"] = " \n"
    rows[3]["talks"][3]["content"] = ""
    talking.write_rows("talks.jsonl", rows)
    assert talking.prepare().dropped()["empty answer"] == 2


def test_tools_and_arguments_keep_their_order_from_the_file_to_the_token(talking: Any) -> None:
    """Sorted keys on disk would make SCORE ask another prompt than was trained."""
    made = talking.prepare()
    row = next(row for row in made.lines("test.jsonl") if row["tools"])
    assert list(row["tools"][0]["function"]) == ["name", "description", "parameters"]
    call = next(message for message in row["messages"] if "tool_calls" in message)["tool_calls"][0]["function"]
    assert list(call["arguments"]) == ["zone", "axis"]


def test_a_conversation_may_end_with_a_call_and_is_scored_by_it(talking: Any) -> None:
    rows = [{**row, "talks": row["talks"][:2]} if row["tools"] else row for row in talks(90)]
    talking.write_rows("talks.jsonl", rows)
    made = talking.prepare()
    chat = ChatFormat.read(talking.base.path)
    (record, *_) = [Chat.from_json(json.dumps(row)) for row in made.lines("test.jsonl") if row["tools"]]
    expected = chat.answer_text(record.messages, record.mode, record.tools).removesuffix("<|im_end|>")
    assert record.answer == expected
    assert expected.startswith('<tool_call>\n{"name": "find_part", "arguments": {"zone"')


def test_personal_data_inside_a_conversation_is_replaced_and_it_stays_one(talking: Any) -> None:
    rows = talks(90)
    for number, row in enumerate(rows):
        row["talks"][0]["content"] += f' ask "person{number}@example.org"'
        if row["tools"]:
            call = row["talks"][1]["tool_calls"][0]["function"]
            call["arguments"]["axis"][1]["deep"] = f"person{number}@example.org"
    talking.write_rows("talks.jsonl", rows)
    made = talking.prepare()
    assert not any(b"@example.org" in content for content in made.files().values())
    row = next(row for row in made.lines("train.jsonl") if row["tools"])
    assert row["messages"][1]["content"].endswith('ask "[EMAIL_1]"')
    call = next(message for message in row["messages"] if "tool_calls" in message)
    assert call["tool_calls"][0]["function"]["arguments"]["axis"][1] == {"deep": "[EMAIL_1]"}


def test_a_control_token_inside_a_conversation_is_found(talking: Any) -> None:
    rows = talks(90)
    rows[4]["talks"][0]["content"] += "<|im_end|>"
    talking.write_rows("talks.jsonl", rows)
    assert talking.prepare().dropped()["control token in text"] == 1


def test_a_shared_system_turn_is_no_leak_and_a_repeated_question_is(talking: Any) -> None:
    long = "You are the workshop's assistant and answer in one short sentence without any greeting at all, ever."
    rows = [{**row, "talks": [{"role": "system", "content": long}, *row["talks"]]} for row in talks(90)]
    talking.config["prepare"] = {"dedup": {"exact": False, "near": None}}
    talking.write_rows("talks.jsonl", rows)
    made = talking.prepare()
    assert made.dropped() == {}
    tested = made.lines("test.jsonl")[0]["id"].removeprefix("talk/")
    copies = [{**row, "talk": f"copy{i}", "group": f"g{i}"} for i in range(12) for row in rows if row["talk"] == tested]
    talking.write_rows("talks.jsonl", [*rows, *copies])
    assert talking.prepare().dropped()["shared with an evaluation row"] > 3


def test_conversations_under_different_system_turns_stay_and_a_long_shared_one_makes_no_duplicates(
    talking: Any,
) -> None:
    ask = {"role": "user", "content": "What is to be done with this machine now?"}
    shared = "You are the workshop's assistant and answer in one short sentence without any greeting. " * 9
    rows = [{**row, "talks": [{"role": "system", "content": f"Context: {order['text']}"}, ask, row["talks"][-1]]}
            for row, order in zip(talks(90), orders(90), strict=True)]  # fmt: skip
    talking.write_rows("talks.jsonl", rows)
    talking.config["sft"] = {"max_length": 512}
    assert talking.prepare().dropped() == {}
    rows = [{**row, "talks": [{"role": "system", "content": shared}, *row["talks"]]} for row in talks(90)]
    talking.write_rows("talks.jsonl", rows)
    assert "near duplicate" not in talking.prepare().dropped()


def test_every_broken_conversation_is_told_with_file_and_line(talking: Any) -> None:
    rows = talks(90)
    rows[6]["talks"] = rows[6]["talks"][:-1]
    rows[8]["talks"][0]["colour"] = "red"
    talking.write_rows("talks.jsonl", rows)
    with pytest.raises(RecipeError) as caught:
        talking.prepare()
    assert [problem.path for problem in caught.value.problems] == ["talks.jsonl:7", "talks.jsonl:9"]


def test_reasoning_for_a_model_without_thinking_is_told_before_anything_else(talking: Any) -> None:
    talking.config["model"] = talking.config["model"] | {"modes": ["plain"]}
    with pytest.raises(RecipeError, match=r"talks\.jsonl:2: talks\[3\] carries reasoning, and the model has no mode"):
        talking.prepare()


def test_tools_for_a_template_that_drops_them_are_refused_before_reading(talking: Any, smollm2_base: Any) -> None:
    talking.base = smollm2_base
    talking.config["model"] = talking.config["model"] | {"modes": ["plain"]}
    talking.write("talks.jsonl", "not even JSON")
    with pytest.raises(RecipeError, match=r"tools: the chat template of smollm2\S+ does not write it"):
        talking.prepare()


@pytest.mark.parametrize("share", [0.75, 0.5, 0.05])
def test_modes_are_mixed_as_asked_and_what_is_left_out_is_counted(talking: Any, share: float) -> None:
    everything = talking.prepare()
    before = everything.facts["modes"]["train"]
    talking.config["prepare"] = {"think_share": share}
    made = talking.prepare()
    after = made.facts["modes"]["train"]
    assert after["think"] / sum(after.values()) == pytest.approx(share, abs=0.5 / min(after.values()))
    assert any(after[mode] == before[mode] for mode in after), "no more than needed is left out"
    left_out = sum(before.values()) - sum(after.values())
    (entry,) = [entry for entry in made.ledger if entry["step"] == "mix"]
    assert (entry["rows_in"], entry["rows_out"]) == (sum(before.values()), sum(after.values()))
    rejects = [row for row in made.lines("rejects.jsonl") if row["step"] == "mix"]
    assert len(rejects) == sum(entry["dropped"].values()) == left_out
    assert all(reject["source"] == "talks.jsonl" and reject["line"] for reject in rejects)
    trained = {row["id"].rpartition("#")[0] for row in made.table("sft_train.parquet")}
    assert trained == {row["id"] for row in made.lines("train.jsonl")}
    assert made.lines("test.jsonl") == everything.lines("test.jsonl")


def test_one_mode_alone_cannot_be_mixed(talking: Any) -> None:
    talking.write_rows("talks.jsonl", [row for row in talks(90) if int(row["talk"]) % 3 == 0])
    talking.config["prepare"] = {"think_share": 0.5}
    with pytest.raises(RecipeError, match=r"prepare.think_share=0.5: no training example is of mode think"):
        talking.prepare()
