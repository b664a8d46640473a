"""Stage PAIRS: the chosen answer is gold, the rejected one is worse, and whatever gives no pair is counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import as_artifact, chats, make_prepared, make_random_adapter, sections

from finetune import dpo, pairs, train
from finetune.artifacts import Artifact, canonical_json
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.config.load import load
from finetune.config.machine import Machine
from finetune.corpus.records import Chat, Preference
from finetune.metrics import score

MACHINE = Machine(name="test", device="cpu", threads=1)


def config(**changes: Any) -> dict[str, Any]:
    made = sections()
    del made["score"]
    return {**made, "dpo": {"pairs": {"prompts": 9, "eval_prompts": 2, "samples": 2, "temperature": 1.0, **changes}}}


def task(name: str) -> Task:
    return Task.model_validate(sections()["tasks"][name])


@pytest.fixture(scope="module")
def inputs(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "base": as_artifact(tiny_qwen3, "base"),
        "prepared": make_prepared(tmp_path_factory.mktemp("prepared")),
        "adapter": make_random_adapter(tiny_qwen3, tmp_path_factory.mktemp("adapter")),
        "machine": MACHINE,
    }


@pytest.fixture(scope="module")
def chat(tiny_qwen3: Path) -> ChatFormat:
    return ChatFormat.read(tiny_qwen3)


def read(out: Path) -> list[Preference]:
    return [Preference.from_json(line) for line in (out / "preferences.jsonl").read_text("utf-8").splitlines()]


def test_the_models_own_worse_answers_are_rejected_for_gold_and_ready_ones_are_joined(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    facts = pairs.run(config(), out=tmp_path, **inputs, say=lambda _: None)
    *own, ready = read(tmp_path)
    assert (ready.id, ready.origin) == ("ready-1", "ready")
    assert facts["prompts"] == 11 == len(own) + sum(facts["dropped"].values())
    gold = {row.id: row for row in [*chats("train", 24), *chats("valid", 4)]}
    for pair in own:
        row = gold[pair.id]
        assert (pair.chosen, pair.task, pair.group) == (row.messages[-1], "parts", row.group)
        assert list(pair.messages) == row.prompt
        worse = score(pair.rejected["content"], row, task("parts"))
        assert (pair.score_chosen, pair.score_rejected) == (1.0, worse)
        assert worse < 1.0
    assert facts["origins"]["on_policy"] == len(own) > 0
    assert {pair.id for pair in own if pair.held_out} <= {row.id for row in chats("valid", 4)}
    assert facts["held_out"] == sum(pair.held_out for pair in own) == 2
    groups = {side: {pair.group for pair in own if pair.held_out is side} for side in (True, False)}
    assert not groups[True] & groups[False]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_after_a_kill_too(inputs: dict[str, Any], tmp_path: Path) -> None:
    class KilledError(BaseException):
        pass

    def die(line: str) -> None:
        if "batch 1" in line:
            raise KilledError

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    pairs.run(config(), out=tmp_path / "whole", **inputs, say=lambda _: None)
    with pytest.raises(KilledError):
        pairs.run(config(), out=tmp_path / "killed", **inputs, say=die)
    assert not (tmp_path / "killed" / "preferences.jsonl").exists()
    pairs.run(config(), out=tmp_path / "killed", **inputs, say=lambda _: None)
    one, other = ((tmp_path / name / "preferences.jsonl").read_bytes() for name in ("whole", "killed"))
    assert one == other


def test_without_sampling_only_the_ready_made_preferences_remain_and_no_model_is_loaded(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    no_model = {**inputs, "base": Artifact(tmp_path / "nothing", {}), "adapter": Artifact(tmp_path / "nothing", {})}
    facts = pairs.run({**config(), "dpo": {"pairs": None}}, out=tmp_path, **no_model, say=lambda _: None)
    assert [pair.origin for pair in read(tmp_path)] == ["ready"]
    assert facts["origins"] == {"ready": 1}


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text} for text in texts]


def test_the_worst_of_the_samples_is_taken_and_the_first_of_equals() -> None:
    row = next(row for row in chats("train", 3) if row.task == "thing")
    pair = pairs.make_pair(row, said("the red lamp", row.answer, "a sofa", "a chair"), task("thing"), [row], 0)
    assert isinstance(pair, Preference)
    assert (pair.rejected["content"], pair.origin, pair.score_rejected) == ("a sofa", "on_policy", 0.0)


def test_a_model_that_is_always_right_gets_gold_with_one_field_wrong() -> None:
    train = [row for row in chats("train", 24) if row.task == "parts"]
    for row in train:
        pair = pairs.make_pair(row, said(row.answer), task("parts"), train, 0)
        assert isinstance(pair, Preference)
        assert (pair.origin, pair.score_rejected) == ("corrupted", 0.0)
        right, wrong = json.loads(row.answer), json.loads(pair.rejected["content"])
        assert right.keys() == wrong.keys()
        assert sum(right[key] != wrong[key] for key in right) == 1
        assert all(any(json.loads(other.answer)[key] == wrong[key] for other in train) for key in wrong)


def test_a_corrupted_text_is_another_rows_answer() -> None:
    train = [row for row in chats("train", 24) if row.task == "thing"]
    pair = pairs.make_pair(train[0], [], task("thing"), train, 0)
    assert isinstance(pair, Preference)
    assert pair.rejected["content"] in {row.answer for row in train[1:]}
    assert pair.score_rejected is not None
    assert pair.score_rejected < 1.0


def test_a_prompt_without_a_usable_pair_says_why() -> None:
    row = next(row for row in chats("train", 3) if row.task == "thing")
    assert "always right" in str(pairs.make_pair(row, said(row.answer), task("thing"), [row], 0))
    mute = replace(row, messages=(*row.messages[:-1], {"role": "assistant", "content": "..."}))
    assert "scores 0 against itself" in str(pairs.make_pair(mute, said("x"), task("thing"), [row], 0))


CALL = {"name": "order", "arguments": {"part": "hose", "count": 2}}
TOOL = {"type": "function", "function": {"name": "order", "parameters": {"type": "object", "properties": {}}}}


def conversation(mode: Any, *, tools: bool) -> Chat:
    """A question after a whole turn with reasoning of its own, which serving strips from the history."""
    last: dict[str, Any] = {"role": "assistant", "content": "" if tools else "The hose."}
    if mode == "think":
        last["reasoning_content"] = "It leaks where the hose is."
    if tools:
        last["tool_calls"] = [{"type": "function", "function": CALL}]
    messages = (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Which unit?"},
        {"role": "assistant", "content": "Unit 7.", "reasoning_content": "It says so."},
        {"role": "user", "content": "What broke?"},
        last,
    )
    return Chat("row", "thing", messages, "notes.csv", 2, "unit 7", mode, (TOOL,) if tools else ())


@pytest.mark.parametrize("tools", [False, True], ids=["text", "tools"])
@pytest.mark.parametrize("mode", ["plain", "think"])
def test_a_preference_is_trained_on_the_served_prompt_in_every_mode(
    mode: str, tools: bool, chat: ChatFormat, tmp_path: Path
) -> None:
    """Qwen3's own template; what the model said comes back as a message, and its tokens end with the end of turn."""
    row = conversation(mode, tools=tools)
    thought = "<think>\nThe pump is loud.\n</think>\n\n" if mode == "think" else ""
    emitted = '<tool_call>\n{"name": "order", "arguments": {"part": "pump", "count": 1}}\n</tool_call>'
    worse = pairs.read_answer(thought + (emitted if tools else "The pump."), row, chat)
    assert isinstance(worse, dict), worse
    exact = task("thing").model_copy(update={"metric": "exact_match"})
    pair = pairs.make_pair(row, [worse], exact, [row], 0)
    assert isinstance(pair, Preference)
    (tmp_path / "preferences.jsonl").write_text(pair.to_json() + "\n", encoding="utf-8")
    ((trained,), dropped, _) = dpo.read_pairs(tmp_path / "preferences.jsonl", chat, max_length=500)
    assert not dropped
    assert trained["prompt_ids"] == chat.prompt_ids(row.prompt, row.mode, row.tools)
    chosen, rejected = (chat.decode(trained[side], skip_special=False) for side in ("chosen_ids", "rejected_ids"))
    assert rejected == thought + (emitted if tools else "The pump.") + "<|im_end|>"
    assert ("It leaks" in chosen) is (mode == "think")
    assert chosen.endswith("<|im_end|>")
    assert chat.supervise(row.messages, row.mode, row.tools).input_ids == trained["prompt_ids"] + trained["chosen_ids"]


def test_answers_that_cannot_be_learnt_from_say_why(chat: ChatFormat) -> None:
    thinking, calling = conversation("think", tools=False), conversation("plain", tools=True)
    for text, row, reason in (
        ("", conversation("plain", tools=False), "empty"),
        ("<|im_start|>user", conversation("plain", tools=False), "control token"),
        ("<think>\nand on and on", thinking, "never ended"),
        ("<think>\n\n</think>\n\nThe pump.", thinking, "reasoning is empty"),
        ("<tool_call>\n{broken\n</tool_call>", calling, "tool call"),
        ("<tool_call>\n{}", calling, "control token"),
    ):
        assert reason in str(pairs.read_answer(text, row, chat)), text


def test_only_what_decides_the_pairs_is_in_their_identity() -> None:
    def identity(*words: str) -> str:
        recipe = load(["recipe=maintenance", "model=tiny_qwen3", *words])
        return canonical_json(train.identity(recipe, pairs.Config))

    assert identity("dpo.trl.beta=0.3") == identity()
    assert identity("dpo.pairs.samples=4") != identity()
    assert pairs.Config.model_validate(json.loads(identity())).dpo.pairs is not None
