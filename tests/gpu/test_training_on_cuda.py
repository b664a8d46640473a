"""The training stages on one CUDA device: the same numbers as on CPU, TRL's fused kernels instead of our lean head."""

import json
from pathlib import Path

import pytest

from finetune import artifacts, dpo, sft
from finetune.artifacts import Artifact
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("inputs")
    return {"base": tiny.make_base(root / "base"), "prepared": tiny.make_prepared(root / "prepared")}


def losses(made: Artifact) -> list[float]:
    return [json.loads(line)["loss"] for line in made.file("log.jsonl").read_text().splitlines()]


def train(root: Path, inputs: dict[str, Artifact], device: str, method: dict[str, object]) -> Artifact:
    plain = {**method, "lora": {**tiny.METHOD["lora"], "lora_dropout": 0.0}}
    config = tiny.sft_config(method=plain, max_steps=4, log_steps=1)
    return artifacts.build(
        sft.SFT_STAGE, config, root=root / device, inputs=inputs, machine=tiny.machine(device=device),
        tracker=tiny.Silent(),
    )


@pytest.mark.parametrize("method", [tiny.METHOD, tiny.QLORA], ids=["lora", "qlora"])
def test_cuda_trains_what_the_cpu_trains(
    tmp_path: Path, inputs: dict[str, Artifact], method: dict[str, object]
) -> None:
    on_cpu, on_cuda = (losses(train(tmp_path, inputs, device, method)) for device in ("cpu", "cuda"))
    assert on_cuda == pytest.approx(on_cpu, rel=5e-3)


def test_the_first_dpo_margin_is_zero_on_cuda(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    adapter = train(tmp_path, inputs, "cuda", tiny.METHOD)
    config = tiny.sft_config(log_steps=1, trl={"learning_rate": 1e-3})
    config["dpo"] = config.pop("sft")
    made = artifacts.build(
        dpo.STAGE, config, root=tmp_path, machine=tiny.machine(device="cuda"), tracker=tiny.Silent(),
        inputs={**inputs, "adapter": adapter, "preferences": tiny.make_preferences(tmp_path / "preferences")},
    )
    first = json.loads(made.file("log.jsonl").read_text().splitlines()[0])
    assert abs(first["rewards/margins"]) <= 1e-6
