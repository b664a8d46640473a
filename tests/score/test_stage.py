"""Stage SCORE on a tiny random model: what is asked, what is written, and what a kill changes (nothing)."""

import json
from pathlib import Path
from typing import Any

import pytest
from handmade import chats, make_prepared, sections
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.artifacts import Artifact, walk
from finetune.base import load_adapter, load_base
from finetune.chat import ChatFormat
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.errors import RecipeError
from finetune.generate import generate
from finetune.score import stage
from finetune.score.prompts import answer_text, choose_shots, with_shots
from finetune.score.summary import SYSTEMS as ALL

SYSTEMS = [system for system in ALL if system not in ("sft", "merged")]
MACHINE = Machine(name="test", device="cpu", threads=1)


def score(out: Path, base: Artifact, prepared: Artifact, adapter: Artifact, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return stage.run(
        sections(**changes), out=out, base=base, prepared=prepared, adapter=adapter, machine=MACHINE, say=lambda _: None
    )


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in walk(out)}


@pytest.fixture(scope="module")
def scored(base: Artifact, prepared: Artifact, adapter: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores")
    score(out, base, prepared, adapter)
    return out


def answers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def tasks(out: Path) -> dict[str, Any]:
    return {task["name"]: task for task in json.loads((out / "scores.json").read_text(encoding="utf-8"))["tasks"]}


def test_scores_are_the_means_of_the_answers(scored: Path) -> None:
    for name, task in tasks(scored).items():
        for system in SYSTEMS:
            own = [line["score"] for line in answers(scored) if (line["task"], line["system"]) == (name, system)]
            assert len(own) == task["n"] == 12
            assert task[system] == pytest.approx(sum(own) / len(own), abs=1e-15)


def test_the_headline_difference_is_to_the_best_of_base_and_majority(scored: Path) -> None:
    for task in tasks(scored).values():
        best = max(task[system] for system in ("base_zero_shot", "base_few_shot", "majority"))
        assert task[task["against"]] == best
        assert task["difference"] == pytest.approx(task["tuned"] - best)
        assert task["ci95"] == task["differences"][task["against"]]["ci95"]
        assert set(task["differences"]) == set(SYSTEMS) - {"tuned"}


def test_every_system_answers_every_row_once_in_the_order_of_the_test_file(scored: Path) -> None:
    expected = [row.id for row in chats("test", 12)]
    for system in SYSTEMS:
        for name in tasks(scored):
            ids = [line["id"] for line in answers(scored) if (line["task"], line["system"]) == (name, system)]
            assert ids == [row for row in expected if row.startswith(name)]


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [1, 3, 6])
def test_a_killed_scoring_goes_on_to_the_same_bytes(
    kill_after: int, scored: Path, base: Artifact, prepared: Artifact, adapter: Artifact, tmp_path: Path
) -> None:
    class KilledError(BaseException):
        pass

    lines: list[str] = []

    def die(line: str) -> None:
        lines.append(line)
        if "batch" in line and sum("batch" in one for one in lines) == kill_after:
            raise KilledError

    inputs: dict[str, Any] = {"base": base, "prepared": prepared, "adapter": adapter, "machine": MACHINE}
    with pytest.raises(KilledError):
        stage.run(sections(), out=tmp_path, **inputs, say=die)
    assert not content(tmp_path)
    for file in tmp_path.glob(".answers/*.jsonl"):
        with file.open("ab") as torn:
            torn.write(b'{"prompt": "parts", "ids": [1')
    again: list[str] = []
    stage.run(sections(), out=tmp_path, **inputs, say=again.append)
    assert content(tmp_path) == content(scored)
    total = sum(1 for line in (*lines, *again) if "batch" in line)
    assert sum("batch" in line for line in again) == total - kill_after


def test_the_base_answers_as_if_no_adapter_had_been_loaded(
    scored: Path, base: Artifact, prepared: Artifact, adapter: Artifact
) -> None:
    import torch

    chat = ChatFormat.read(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    rows = [row for row in chats("test", 12) if row.task == "thing"]
    alone = generate(
        model, [chat.prompt_ids(row.prompt) for row in rows], max_new_tokens=6, stop_ids=chat.stop_ids,
        pad_id=chat.pad_id, batch_tokens=300,
    )  # fmt: skip
    own = [line for line in answers(scored) if line["task"] == "thing"]
    given = {line["id"]: line["answer"] for line in own if line["system"] == "base_zero_shot"}
    assert given == {row.id: answer_text(chat, ids, "plain") for row, ids in zip(rows, alone, strict=True)}
    tuned = {line["id"]: line["answer"] for line in own if line["system"] == "tuned"}
    assert tuned != given


def test_the_tuned_model_answers_as_peft_does_through_the_adapter(
    scored: Path, base: Artifact, adapter: Artifact
) -> None:
    import torch

    chat = ChatFormat.read(base.path)
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, adapter.path)
    own = {line["id"]: line["answer"] for line in answers(scored) if line["system"] == "tuned"}
    for row in chats("test", 12)[:8]:
        ids = torch.tensor([chat.prompt_ids(row.prompt)])
        made = model.generate(
            input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=list(chat.stop_ids), pad_token_id=chat.pad_id
        )
        assert own[row.id] == answer_text(chat, made[0, ids.shape[1] :].tolist(), "plain")


