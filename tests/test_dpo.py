"""DPO: it starts where SFT ended, prefers what is chosen, and publishes the policy alone."""

import json
import math
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import artifacts, dpo, reference, sft
from finetune.artifacts import Artifact
from finetune.base import load_adapter, load_base
from finetune.chat import ChatFormat
from finetune.config.model import Model
from finetune.config.upstream import dpo_losses
from finetune.errors import Preempted, RecipeError
from finetune.order import plan_order
from tests import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("inputs")
    made = {"base": tiny.make_base(root / "base"), "prepared": tiny.make_prepared(root / "prepared")}
    made["adapter"] = artifacts.build(
        sft.SFT_STAGE, tiny.sft_config(), root=root, inputs=dict(made), machine=tiny.machine(), tracker=tiny.Silent()
    )
    return {**made, "preferences": tiny.make_preferences(root / "preferences")}


def train(root: Path, inputs: dict[str, Artifact], say: Any = print, **changes: Any) -> Artifact:
    config = tiny.sft_config(**{"log_steps": 1, "trl": {"learning_rate": 1e-2}, **changes})
    config["dpo"] = config.pop("sft")
    return artifacts.build(
        replace(dpo.STAGE, run=partial(dpo.run, say=say)), config, root=root, inputs=inputs, machine=tiny.machine(),
        tracker=tiny.Silent(),
    )


