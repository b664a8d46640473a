"""Stage PAIRS: the chosen answer is gold, the rejected one is worse, and whatever gives no pair is counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import as_artifact, chats, make_prepared, make_random_adapter, sections

from finetune import pairs
from finetune.artifacts import Artifact, canonical_json
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.config.load import load
from finetune.config.machine import Machine
from finetune.corpus.records import Preference
from finetune.score.metrics import score

MACHINE = Machine(name="test", device="cpu", threads=1)


def config(**changes: Any) -> dict[str, Any]:
    made = sections()
    del made["score"]
    return {**made, "dpo": {"pairs": {"prompts": 9, "samples": 2, "temperature": 1.0, **changes}}}


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
    assert facts["prompts"] == 9 == len(own) + sum(facts["dropped"].values())
    gold = {row.id: row for row in chats("train", 24)}
    for pair in own:
        assert (pair.chosen, pair.task) == (gold[pair.id].answer, "parts")
        assert list(pair.messages) == gold[pair.id].prompt
        assert score(pair.rejected, pair.chosen, task("parts")) == pair.score_rejected < pair.score_chosen == 1.0
    assert facts["origins"]["on_policy"] == len(own) > 0


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


def test_the_worst_of_the_samples_is_taken(chat: ChatFormat) -> None:
    row = next(row for row in chats("train", 3) if row.task == "thing")
    pair = pairs.make_pair(row, ["the red lamp", row.answer, "a sofa"], task("thing"), [row], chat, 0)
    assert isinstance(pair, Preference)
    assert (pair.rejected, pair.origin, pair.score_rejected) == ("a sofa", "on_policy", 0.0)


def test_a_model_that_is_always_right_gets_gold_with_one_field_wrong(chat: ChatFormat) -> None:
    train = [row for row in chats("train", 24) if row.task == "parts"]
    for row in train:
        pair = pairs.make_pair(row, [row.answer, "", "<|im_end|>"], task("parts"), train, chat, 0)
        assert isinstance(pair, Preference)
        assert (pair.origin, pair.score_rejected) == ("corrupted", 0.0)
        right, wrong = json.loads(row.answer), json.loads(pair.rejected)
        assert right.keys() == wrong.keys()
        assert sum(right[key] != wrong[key] for key in right) == 1
        assert all(any(json.loads(other.answer)[key] == wrong[key] for other in train) for key in wrong)


def test_a_corrupted_text_is_another_rows_answer(chat: ChatFormat) -> None:
    train = [row for row in chats("train", 24) if row.task == "thing"]
    pair = pairs.make_pair(train[0], [], task("thing"), train, chat, 0)
    assert isinstance(pair, Preference)
    assert pair.rejected in {row.answer for row in train[1:]}
    assert pair.score_rejected is not None
    assert pair.score_rejected < 1.0


def test_a_prompt_without_a_usable_pair_says_why(chat: ChatFormat) -> None:
    row = next(row for row in chats("train", 3) if row.task == "thing")
    assert "always right" in str(pairs.make_pair(row, [row.answer], task("thing"), [row], chat, 0))
    mute = replace(row, messages=(*row.messages[:-1], {"role": "assistant", "content": "..."}))
    assert "scores 0 against itself" in str(pairs.make_pair(mute, ["x"], task("thing"), [row], chat, 0))


def test_only_what_decides_the_pairs_is_in_their_identity() -> None:
    def identity(*words: str) -> str:
        recipe = load(["recipe=maintenance", "model=tiny_qwen3", *words])
        fields = {name: getattr(recipe, name) for name in pairs.Config.model_fields}
        return canonical_json(pairs.Config(**fields).model_dump(mode="json"))

    assert identity("dpo.trl.beta=0.3") == identity()
    assert identity("dpo.pairs.samples=4") != identity()
    assert pairs.Config.model_validate(json.loads(identity())).dpo.pairs is not None
