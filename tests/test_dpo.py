"""DPO: it starts where SFT ended, prefers what is chosen, and publishes the policy alone."""

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import artifacts, dpo, sft
from finetune.artifacts import Artifact
from finetune.base import load_adapter, load_base
from finetune.chat import ChatFormat
from finetune.config.model import Model
from finetune.errors import RecipeError
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
        dpo.STAGE, config, root=root, inputs=inputs, machine=tiny.machine(), tracker=tiny.Silent(), say=say
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"loss_type": ["hinge"]}, {"loss_type": ["ipo"]}, {"loss_type": ["robust"], "label_smoothing": 0.1},
        {"loss_type": ["exo_pair"], "label_smoothing": 1e-3}, {"loss_type": ["nca_pair"]}, {"loss_type": ["bco_pair"]},
        {"loss_type": ["sppo_hard"]}, {"loss_type": ["aot"]}, {"loss_type": ["aot_unpaired"]},
        {"loss_type": ["apo_zero"]}, {"loss_type": ["apo_down"]}, {"loss_type": ["discopop"]},
        {"loss_type": ["sigmoid_norm"]}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
        {"use_weighting": True}, {"ld_alpha": 0.5},
    ],
    ids=lambda keys: "-".join(str(value) for value in keys.values()),
)
def test_every_loss_of_trl_trains_by_its_name(
    tmp_path: Path, inputs: dict[str, Artifact], keys: dict[str, Any]
) -> None:
    made = train(tmp_path, inputs, max_steps=2, trl={"learning_rate": 1e-3, **keys})
    assert all(math.isfinite(line["loss"]) for line in log_of(made))


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


def test_pairs_that_cannot_teach_are_counted_with_their_reason(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    def pair(number: int, chosen: str, rejected: str) -> str:
        messages = [{"role": "user", "content": "hello"}]
        return json.dumps({"id": str(number), "task": "t", "messages": messages, "chosen": chosen,
                           "rejected": rejected, "origin": "ready"})

    file = tmp_path / "preferences.jsonl"
    file.write_text("\n".join([pair(1, "yes", "no"), pair(2, "same", "same"), pair(3, "y" * 200, "no")]))
    rows, dropped, origins = dpo.read_pairs(file, ChatFormat.read(inputs["base"].path), max_length=64)
    assert [row["id"] for row in rows] == ["1"]
    assert dropped == {"both answers are the same": 1, "longer than dpo.max_length": 1}
    assert origins == {"ready": 1}


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
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def load(*args: Any, **keys: Any) -> Any:
        model = load_base(*args, **keys)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(dpo, "load_base", load)
    gc.disable()
    try:
        train(tmp_path, inputs, max_steps=2)
    finally:
        gc.enable()
    assert [model() for model in loaded] == [None]
