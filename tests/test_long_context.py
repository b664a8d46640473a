"""YaRN: the context that was trained is the context that is exported, for every reader."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from finetune import merge
from finetune.artifacts import Artifact, read
from finetune.base import load_adapter, load_base
from finetune.checkpoint import model_config
from finetune.checks import check
from finetune.config import load
from finetune.config.model import Model, Yarn
from finetune.sft import SFT_STAGE
from tests import checkpoints, tiny

CPU = torch.device("cpu")
ORIGINAL = 256
MODEL = {
    **checkpoints.MODEL, "dtype": "float32",
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
}  # fmt: skip


def quiet(line: str) -> None:
    pass


def by_the_paper(theta: float, head_dim: int, factor: float, original: int) -> tuple[list[float], float]:
    """Frequencies and temperature of arXiv 2309.00071, sections 3.2 to 3.4, written from the formulas (float64).

    A dimension that turns less than once over the original context is interpolated, one that turns more than 32 times
    is left alone, between them a ramp. The ramp runs over dimensions, from a whole one to a whole one, as in the
    authors' code. Queries and keys are both scaled by 0.1 ln(s) + 1.
    """

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = math.floor(dimension(32)), math.ceil(dimension(1))
    frequencies = []
    for pair in range(head_dim // 2):
        plain = theta ** (-2 * pair / head_dim)
        kept = 1 - min(1.0, max(0.0, (pair - max(low, 0)) / (min(high, head_dim - 1) - max(low, 0))))
        frequencies.append((1 - kept) * plain / factor + kept * plain)
    return frequencies, 0.1 * math.log(factor) + 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    made = checkpoints.make_base(tmp_path_factory.mktemp("base") / "base", dtype=torch.float32)
    return Artifact(made, {"stage": "base", "digest": "tiny", "facts": {"name": "tests/tiny"}})


def test_the_loaded_model_has_the_frequencies_of_the_paper_and_of_transformers(base: Artifact) -> None:
    loaded = load_base(base, Model.model_validate(MODEL), None, device=CPU)
    rotary = loaded.model.rotary_emb
    frequencies, temperature = by_the_paper(10_000.0, 32, 4.0, ORIGINAL)
    assert rotary.inv_freq.tolist() == pytest.approx(frequencies, rel=1e-6)
    assert rotary.attention_scaling == pytest.approx(temperature, rel=1e-12)
    reference, scaling = ROPE_INIT_FUNCTIONS["yarn"](loaded.config, CPU)
    assert torch.equal(rotary.inv_freq, reference)
    assert rotary.attention_scaling == scaling
    assert loaded.config.max_position_embeddings == 4 * ORIGINAL
    plain = load_base(base, Model.model_validate({**MODEL, "rope_parameters": None}), None, device=CPU)
    assert not torch.allclose(plain.model.rotary_emb.inv_freq, rotary.inv_freq, rtol=1e-3)
    assert plain.config.max_position_embeddings == ORIGINAL


def test_qwen3_32b_at_131072_tokens_has_the_frequencies_of_the_paper(tmp_path: Path) -> None:
    """The published shape: head_dim 128, theta 1e6, 32,768 x 4; read back from the exported config.json."""
    model = load(["recipe=legal", "model=qwen3_32b_128k"]).model
    assert model.positions == 131_072
    shape = model.architecture.model_dump()
    published = {**shape, "architectures": ["Qwen3ForCausalLM"], "rope_theta": 1_000_000, "rope_scaling": None}
    exported = model_config(published, dtypes={"BF16"}, yarn=model.rope_parameters)
    (tmp_path / "config.json").write_text(json.dumps(exported))
    config = Qwen3Config.from_pretrained(tmp_path)
    inverse, scaling = ROPE_INIT_FUNCTIONS["yarn"](config, CPU)
    frequencies, temperature = by_the_paper(1e6, 128, 4.0, 32_768)
    assert inverse.tolist() == pytest.approx(frequencies, rel=1e-6)
    assert scaling == pytest.approx(temperature)
    assert config.max_position_embeddings == 131_072
    # transformers 4 and vLLM: the theta beside rope_scaling, and never both spellings at once (the theta is lost).
    assert exported["rope_scaling"] == model.rope_parameters.model_dump()  # type: ignore[union-attr]
    assert exported["rope_theta"] == 1_000_000
    assert "rope_parameters" not in exported


def test_a_rope_of_the_base_in_the_spelling_of_version_5_is_replaced_and_its_theta_kept() -> None:
    base = {"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    yarn = Yarn(factor=2.0, original_max_position_embeddings=512)
    exported = model_config(base, dtypes=set(), yarn=yarn)
    assert (exported["rope_theta"], exported["max_position_embeddings"]) == (5e5, 1024)
    assert exported["rope_scaling"] == {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}


@pytest.mark.slow
def test_what_was_trained_beyond_the_original_length_is_what_the_exported_model_answers(
    base: Artifact, tmp_path: Path
) -> None:
    """Trained with YaRN on rows of 600 tokens, merged, loaded from the published files alone: the same logits at
    positions that the base never had."""
    prepared = make_long_rows(tmp_path / "prepared")
    config = tiny.sft_config(
        model=MODEL, method={**tiny.METHOD, "lora": {**tiny.METHOD["lora"], "lora_dropout": 0.0}}, max_length=1024,
        max_steps=2, batch_size=2,
    )  # fmt: skip
    out = tmp_path / "adapter"
    facts = SFT_STAGE.run(
        config, out=out, base=base, prepared=prepared, machine=tiny.machine(), tracker=tiny.Silent(), say=quiet
    )
    adapter = Artifact(out, {"stage": "sft", "digest": "a", "config": config, "facts": facts})
    (out / "manifest.json").write_text(json.dumps(adapter.manifest))
    merge.merge_adapter(base.path, read(out).path, tmp_path / "merged", say=quiet)
    ids = torch.randint(5, 260, (1, 4 * ORIGINAL), generator=torch.Generator().manual_seed(3))
    trained = load_adapter(load_base(base, Model.model_validate(MODEL), None, device=CPU), adapter)
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "merged/model", dtype=torch.float32).eval()
    with torch.inference_mode():
        ours, theirs = (m(input_ids=ids, use_cache=False).logits[0, ORIGINAL:] for m in (trained, published))
        plain = load_base(base, Model.model_validate({**MODEL, "rope_parameters": None}), None, device=CPU)
        without = load_adapter(plain, adapter)(input_ids=ids, use_cache=False).logits[0, ORIGINAL:]
    assert (ours - theirs).abs().max() < 2e-4 * ours.abs().max()
    assert (ours - without).abs().max() > 0.05 * ours.abs().max()


def make_long_rows(directory: Path) -> Artifact:
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir()
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(6):
        ids = torch.randint(5, 260, (600,), generator=draw).tolist()
        labels = [-100] * 590 + ids[590:]
        rows.append({"id": f"row-{number}", "task": "t", "input_ids": ids, "labels": labels, "mode": "plain"})
    for name in ("train", "valid"):
        pq.write_table(pa.Table.from_pylist(rows), directory / f"sft_{name}.parquet")
    return Artifact(directory, {"stage": "prepare", "digest": "long", "facts": {}})


@pytest.mark.parametrize(
    ("words", "path", "typed"),
    [
        (["model=qwen3_32b", "sft.max_length=131072"], "sft.max_length", "model=qwen3_32b_128k"),
        (["model=qwen3_32b_128k", "sft.max_length=140000"], "sft.max_length", "model.rope_parameters.factor=5"),
        (["model=tiny_qwen3", "sft.max_length=50000"], "sft.max_length", "model.rope_parameters={factor: 2, original"),
        (["model=qwen3_32b_128k", "model.rope_parameters.factor=1.1", "cpt.max_length=1024", "sft.max_length=1024"],
         "model.rope_parameters.factor", "factor=2"),
        (["model=qwen3_32b_128k", "model.rope_parameters.original_max_position_embeddings=65536"],
         "model.rope_parameters.original_max_position_embeddings", "=40960"),
    ],
)  # fmt: skip
def test_a_length_that_no_position_was_trained_for_is_refused_with_what_to_type(
    words: list[str], path: str, typed: str
) -> None:
    problems = check(load(["recipe=maintenance", "machine=h100x8", *words]))
    (problem,) = [problem for problem in problems if problem.path == path]
    assert typed in problem.fix


def test_yarn_changes_the_identity_of_what_is_trained_with_it() -> None:
    from finetune import dpo, pairs, sft, train
    from finetune.artifacts import canonical_json

    def key(config: Any, *words: str) -> str:
        return canonical_json(train.identity(load(["recipe=legal", "model=qwen3_32b", *words]), config))

    yarn = "model.rope_parameters={factor: 4, original_max_position_embeddings: 32768}"
    for config in (sft.CptConfig, sft.Config, pairs.Config, dpo.Config, merge.Config):
        assert key(config) != key(config, yarn)
