"""CPT and SFT: what reaches the loss is what PREPARE labelled; runs repeat to the byte; an adapter is published."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from finetune import artifacts, sft
from finetune.artifacts import Artifact
from finetune.base import load_adapter, load_base
from finetune.config.model import Model
from finetune.errors import RecipeError
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny.make_prepared(tmp_path_factory.mktemp("prepared"))


def train(root: Path, base: Artifact, prepared: Artifact, **changes: Any) -> Artifact:
    return artifacts.build(
        sft.SFT_STAGE, tiny.sft_config(**changes), root=root, inputs={"base": base, "prepared": prepared},
        machine=tiny.machine(), tracker=tiny.Silent(),
    )


def test_the_collator_neither_drops_nor_shifts_a_label(prepared: Artifact) -> None:
    rows = sft.read_rows(prepared.file("sft_train.parquet"))
    batch = sft.Collator(pad_id=0)([sft.join_rows(rows, [row]) for row in (3, 0, 7)])
    for place, row in enumerate((3, 0, 7)):
        length = len(rows["input_ids"][row])
        assert batch["input_ids"][place, :length].tolist() == rows["input_ids"][row]
        assert batch["labels"][place, :length].tolist() == rows["labels"][row]
        assert set(batch["labels"][place, length:].tolist()) <= {-100}
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (batch["labels"].size(1) - length)
    assert batch["row"].tolist() == [3, 0, 7]


def test_the_base_is_loaded_on_the_device_that_the_config_found(
    tmp_path: Path, base: Artifact, prepared: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several GPUs every process takes the first one for its own until the config has joined the ranks."""
    asked: list[torch.device] = []

    def look(*_: Any, device: torch.device) -> None:
        asked.append(device)
        raise InterruptedError

    monkeypatch.setattr(sft, "device_of", lambda machine: torch.device("cpu", 5))
    monkeypatch.setattr(sft, "load_base", look)
    with pytest.raises(InterruptedError):
        train(tmp_path, base, prepared)
    assert asked == [torch.device("cpu")]


def test_the_first_loss_is_the_mean_over_exactly_our_labels(tmp_path: Path, base: Artifact, prepared: Artifact) -> None:
    """The trainer's loss of step 1 against a loop written here, from the parquet file and the bare base model."""
    method = {"name": "lora", "lora": {"r": 4, "target_modules": "all-linear"}}
    made = train(tmp_path, base, prepared, max_steps=1, batch_size=40, log_steps=1, method=method)
    logged = json.loads(made.file("log.jsonl").read_text().splitlines()[0])["loss"]
    model = load_base(base, Model(**tiny.MODEL), None, device="cpu")
    rows = sft.read_rows(prepared.file("sft_train.parquet"))
    total, count = 0.0, 0
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place, label in enumerate(labels):
            if label != -100:  # the logits before a token predict it
                total -= float(scores[place - 1, label])
                count += 1
    assert logged == pytest.approx(total / count, rel=1e-5)


def test_a_token_without_label_gets_no_gradient(base: Artifact) -> None:
    from trl.trainer.utils import add_fused_lm_head

    from finetune.head import score_supervised_only

    model = load_base(base, Model(**tiny.MODEL), None, device="cpu")
    add_fused_lm_head(model)
    score_supervised_only(model, outputs=("log_probs",))
    head = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.set_output_embeddings(torch.nn.Linear(32, 128, bias=False))
    model.get_output_embeddings().weight = head
    ids, labels = torch.arange(10, 22).unsqueeze(0), torch.full((1, 12), -100)
    labels[0, 7:9] = ids[0, 7:9]
    hidden: list[torch.Tensor] = []
    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        output.requires_grad_(True).retain_grad()
        hidden.append(output)
    model.base_model.norm.register_forward_hook(keep)
    model(input_ids=ids, labels=labels, fused_lm_head=True).loss.backward()
    moved = hidden[0].grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert moved == [6, 7], "exactly the positions before the two labels may receive a gradient"


def test_two_runs_are_byte_identical_with_dropout(tmp_path: Path, base: Artifact, prepared: Artifact) -> None:
    one, two = train(tmp_path / "1", base, prepared), train(tmp_path / "2", base, prepared)
    assert one.manifest["files"] == two.manifest["files"]
    other = train(tmp_path / "3", base, prepared, seed=1)
    assert other.digest != one.digest


