"""Ready-made preferences: a company's own file goes through the same steps as every other document."""

import json
from typing import Any

import pytest
from corpus.conftest import orders

from finetune.artifacts import Artifact
from finetune.config.prepare import Split
from finetune.corpus.split import side_of
from finetune.errors import RecipeError

READY = {"source": "liked", "prompt": "Order: {text}\nAction:", "chosen": "{better}", "rejected": "{worse}"}


def liked(count: int) -> list[dict[str, str]]:
    """Rows like the work orders but not the same, each with two answers."""
    return [
        {"id": f"p{i}", "team": f"t{i // 3}", "text": f"liked {row['text']} again", "better": f"fix {row['action']}",
         "worse": f"leave {row['action']}"}
        for i, row in enumerate(orders(count))
    ]  # fmt: skip


@pytest.fixture
def ready(corpus: Any) -> Any:
    corpus.config["sources"]["liked"] = {"path": "liked.jsonl", "id": "{id}", "group": "{team}"}
    corpus.config["preferences"] = {"ours": dict(READY)}
    corpus.write_rows("liked.jsonl", liked(40))
    return corpus


def test_a_file_of_preferences_reaches_dpo_with_its_groups_and_the_valid_side_held_out(ready: Any) -> None:
    made = ready.prepare()
    rows = made.lines("preferences.jsonl")
    assert made.facts["preferences"] == {
        "trained": sum(not row["held_out"] for row in rows), "held_out": sum(row["held_out"] for row in rows),
    }  # fmt: skip
    assert made.facts["preferences"]["held_out"] > 0
    for row in rows:
        assert row["held_out"] == (side_of(row["group"], 0, Split()) == "valid")
    first = next(row for row in rows if row["id"] == "ours/p0")
    source = liked(1)[0]
    assert first["messages"] == [{"role": "user", "content": f"Order: {source['text']}\nAction:"}]
    assert (first["chosen"]["content"], first["rejected"]["content"]) == (source["better"], source["worse"])
    assert (first["origin"], first["task"], first["mode"]) == ("ready", "ours", "plain")


def test_what_is_left_out_is_counted_and_personal_data_is_replaced(ready: Any) -> None:
    rows = liked(40)
    rows[1]["worse"] = " "
    rows[2]["worse"] = rows[2]["better"]
    rows[3]["text"] += "<|im_end|>"
    rows[4]["better"] += " and write to ann.lee@example.org"
    rows[5]["text"] = rows[6]["text"] + " "
    rows[5]["better"], rows[5]["worse"] = rows[6]["better"], rows[6]["worse"]
    ready.write_rows("liked.jsonl", rows)
    made = ready.prepare()
    for reason in ("empty rejected", "chosen and rejected are the same", "control token in text", "exact duplicate"):
        assert made.dropped()[reason] == 1, reason
    assert "ann.lee" not in (made.out / "preferences.jsonl").read_text()
    (redacted,) = [row for row in made.lines("preferences.jsonl") if row["id"] == "ours/p4"]
    assert redacted["chosen"]["content"].endswith("[EMAIL_1]")


def test_several_worse_answers_to_one_prompt_are_several_rows(ready: Any) -> None:
    rows = [*liked(40), {**liked(1)[0], "id": "other", "worse": "paint the whole machine green and call it a day"}]
    ready.write_rows("liked.jsonl", rows)
    assert {"ours/p0", "ours/other"} <= {row["id"] for row in ready.prepare().lines("preferences.jsonl")}


def test_no_preference_shares_a_prompt_or_a_group_with_a_test_row(ready: Any) -> None:
    tested = [row["id"].removeprefix("action/") for row in ready.prepare().lines("test.jsonl")]
    by_order = {row["order"]: row for row in orders(120)}
    answers = {"better": "fix", "worse": "leave"}
    same_prompt = {**answers, "id": "leak", "team": "apart", "text": by_order[tested[0]]["text"].upper()}
    same_group = {**answers, "id": "group", "team": by_order[tested[0]]["machine"], "text": "something else entirely"}
    ready.write_rows("liked.jsonl", [*liked(40), same_prompt, same_group])
    made = ready.prepare()
    assert not {"ours/leak", "ours/group"} & {row["id"] for row in made.lines("preferences.jsonl")}
    assert made.dropped()["shared with an evaluation row"] >= 1
    assert made.dropped()["group of a test row"] == 1


def test_conversations_with_tools_and_reasoning_keep_all_of_it(ready: Any, tiny_qwen3: Any) -> None:
    ready.base = Artifact(tiny_qwen3, {"stage": "base", "digest": "0", "facts": {}})
    ready.config["model"] = {**ready.config["model"], "modes": ["plain", "think"]}
    ready.config["preferences"]["ours"] = {
        "source": "liked", "messages": "talk", "tools": "tools", "rejected": "{worse}", "rejected_reasoning": "{why}",
    }  # fmt: skip
    tools = [{"type": "function", "function": {"name": "order", "parameters": {"type": "object", "properties": {}}}}]
    rows = []
    for number, row in enumerate(liked(40)):
        call = {"function": {"name": "order", "arguments": {"part": f"pump {number}"}}}
        answer = {"role": "assistant", "content": "", "reasoning_content": "It leaks.", "tool_calls": [call]}
        rows.append({**row, "talk": [{"role": "user", "content": row["text"]}, answer], "tools": tools,
                     "why": "" if number == 3 else "No idea."})  # fmt: skip
    ready.write_rows("liked.jsonl", rows)
    made = ready.prepare()
    assert made.dropped()["only one of both answers has reasoning"] == 1
    first = next(row for row in made.lines("preferences.jsonl") if row["id"] == "ours/p0")
    assert (first["mode"], first["tools"][0]["function"]["name"]) == ("think", "order")
    assert first["chosen"]["tool_calls"][0]["function"] == {"name": "order", "arguments": {"part": "pump 0"}}
    assert first["rejected"] == {"role": "assistant", "reasoning_content": "No idea.", "content": rows[0]["worse"]}


def test_a_row_that_cannot_be_read_is_told_with_file_and_line(ready: Any) -> None:
    ready.config["preferences"]["ours"] = {"source": "liked", "messages": "talk", "rejected": "{worse}"}
    rows = [{**row, "talk": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": "fix"}]}
            for row in liked(40)]  # fmt: skip
    rows[6]["talk"].pop()
    ready.write_rows("liked.jsonl", rows)
    with pytest.raises(RecipeError, match=r"liked.jsonl:7: talk does not end with an answer"):
        ready.prepare()


def test_equal_input_gives_equal_bytes(ready: Any) -> None:
    one, other = (ready.prepare().files()["preferences.jsonl"] for _ in range(2))
    assert one == other
    assert all(json.loads(line)["origin"] == "ready" for line in one.decode().splitlines())
