"""MERGE against PEFT's own merge_and_unload: every kind of adapter, the same bits, whole or in blocks of rows."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import ALL_LINEAR, make_adapter, make_base, weights
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from finetune import merge
from finetune.adapter import Adapter
from finetune.artifacts import hash_file
from finetune.deltas import Change, Update, cuts
from finetune.errors import RecipeError
from finetune.shards import read_header
from finetune.verify import verify


def quiet(_: str) -> None:
    pass


def merged_by_peft(base: Path, *adapters: Path) -> torch.nn.Module:
    """One adapter after the other, each into what the one before left; every tensor in the base's own number format."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model.load_state_dict(weights(base), strict=False, assign=True)
    model.tie_weights()
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def assert_same(directory: Path, model: torch.nn.Module) -> None:
    merged, expected = weights(directory), dict(model.state_dict())
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"] is (
        model.config.tie_word_embeddings
    )
    assert set(merged) == set(expected)
    for name, tensor in expected.items():
        assert merged[name].dtype == tensor.dtype, name
        assert torch.equal(merged[name], tensor), name


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in directory.iterdir()}


LORAS = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 3},
    "patterns": {"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"v_proj": 3, "k_pro.": 5}},
    "dora": {"use_dora": True},
    "dora, rslora and patterns": {"use_dora": True, "use_rslora": True, "rank_pattern": {"k_proj": 8}},
    "head saved whole": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]},
    "norms, a layer's mlp, embedding and head saved whole": {
        "target_modules": ["q_proj"], "modules_to_save": ["norm", "layers.1.mlp", "embed_tokens", "lm_head"],
    },
    "some layers only": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "an expression": {"target_modules": r".*\.layers\.0\..*(q|down)_proj", "exclude_modules": ["mlp.down_proj"]},
    "rows of tokens": {"target_modules": ["v_proj"], "trainable_token_indices": [7, 0, 300, 64]},
}  # fmt: skip


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    made = {}

    def base(kind: str, tied: bool, dtype: torch.dtype) -> Path:
        if (kind, tied, dtype) not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind, tied, dtype] = make_base(folder, kind=kind, tied=tied, dtype=dtype)
        return made[kind, tied, dtype]

    return base


SHAPES = [
    *((kind, tied, dtype) for kind in ("qwen3", "llama") for tied in (False, True)
      for dtype in (torch.bfloat16, torch.float32)),
    ("qwen3", False, torch.float16),
]  # fmt: skip


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS.keys())
@pytest.mark.parametrize(("kind", "tied", "dtype"), SHAPES)
def test_merged_bytes_equal_those_of_peft_whole_and_in_blocks_of_rows(tmp_path, base_of, kind, tied, dtype, lora):
    base = base_of(kind, tied, dtype)
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    _train_tokens(adapter)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert_same(tmp_path / "out/model", merged_by_peft(base, adapter))
    assert hash_file(tmp_path / "out/model/model.safetensors") != hash_file(base / "model.safetensors")
    (tmp_path / "blocks").mkdir()
    merge.write_merged(base, [adapter], tmp_path / "blocks", identity="x", say=quiet, block_bytes=1)
    assert hashes(tmp_path / "blocks/model") == hashes(tmp_path / "out/model")


def _train_tokens(adapter: Path) -> None:
    """PEFT starts trained tokens as copies of the base's rows: give them numbers of their own."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "trainable_tokens" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


UNTIED = {
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embedding alone": {"target_modules": ["q_proj", "embed_tokens"]},
    "DoRA on the head": {"target_modules": ["lm_head"], "use_dora": True},
    "tokens of embedding and head": {
        "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [9, 5], "lm_head": [70]},
    },
}  # fmt: skip


@pytest.mark.parametrize("lora", UNTIED.values(), ids=UNTIED.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_an_untied_embedding_and_head_are_merged_as_peft_does(tmp_path, base_of, dtype, lora):
    base = base_of("qwen3", False, dtype)
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    _train_tokens(adapter)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert_same(tmp_path / "out/model", merged_by_peft(base, adapter))


TIED = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head with DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both, tied in training": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "embedding saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("lora", TIED.values(), ids=TIED.keys())
def test_a_tied_head_that_is_trained_apart_is_untied_and_answers_as_the_adapter(tmp_path, lora, shards):
    """transformers#45127: the flag stayed true and the model repeated one token. PEFT's own merge adds a LoRA on one of
    the two to both: on this model its logits are then 3 to 10 away from the adapter's."""
    base = make_base(tmp_path / "base", tied=True, dtype=torch.float32, shards=shards)
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    summary = merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert summary["untied"]
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(ids).logits
        merged, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model", output_loading_info=True)
        assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert not merged.config.tie_word_embeddings
        torch.testing.assert_close(merged(ids).logits, trained, rtol=1e-4, atol=1e-4)
    assert not verify(tmp_path / "out/model", deep=True)


def test_embedding_and_head_that_were_saved_alike_stay_tied(tmp_path, base_of):
    base = base_of("llama", True, torch.bfloat16)
    lora = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    assert not merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)["untied"]
    assert_same(tmp_path / "out/model", merged_by_peft(base, adapter))


