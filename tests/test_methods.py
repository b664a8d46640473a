"""Every way to set up an adapter that is not refused: it trains, the published adapter is the trained model, and MERGE
takes it. What is refused is refused because it was seen to fail here, or would be wrong without a word."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune import artifacts, sft, shards
from finetune.adapter import Adapter
from finetune.artifacts import Artifact
from finetune.base import load_adapter, load_base
from finetune.config.model import Model
from finetune.config.training import Method
from tests import tiny

pytestmark = pytest.mark.slow

LORA = tiny.METHOD["lora"]
WORKING: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "attention only": {"target_modules": ["q_proj", "v_proj"]},
    "ranks of their own": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 2}},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny.make_prepared(tmp_path_factory.mktemp("prepared"))


def held_out_loss(base: Artifact, prepared: Artifact, adapter: Artifact, method: dict[str, Any]) -> float:
    """Mean over all supervised tokens of `sft_valid.parquet`, row by row, from what lies on disk."""
    model = load_base(base, Model(**tiny.MODEL), Method(**method), device="cpu")
    adapted = load_adapter(model, adapter)
    rows = sft.read_rows(prepared.file("sft_valid.parquet"))
    total, tokens = 0.0, 0
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        with torch.no_grad():
            logits = adapted(input_ids=torch.tensor([ids])).logits[0, :-1]
        wanted = torch.tensor(labels[1:])
        total += float(cross_entropy(logits.double(), wanted, ignore_index=-100, reduction="sum"))
        tokens += int((wanted != -100).sum())
    return total / tokens


@pytest.mark.parametrize(
    ("way", "quantised"), [*((way, False) for way in WORKING), *((way, True) for way in WORKING if way != "orthogonal")]
)
def test_the_published_adapter_is_the_model_that_was_trained(
    tmp_path: Path, base: Artifact, prepared: Artifact, way: str, quantised: bool
) -> None:
    method = {**(tiny.QLORA if quantised else tiny.METHOD), "lora": {**LORA, "lora_dropout": 0.0, **WORKING[way]}}
    config = tiny.sft_config(method=method, max_steps=2, eval_steps=2, save_steps=2, log_steps=1)
    made = artifacts.build(
        sft.SFT_STAGE, config, root=tmp_path, inputs={"base": base, "prepared": prepared}, machine=tiny.machine(),
        tracker=tiny.Silent(), say=lambda _: None,
    )
    trained = json.loads(made.file("log.jsonl").read_text().splitlines()[-1])["eval_loss"]
    assert held_out_loss(base, prepared, made, method) == pytest.approx(trained, rel=1e-5)
    updates = Adapter.read(made.path).plan(shards.read_header(base.path / "model.safetensors"))
    assert updates  # every tensor of the adapter is used exactly once, or this raises