def log_of(made: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in made.file("log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_first_margin_is_zero_because_the_reference_is_where_training_starts(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    assert any(tensor.any() for name, tensor in load_file(inputs["adapter"].file("adapter_model.safetensors")).items()
               if "lora_B" in name), "with an untouched adapter any reference would do"
    first = log_of(train(tmp_path, inputs))[0]
    assert abs(first["rewards/margins"]) <= 1e-6
    assert abs(first["rewards/chosen"]) <= 1e-6
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_served_prompt_and_the_answer_with_its_end(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    """Step 1 of the log against a loop written here, on the SFT model, for a batch of all pairs."""
    first = log_of(train(tmp_path, inputs, batch_size=20, max_steps=1))[0]
    model = load_adapter(load_base(inputs["base"], Model(**tiny.MODEL), None, device="cpu"), inputs["adapter"])
    chat = ChatFormat.read(inputs["base"].path)
    sums = {"chosen": 0.0, "rejected": 0.0}
    lines = inputs["preferences"].file("preferences.jsonl").read_text().splitlines()
    pairs = [pair for pair in map(json.loads, lines) if not pair["held_out"]]
    for pair in pairs:
        prompt = chat.prompt_ids(pair["messages"])
        for side in sums:
            ids = [*prompt, *chat.encode(pair[side]["content"]), chat.eos_id]
            with torch.no_grad():
                scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums[side] += sum(float(scores[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
    for side, total in sums.items():
        assert first[f"logps/{side}"] == pytest.approx(total / len(pairs), rel=1e-5)


@pytest.mark.slow
def test_training_widens_the_margin(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    log = log_of(train(tmp_path, inputs, max_steps=36, save_steps=36, trl={"learning_rate": 1e-2, "beta": 0.5}))
    assert sum(line["rewards/margins"] for line in log[-6:]) / 6 > 0.05


@pytest.mark.slow
def test_only_the_policy_is_published(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    made = train(tmp_path, inputs)
    assert set(made.manifest["files"]) == {"adapter_model.safetensors", "adapter_config.json", "log.jsonl"}
    ours = load_file(made.file("adapter_model.safetensors"))
    before = load_file(inputs["adapter"].file("adapter_model.safetensors"))
    assert set(ours) == set(before)
    assert any(not torch.equal(ours[name], before[name]) for name in ours)


LOSSES: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": [name]} for name in dpo_losses()},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 1e-3},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "sigmoid and sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
    "weighted": {"use_weighting": True},
    "ld_alpha": {"ld_alpha": 0.5},
    "js_divergence": {"f_divergence_type": "js_divergence"},
}


@pytest.mark.slow
def test_every_loss_of_trl_gives_by_its_name_the_steps_of_trls_own_trainer(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    """TRL with a live second adapter and its own head, on the same rows in the same order, two steps."""
    chat = ChatFormat.read(inputs["base"].path)
    pairs, _, _ = dpo.read_pairs(inputs["preferences"].file("preferences.jsonl"), chat, max_length=64)
    rows = [pair for pair in pairs if not pair["held_out"]]
    lengths = [len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    places = [rows[row] for row in plan_order(lengths, batch_size=4, steps=2, seed=0)]
    assert len(dpo_losses()) == 15, "TRL has another number of losses: see that the new ones are right here"
    for name, keys in LOSSES.items():
        keys = {"learning_rate": 1e-3, "beta": 0.3, **keys}
        ours = log_of(train(tmp_path / name, inputs, max_steps=2, trl=keys))
        theirs = trls_own_steps(tmp_path / name, inputs, places, keys)
        for field in ("loss", "rewards/chosen", "rewards/margins", "logps/rejected", "rewards/accuracies"):
            found, wanted = [line[field] for line in ours], [line[field] for line in theirs]
            # The second step stands on an update by Adam, which turns rounding of the first into 1e-5.
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5), (name, field)
        assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6, abs=1e-6), name


def trls_own_steps(
    folder: Path, inputs: dict[str, Artifact], places: list[dict[str, Any]], keys: dict[str, Any]
) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Plain(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    given = DPOConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, seed=0, use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=64, train_sampling_strategy="sequential", logging_steps=1,
        remove_unused_columns=False, save_strategy="no", report_to=[], disable_tqdm=True, **keys,
    )
    model = load_base(inputs["base"], Model(**tiny.MODEL), None, device="cpu")
    columns = {name: [place[name] for place in places] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    trainer = Plain(
        model=load_adapter(model, inputs["adapter"], trainable=True), args=given,
        train_dataset=Dataset.from_dict(columns), processing_class=AutoTokenizer.from_pretrained(inputs["base"].path),
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
def test_reference_scores_are_kept_for_other_learning_rates_and_never_change_a_result(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    """Two epochs, so that rows come again in other batches than those they were scored in."""
    said: list[str] = []
    keys = {"max_steps": 10, "save_steps": 10, "eval_steps": 5}
    first = train(tmp_path / "one", inputs, **keys)
    (kept,) = (tmp_path / "one" / reference.FOLDER).iterdir()
    scores = kept.read_bytes()
    for trl in ({"learning_rate": 1e-3}, {"learning_rate": 1e-2, "beta": 0.5, "loss_type": ["ipo"]}):
        other = train(tmp_path / "one", inputs, said.append, **keys, trl=trl)
        assert abs(log_of(other)[0]["rewards/margins"]) <= 1e-6
    assert [line for line in said if "step 10/10" in line]
    assert not [line for line in said if "scoring the reference" in line]
    assert [kept] == list((tmp_path / "one" / reference.FOLDER).iterdir())
    assert kept.read_bytes() == scores, "scored again although nothing but the training changed"
    (tmp_path / "two" / reference.FOLDER).mkdir(parents=True)
    torn = tmp_path / "two" / reference.FOLDER / kept.name
    torn.write_bytes(scores[: len(scores) // 2])

    def terminate(line: str) -> None:
        if "scoring the reference" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train(tmp_path / "two", inputs, terminate, **keys)
    assert scores.startswith(torn.read_bytes()), "what was scored before SIGTERM is kept, and nothing torn"
    assert scores != torn.read_bytes()
    again = train(tmp_path / "two", inputs, **keys)
    assert again.manifest["files"] == first.manifest["files"]
    assert torn.read_bytes() == scores
    train(tmp_path / "two", inputs, **{**keys, "batch_size": 5})
    assert torn.read_bytes().startswith(scores)
    assert len(torn.read_bytes()) > len(scores), "batches of another size are other batches"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": tiny.QLORA}, {"model": {**tiny.MODEL, "dtype": "bfloat16"}}, {"trl": {"disable_dropout": False}},
        {"trl": {"neftune_noise_alpha": 5.0}},
    ],
    ids=["qlora", "bfloat16", "dropout", "neftune"],
)
def test_the_first_margin_is_zero_in_four_bit_and_in_bfloat16(
    tmp_path: Path, inputs: dict[str, Artifact], changes: dict[str, Any]
) -> None:
    """ms-swift#8047, trl#2492: under dropout and NEFTune no two forwards agree, and nothing is demanded."""
    first = log_of(train(tmp_path, inputs, max_steps=1, **changes))[0]
    assert (abs(first["rewards/margins"]) <= 1e-6) is ("trl" not in changes)


def test_scores_of_another_rotation_or_precision_are_never_taken() -> None:
    base, adapter = (Artifact(Path(name), {"stage": name, "digest": name, "facts": {}}) for name in ("base", "adapter"))
    yarn = {"factor": 2.0, "original_max_position_embeddings": 64}
    found = []
    for model, trl in ({}, {}), ({"rope_parameters": yarn}, {}), ({}, {"tf32": True}), ({}, {"beta": 0.5}):
        config = tiny.sft_config(model={**tiny.MODEL, **model}, trl=trl)
        config["dpo"] = config.pop("sft")
        settings = dpo.Config.model_validate(config)
        found.append(dpo._identity(settings, base, adapter, tiny.machine(), torch.device("cpu")))
    plain, rotated, rounded, other_beta = found
    assert plain == other_beta
    assert plain != rotated != rounded != plain


@pytest.mark.slow
def test_a_reference_that_is_not_the_sft_policy_ends_the_run(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    """ms-swift#8047, LF#8974: DPO from another policy than SFT left looks like any other run."""
    train(tmp_path, inputs, max_steps=1)
    (kept,) = (tmp_path / reference.FOLDER).iterdir()
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    wrong = [{**line, "scores": [[chosen + 0.01, rejected] for chosen, rejected in line["scores"]]} for line in lines]
    kept.write_text("".join(json.dumps(line) + "\n" for line in wrong))
    with pytest.raises(RecipeError, match="the reference is not the SFT policy"):
        train(tmp_path, inputs, max_steps=1, trl={"learning_rate": 1e-3})


def test_the_bound_of_the_first_margin_is_stated() -> None:
    assert dpo.start_bound([3, 1, 2], dtype="float32", noise=0.0) == 1e-6
    assert dpo.start_bound([3, 1, 2], dtype="bfloat16", noise=0.0) == 1e-2
    assert dpo.start_bound([3, 1, 3], dtype="float32", noise=0.0) == 1e-2, "a pair is in two batches, scored in one"
    assert dpo.start_bound([3, 1, 2], dtype="float32", noise=0.1) == math.inf


@pytest.mark.slow
def test_held_out_pairs_are_measured_and_never_trained(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    """The last line of the log against a loop written here, on the published adapter and the one before."""
    made = train(tmp_path, inputs, max_steps=6, eval_steps=3, trl={"learning_rate": 1e-2, "beta": 0.3})
    log = log_of(made)
    assert [line["step"] for line in log if "eval_margin" in line] == [3, 6]
    assert (made.manifest["facts"]["pairs"], made.manifest["facts"]["held_out"]) == (20, 4)
    chat = ChatFormat.read(inputs["base"].path)
    pairs, _, _ = dpo.read_pairs(inputs["preferences"].file("preferences.jsonl"), chat, max_length=64)
    held_out = [pair for pair in pairs if pair["held_out"]]

    def rewards(adapter: Artifact) -> torch.Tensor:
        model = load_adapter(load_base(inputs["base"], Model(**tiny.MODEL), None, device="cpu"), adapter)
        sums = []
        for pair in held_out:
            for side in ("chosen_ids", "rejected_ids"):
                ids, start = [*pair["prompt_ids"], *pair[side]], len(pair["prompt_ids"])
                with torch.no_grad():
                    scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                sums.append(sum(float(scores[place - 1, ids[place]]) for place in range(start, len(ids))))
        return 0.3 * torch.tensor(sums).view(-1, 2)

    after, before = rewards(made), rewards(inputs["adapter"])
    margins = (after - before)[:, 0] - (after - before)[:, 1]
    assert log[-1]["eval_margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert log[-1]["eval_accuracy"] == float((margins > 0).float().mean())
    assert log[-1]["eval_loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(margins).mean()), abs=1e-4)
    assert made.manifest["facts"]["eval_loss"] == log[-1]["eval_loss"]


@pytest.mark.slow
def test_accumulated_micro_batches_give_the_adapter_of_one_large_batch(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    whole = train(tmp_path / "1", inputs, max_steps=3)
    config = tiny.sft_config(log_steps=1, trl={"learning_rate": 1e-2}, max_steps=3)
    config["dpo"] = config.pop("sft")
    parts = artifacts.build(
        dpo.STAGE, config, root=tmp_path / "2", inputs=inputs, machine=tiny.machine(per_device_batch_size=2),
        tracker=tiny.Silent(),
    )
    assert [line["loss"] for line in log_of(parts)] == pytest.approx([line["loss"] for line in log_of(whole)], rel=1e-4)


def written(file: Path, *pairs: dict[str, Any]) -> Path:
    answers = [{**pair, **{side: {"role": "assistant", "content": pair[side]} for side in ("chosen", "rejected")}}
               for pair in pairs]
    common = {"task": "t", "messages": [{"role": "user", "content": "hello"}], "origin": "ready"}
    file.write_text("".join(json.dumps({**common, **pair}) + "\n" for pair in answers))
    return file


def test_pairs_that_cannot_teach_are_counted_with_their_reason(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    file = written(
        tmp_path / "preferences.jsonl", {"id": "1", "group": "1", "chosen": "yes", "rejected": "no"},
        {"id": "2", "group": "2", "chosen": "same", "rejected": "same"},
        {"id": "3", "group": "3", "chosen": "y" * 200, "rejected": "no"},
    )
    rows, dropped, origins = dpo.read_pairs(file, ChatFormat.read(inputs["base"].path), max_length=64)
    assert [row["id"] for row in rows] == ["1"]
    assert dropped == {"both answers are the same": 1, "longer than dpo.max_length": 1}
    assert origins == {"ready": 1}


def test_a_group_on_both_sides_is_refused(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    pair = {"group": "patient 7", "chosen": "yes", "rejected": "no"}
    file = written(tmp_path / "preferences.jsonl", {**pair, "id": "1"}, {**pair, "id": "2", "held_out": True})
    with pytest.raises(AssertionError, match="patient 7 is trained and held out"):
        dpo.read_pairs(file, ChatFormat.read(inputs["base"].path), max_length=64)


def test_no_pair_left_is_a_message(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    (tmp_path / "preferences.jsonl").write_text("")
    empty = Artifact(tmp_path, {"stage": "pairs", "digest": "none", "facts": {}})
    with pytest.raises(RecipeError, match="no preference pair is left"):
        train(tmp_path / "out", {**inputs, "preferences": empty})


@pytest.mark.slow
def test_a_finished_training_leaves_no_model_behind(
    tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent of a child holds no weights, even if the collector would not have come by itself."""
    assert tiny.models_left(dpo, lambda: train(tmp_path, inputs, max_steps=2), monkeypatch) == []