def test_an_adapter_holds_three_files_and_no_place_or_time(tmp_path: Path, base: Artifact, prepared: Artifact) -> None:
    made = train(tmp_path, base, prepared)
    assert set(made.manifest["files"]) == {"adapter_model.safetensors", "adapter_config.json", "log.jsonl"}
    config = json.loads(made.file("adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/random"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(tmp_path) not in "".join(made.file(name).read_text() for name in ("adapter_config.json", "log.jsonl"))
    lines = [json.loads(line) for line in made.file("log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8]
    assert made.facts["eval_loss"] == lines[-1]["eval_loss"]


def test_the_published_adapter_is_what_was_trained(tmp_path: Path, base: Artifact, prepared: Artifact) -> None:
    """Loaded back, it scores the held-out rows as the trainer did at its last step."""
    made = train(tmp_path, base, prepared)
    model = load_adapter(load_base(base, Model(**tiny.MODEL), None, device="cpu"), made)
    rows = sft.read_rows(prepared.file("sft_valid.parquet"))
    total, count = 0.0, 0
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        target = torch.tensor(labels[1:])
        total -= float(scores[target != -100].gather(-1, target[target != -100, None]).sum())
        count += int((target != -100).sum())
    assert made.facts["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_an_evaluation_batch_is_no_larger_than_a_training_batch(prepared: Artifact) -> None:
    rows = sft.read_rows(prepared.file("sft_train.parquet"))
    batches = sft._batches(rows, tokens=96)
    assert sorted(row for batch in batches for one in batch for row in one["row"]) == list(range(40))
    for batch in batches:
        assert len(batch) * max(len(one["input_ids"]) for one in batch) <= 96
    assert len(batches) <= 2 * -(-sum(map(len, rows["input_ids"])) // 96), "batches are nearly empty"


def test_training_lowers_the_loss(tmp_path: Path, base: Artifact, prepared: Artifact) -> None:
    made = train(tmp_path, base, prepared, max_steps=60, eval_steps=60, save_steps=60, trl={"learning_rate": 3e-2})
    losses = [json.loads(line)["loss"] for line in made.file("log.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05  # random letters: only the end of turn can be learned


def test_accumulated_small_batches_give_the_adapter_of_one_large_one(
    tmp_path: Path, base: Artifact, prepared: Artifact
) -> None:
    method = {**tiny.METHOD, "lora": {**tiny.METHOD["lora"], "lora_dropout": 0.0}}
    whole = train(tmp_path / "1", base, prepared, method=method)
    parts = artifacts.build(
        sft.SFT_STAGE, tiny.sft_config(method=method), root=tmp_path / "2", inputs={"base": base, "prepared": prepared},
        machine=tiny.machine(per_device_batch_size=1), tracker=tiny.Silent(),
    )
    one, two = (load_file(made.file("adapter_model.safetensors")) for made in (whole, parts))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3)


def test_a_finished_training_leaves_no_model_behind(
    tmp_path: Path, base: Artifact, prepared: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent of a child holds no weights, even if the collector would not have come by itself."""
    assert tiny.models_left(sft, lambda: train(tmp_path, base, prepared, max_steps=2), monkeypatch) == []


def test_cpt_supervises_every_token_and_sft_goes_on_from_it(
    tmp_path: Path, base: Artifact, prepared: Artifact
) -> None:
    config = tiny.sft_config()
    cpt = artifacts.build(
        sft.CPT_STAGE, {"cpt": config.pop("sft"), **config}, root=tmp_path,
        inputs={"base": base, "prepared": prepared}, machine=tiny.machine(), tracker=tiny.Silent(),
    )
    rows = sft.read_rows(prepared.file("text_train.parquet"))
    assert rows["labels"] == rows["input_ids"]
    assert cpt.facts["supervised_tokens"] > 400
    after = artifacts.build(
        sft.SFT_STAGE, tiny.sft_config(trl={"learning_rate": 1e-9}), root=tmp_path,
        inputs={"base": base, "prepared": prepared, "start": cpt}, machine=tiny.machine(), tracker=tiny.Silent(),
    )
    one, two = (load_file(made.file("adapter_model.safetensors")) for made in (cpt, after))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)


def test_a_checkpoint_of_another_layout_starts_the_stage_again_with_a_message(
    tmp_path: Path, base: Artifact, prepared: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from finetune import loop

    undisturbed = train(tmp_path / "whole", base, prepared)
    inputs = {"base": base, "prepared": prepared}
    config, root = tiny.sft_config(), tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            artifacts.build(
                sft.SFT_STAGE, config, root=root, inputs=inputs, machine=tiny.machine(per_device_batch_size=2),
                tracker=tiny.Silent(),
            )
    made = artifacts.build(
        sft.SFT_STAGE, config, root=root, inputs=inputs, machine=tiny.machine(), tracker=tiny.Silent()
    )
    assert "another layout" in capsys.readouterr().out
    assert made.manifest["files"] == undisturbed.manifest["files"]


def test_a_nan_stops_within_the_step_and_names_the_records(
    tmp_path: Path, base: Artifact, prepared: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that turns to NaN after two steps: the run ends in step 3 and nothing is published."""
    import transformers

    real = transformers.Trainer.training_step
    steps = 0

    def poisoned(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
        return real(self, model, inputs, *args)

    monkeypatch.setattr(transformers.Trainer, "training_step", poisoned)
    with pytest.raises(RecipeError) as caught:
        train(tmp_path, base, prepared)
    message = str(caught.value)
    assert "step 3" in message
    assert message.count("row-") == 4
    assert steps == 3
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".partial")]


def test_a_key_that_trl_does_not_know_is_a_message(tmp_path: Path, base: Artifact, prepared: Artifact) -> None:
    with pytest.raises(RecipeError, match=r"sft.trl.*SFTConfig refuses it"):
        train(tmp_path, base, prepared, trl={"no_such_key": 3})


def test_no_rows_is_a_message(tmp_path: Path, base: Artifact) -> None:
    empty = {"id": pa.array([], pa.string())} | {
        name: pa.array([], pa.list_(pa.int32())) for name in ("input_ids", "labels")
    }
    for name in ("train", "valid"):
        pq.write_table(pa.table(empty), tmp_path / f"sft_{name}.parquet")
    prepared = Artifact(tmp_path, {"stage": "prepare", "digest": "empty", "facts": {}})
    with pytest.raises(RecipeError, match="no row to train on"):
        train(tmp_path / "out", base, prepared)