def test_every_tensor_keeps_a_number_format_of_its_own(tmp_path, base_of):
    """MiniCPM-V#502, axolotl#1510: the format of sum and file was not controlled."""
    base = make_base(tmp_path / "base")
    tensors = weights(base)
    for name in tensors:
        if "norm" in name or "v_proj" in name:
            tensors[name] = tensors[name].float() * 1.01
        if "k_proj" in name:
            tensors[name] = tensors[name].half()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert {tensor.dtype for tensor in weights(tmp_path / "out/model").values()} == {
        torch.bfloat16, torch.float32, torch.float16
    }
    assert_same(tmp_path / "out/model", merged_by_peft(base, adapter))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_an_adapter_saved_in_half_precision_is_merged_as_peft_reads_it(tmp_path, base_of, dtype):
    base = base_of("qwen3", False, torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", use_dora=True)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert_same(tmp_path / "out/model", merged_by_peft(base, adapter))


STACK = [
    {"lora_alpha": 20},
    {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "up_proj"]},
    {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "o_proj"], "modules_to_save": ["lm_head", "norm"]},
]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_stacked_adapters_are_merged_one_after_the_other_and_recorded_in_that_order(tmp_path, base_of, tied):
    """LF#2588, LF#2111, peft#2264, ms-swift#7377: which adapters, in which order, was nowhere to be found."""
    base = base_of("qwen3", tied, torch.bfloat16)
    stack = [
        make_adapter(base, tmp_path / f"adapter{number}", seed=number + 1, strength=0.2, **lora)
        for number, lora in enumerate(STACK)
    ]
    summary = merge.merge_adapter(base, stack[0], tmp_path / "out", then=stack[1:], say=quiet)
    assert_same(tmp_path / "out/model", merged_by_peft(base, *stack))
    assert [adapter["name"] for adapter in summary["adapters"]] == ["adapter0", "adapter1", "adapter2"]
    assert [adapter["sha256"] for adapter in summary["adapters"]] == [
        hash_file(adapter / "adapter_model.safetensors") for adapter in stack
    ]
    assert [adapter["scalings"] for adapter in summary["adapters"]] == [[5.0], [6.0], [1.5]]
    merge.merge_adapter(base, stack[1], tmp_path / "other", then=[stack[0], stack[2]], say=quiet)
    assert_same(tmp_path / "other/model", merged_by_peft(base, stack[1], stack[0], stack[2]))
    q = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights(tmp_path / "out/model")[q], weights(tmp_path / "other/model")[q])


def test_a_later_adapter_that_brings_another_embedding_is_refused(tmp_path, base_of):
    """PEFT saves the embedding beside a LoRA on it and puts it back on loading: what came before would be undone."""
    base = base_of("qwen3", False, torch.bfloat16)
    first = make_adapter(base, tmp_path / "first", target_modules=["embed_tokens"])
    second = make_adapter(base, tmp_path / "second", target_modules=["embed_tokens"], seed=4)
    with pytest.raises(RecipeError, match="would be lost"):
        merge.merge_adapter(base, first, tmp_path / "out", then=[second], say=quiet)
    assert not (tmp_path / "out").exists()
    merge.merge_adapter(base, first, tmp_path / "one", say=quiet)
    second = make_adapter(tmp_path / "one/model", tmp_path / "second", target_modules=["embed_tokens"], seed=4)
    merge.merge_adapter(base, first, tmp_path / "out", then=[second], say=quiet)
    assert_same(tmp_path / "out/model", merged_by_peft(base, first, second))


@pytest.mark.parametrize("r", [1, 16, 64])
@pytest.mark.parametrize("kind", ["lora", "dora", "embedding"])
def test_matrices_as_big_as_real_ones_are_cut_without_changing_a_bit(tmp_path, kind, r):
    """A matrix product takes another kernel for few rows: the cuts must never be that small, wherever they fall."""
    rows, columns = 4099, 2048
    draw = torch.Generator().manual_seed(r)
    weight = torch.randn(rows, columns, generator=draw).to(torch.bfloat16)
    a, b = (torch.randn(r, rows if kind == "embedding" else columns, generator=draw),
            torch.randn(columns if kind == "embedding" else rows, r, generator=draw))  # fmt: skip
    magnitude = torch.rand(rows, generator=draw) + 1
    names = ("lora_embedding_A", "lora_embedding_B") if kind == "embedding" else ("lora_A", "lora_B")
    parts = {names[0]: a, names[1]: b} | ({"lora_magnitude_vector": magnitude} if kind == "dora" else {})
    save_file(parts, tmp_path / "a.safetensors")
    change = Change(Update("x", kind, 0.7, read_header(tmp_path / "a.safetensors")))
    if kind == "embedding":
        expected = weight + ((b @ a).T * 0.7).to(torch.bfloat16)
    else:
        expected = weight.float() + (b @ a) * 0.7
        if kind == "dora":
            expected = (magnitude / torch.linalg.norm(expected, dim=1)).view(-1, 1) * expected
        expected = expected.to(torch.bfloat16)
    for step in (64, 1024, rows):
        block = weight.clone()
        for first, last in cuts(0, rows, step):
            assert last - first >= 64
            change(block[first:last], first, last)
        assert torch.equal(block, expected), step


def test_apply_leaves_its_argument_as_it_was(tmp_path, base_of):
    base = base_of("qwen3", False, torch.bfloat16)
    adapter = Adapter.read(make_adapter(base, tmp_path / "adapter", target_modules=ALL_LINEAR))
    tensors = read_header(base / "model.safetensors")
    target, update = next(iter(adapter.plan(tensors).items()))
    weight = weights(base)[target]
    before = weight.clone()
    assert not torch.equal(adapter.apply(update, weight, 0, weight.shape[0]), before)
    assert torch.equal(weight, before)
