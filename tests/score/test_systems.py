"""Merged, SFT and both modes beside base and tuned: what is asked, what is free, and what a draft may stand for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from handmade import as_artifact, chats, make_random_adapter, sections
from safetensors.torch import load_file, save_file
from tiny import QLORA
from transformers import AutoModelForCausalLM

from finetune import merge
from finetune.artifacts import Artifact
from finetune.base import load_base
from finetune.chat import ChatFormat
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.training import Method
from finetune.score import modes, stage
from finetune.score.answers import Answer, Asked, Book
from finetune.score.inprocess import InProcess
from finetune.score.prompts import answer_text
from finetune.score.systems import Adapted, Whole

MACHINE = Machine(name="test", device="cpu", threads=1)


def read(out: Path) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for line in map(json.loads, (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()):
        found.setdefault(line["system"], {}).setdefault(line["task"], []).append(line["answer"])
    return found


@pytest.fixture(scope="module")
def checkpoint(base: Artifact, adapter: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("merged") / "merge"
    merge.merge_adapter(base.path, adapter.path, out, say=lambda _: None)
    return as_artifact(out, "merge")


@pytest.fixture(scope="module")
def sft(base: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_random_adapter(base.path, tmp_path_factory.mktemp("sft"))


@pytest.mark.slow
def test_every_system_that_exists_is_scored_and_a_second_report_asks_nothing(
    base, prepared, adapter, checkpoint, sft, tmp_path
) -> None:
    books, said = tmp_path / "answers", []
    given: dict[str, Any] = {
        "base": base, "prepared": prepared, "adapter": adapter, "machine": MACHINE, "answers": str(books),
        "checkpoint": checkpoint, "sft": sft,
    }  # fmt: skip
    config = sections(modes=["plain", "think"], think_tokens=4)
    (tmp_path / "one").mkdir()
    stage.run(config, out=tmp_path / "one", **given, say=said.append)
    found = read(tmp_path / "one")
    assert "merged" in found, "stored in bfloat16 and computed in float32, so that it is loaded and asked"
    assert found["sft"] == found["tuned"], "the same adapter, so that every draft is confirmed"
    assert any("answers are those of the model before, read in one pass" in line for line in said)
    assert found["tuned"] != found["base_zero_shot"]
    scores = json.loads((tmp_path / "one" / "scores.json").read_text(encoding="utf-8"))
    assert {"sft", "merged"} <= set(scores["tasks"][0]) & set(scores["tasks"][0]["differences"])
    assert [set(row) >= {"base", "right"} for row in scores["context"]["rows"]] == [True] * 4
    said_of = [line.rpartition(", ")[2] for line in said if "long contexts" in line]
    assert said_of == ["base", "tuned"], "in this order: there is no way back from the sum of the two"
    both = scores["modes"]
    for task in scores["tasks"]:
        assert both[task["name"]]["plain"]["score"] == pytest.approx(task["tuned"]), "the mode trained is asked once"
        assert both[task["name"]]["think"]["tokens_mean"] > 0
        assert both[task["name"]]["think"]["no_answer"] == task["n"], "four tokens hold no thoughts that end"
        assert both["advised"][task["name"]]["mode"] == "plain"

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    (tmp_path / "two").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.score.systems.load_base", refuse)
        stage.run(config, out=tmp_path / "two", **given, say=said.append)
    for name in ("scores.json", "answers.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.slow
def test_the_merged_model_of_a_4_bit_base_answers_for_itself(base, prepared, adapter, checkpoint, tmp_path) -> None:
    """A 4-bit base cannot hold the sum, so `merged` is another model than `tuned`, whose answers are its drafts."""
    import torch

    config = {**sections(consistency={"prompts": 0}, context=None), "method": QLORA}
    said: list[str] = []
    stage.run(
        config, out=tmp_path, base=base, prepared=prepared, adapter=adapter, checkpoint=checkpoint, machine=MACHINE,
        say=said.append,
    )  # fmt: skip
    found = read(tmp_path)
    assert any(line.startswith("score: merged: ") and "answers are those of the model before" in line for line in said)
    assert found["merged"] != found["tuned"]
    (task, *_) = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["tasks"]
    assert set(task["differences"]) >= {"merged", "base_zero_shot"}
    chat = ChatFormat.read(checkpoint.file("model"))
    whole = AutoModelForCausalLM.from_pretrained(checkpoint.file("model"), dtype=torch.float32)
    rows = [row for row in chats("test", 12) if row.task == "thing"]
    for row, answer in zip(rows, found["merged"]["thing"], strict=True):
        ids = torch.tensor([chat.prompt_ids(row.prompt, row.mode, row.tools)])
        made = whole.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=list(chat.stop_ids))
        assert answer == answer_text(chat, made[0, ids.shape[1] :].tolist(), row.mode)


@pytest.mark.slow
def test_merged_is_the_sum_in_memory_bit_for_bit_and_no_other_adapters(base, adapter, checkpoint, tmp_path) -> None:
    import torch

    recipe = sections()
    model = Model.model_validate({**recipe["model"], "dtype": "bfloat16"})  # as it is stored
    method = Method.model_validate(recipe["method"])
    assert Adapted(base, adapter, model, method, MACHINE).equals(checkpoint.file("model"))
    tensors = load_file(adapter.path / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = tensors[name] + torch.ones_like(tensors[name])
    shutil.copytree(adapter.path, tmp_path / "other")
    save_file(tensors, tmp_path / "other" / "adapter_model.safetensors")
    other = as_artifact(tmp_path / "other", "sft")
    assert not Adapted(base, other, model, method, MACHINE).equals(checkpoint.file("model"))


def test_answers_of_other_code_libraries_or_devices_are_not_taken_again(base, adapter, tmp_path) -> None:
    recipe = sections()
    model, method = Model.model_validate(recipe["model"]), Method.model_validate(recipe["method"])

    def books() -> set[Path]:
        both = Adapted(base, adapter, model, method, MACHINE)
        abouts = (both.about(tuned=False), both.about(tuned=True), Whole(base, model, MACHINE).about())
        return {Book(tmp_path, about).file for about in abouts}

    found = books()
    assert len(found) == 3
    for name, other in (
        ("ASKING", 0), ("version_of", lambda _: "0.0"), ("device_of", lambda _: SimpleNamespace(type="elsewhere"))
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"finetune.score.systems.{name}", other)
            assert not books() & found
    assert books() == found


@pytest.mark.slow
def test_a_draft_is_an_answer_only_where_every_token_is_the_models_own_choice(base, tmp_path) -> None:
    chat = ChatFormat.read(base.path)
    model = load_base(base, Model.model_validate(sections()["model"]), None, device="cpu")

    @contextmanager
    def loaded() -> Iterator[Any]:
        yield model

    def answerer(name: str, said: list[str] | None = None) -> InProcess:
        book = Book(tmp_path, {"name": name})
        return InProcess(loaded, chat, book, batch_tokens=300, say=(said if said is not None else []).append)

    asked = [Asked.render(chat, row.prompt, row.mode, row.tools, max_new_tokens=6) for row in chats("test", 3)]
    right = answerer("plain").answer(asked)
    wrong = list(right[0].ids or ())
    wrong[2] = (wrong[2] + 1) % 1000
    short = Answer("", "", (right[1].ids or ())[:2], False, 2, 0.0)
    drafts = [Answer("", "", tuple(wrong), False, 6, 0.0), short, *right[2:]]
    said: list[str] = []
    made = answerer("drafted", said).answer(asked, drafts=drafts)
    assert [answer.ids for answer in made] == [answer.ids for answer in right]
    assert f"{len(asked) - 2} of {len(asked)} answers are those" in said[0]


@pytest.mark.slow
def test_likelihoods_are_those_of_transformers_and_are_kept(base, tmp_path) -> None:
    import torch

    chat = ChatFormat.read(base.path)
    model = load_base(base, Model.model_validate(sections()["model"]), None, device="cpu")
    loads = []

    @contextmanager
    def loaded() -> Iterator[Any]:
        loads.append(1)
        yield model

    asked = [Asked.render(chat, row.prompt, row.mode, row.tools, max_new_tokens=6) for row in chats("test", 2)]
    choices = [("the red pump", "a hose"), ("yes", "no", "the red pump"), ("x", "y"), ("x", "y")]
    one = InProcess(loaded, chat, Book(tmp_path, {}), batch_tokens=100, say=print)
    found = one.likelihoods(asked, choices)
    for prompt, own, values in zip(asked, choices, found, strict=True):
        for choice, value in zip(own, values, strict=True):
            ids = [*prompt.ids, *chat.encode(choice)]
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = sum(float(logits[at - 1, ids[at]]) for at in range(len(prompt.ids), len(ids)))
            assert value == pytest.approx(expected, abs=1e-4)
    again = InProcess(loaded, chat, Book(tmp_path, {}), batch_tokens=100, say=print)
    assert again.likelihoods(asked, choices) == found
    assert len(loads) == 1


def test_thinking_is_advised_only_where_its_gain_is_shown() -> None:
    groups = [str(number) for number in range(60)]
    measured = {"plain": {"tokens_mean": 5.0}, "think": {"tokens_mean": 305.0}}
    worse = [float(number % 3 == 0) for number in range(60)]
    better = [float(number % 10 != 0) for number in range(60)]
    chosen = modes.advise({"plain": worse, "think": better}, groups, measured)
    assert chosen["mode"] == "think"
    assert chosen["ci95"][0] > 0
    assert "+300 tokens" in chosen["why"]
    slightly = [*worse[:1], 1.0, *worse[2:]]
    for thinking in (worse, slightly, [0.0] * 60):
        chosen = modes.advise({"plain": worse, "think": thinking}, groups, measured)
        assert chosen["mode"] == "plain"
        assert chosen["ci95"][0] <= 0