def test_an_adapter_that_is_switched_off_changes_no_logit(base: Artifact, adapter: Artifact) -> None:
    import torch

    settings = Model.model_validate(sections()["model"])
    ids = torch.arange(100, 140)[None]
    with torch.inference_mode():
        plain = load_base(base, settings, None, device="cpu")(ids).logits
        adapted = load_adapter(load_base(base, settings, None, device="cpu"), adapter)
        with adapted.disable_adapter():
            assert torch.equal(adapted(ids).logits, plain)
        assert not torch.equal(adapted(ids).logits, plain)


def test_shots_come_before_the_question_exactly_as_the_template_renders_a_conversation(base: Artifact) -> None:
    chat, tokenizer = ChatFormat.read(base.path), AutoTokenizer.from_pretrained(base.path)
    row, train = chats("test", 1)[0], chats("train", 24)
    shots = choose_shots(train, row.task, row.mode, 3, seed=0)
    ours = chat.prompt_text(with_shots(row, shots), row.mode)
    turns = [turn for shot in shots for turn in shot.messages[1:]]
    theirs = tokenizer.apply_chat_template(
        [row.messages[0], *turns, row.messages[1]], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert ours == theirs
    assert ours.count("Answer briefly.") == 1


def test_shots_are_training_rows_of_the_task_from_different_groups_and_fixed_by_the_seed() -> None:
    train = chats("train", 24)
    shots = choose_shots(train, "parts", "plain", 4, seed=0)
    assert {shot.task for shot in shots} == {"parts"}
    assert len({shot.group for shot in shots}) == 4
    assert shots == choose_shots(list(reversed(train)), "parts", "plain", 4, seed=0)
    assert shots != choose_shots(train, "parts", "plain", 4, seed=1)
    assert len(choose_shots(train, "parts", "plain", 12, seed=0)) == 12
    assert choose_shots(train, "parts", "plain", 0, seed=0) == choose_shots(train, "parts", "think", 4, seed=0) == []


def test_thoughts_are_no_part_of_an_answer(base: Artifact) -> None:
    chat = ChatFormat.read(base.path)
    thought = chat.encode("<think>\nThe pump.\n</think>\n\nthe hose<|im_end|>")
    assert answer_text(chat, thought, "think") == "the hose"
    assert answer_text(chat, chat.encode("<think>\nThe pump, the"), "think") == ""
    assert answer_text(chat, chat.encode(" the hose<|im_end|>"), "plain") == "the hose"


def test_a_task_without_test_rows_is_told(
    base: Artifact, adapter: Artifact, tmp_path: Path
) -> None:
    broken = tmp_path / "prepared"
    broken.mkdir()
    made = make_prepared(broken)
    rows = [row for row in chats("test", 12) if row.task == "parts"]
    (broken / "test.jsonl").write_text("".join(f"{row.to_json()}\n" for row in rows))
    with pytest.raises(RecipeError, match=r"tasks\.thing: no row of it is left"):
        score(tmp_path / "out", base, made, adapter)


def test_general_perplexity_is_that_of_transformers_own_loss(scored: Path, base: Artifact, prepared: Artifact) -> None:
    import torch

    general = json.loads((scored / "scores.json").read_text())["general"]
    chat = ChatFormat.read(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in prepared.file("general.jsonl").read_text().splitlines()]
    for kind in ("speech", "licence"):
        stream = [token for row in rows if row["kind"] == kind for token in [*chat.encode(row["text"]), chat.eos_id]]
        ids = torch.tensor([stream[:90]])
        with torch.inference_mode():
            expected = model(ids, labels=ids).loss.exp().item()
        assert general["perplexity_base"][kind] == pytest.approx(expected, rel=1e-5)
        assert general["tokens"][kind] == 90
        change = general["perplexity_tuned"][kind] / general["perplexity_base"][kind] - 1
        assert general["change"][kind] == pytest.approx(change)
        assert abs(change) > 1e-6
