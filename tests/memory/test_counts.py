"""Parameter counts are exact, for the base and for the adapter."""

import pytest
import yaml

from finetune.config.load import CONFIGS
from finetune.config.model import Architecture
from finetune.errors import RecipeError
from finetune.memory import lora_parameters, parameters
from finetune.memory.counts import adapted_modules, quantised_bits, weight_bytes

ALL = {"r": 16, "target_modules": "all-linear"}


def architecture(name: str, **changes) -> Architecture:
    plain = yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())["model"]["architecture"]
    return Architecture(**plain | changes)


def test_qwen3_32b_has_the_published_number_of_parameters():
    counts = parameters(architecture("qwen3_32b"))
    # By hand: two 151,936 x 5,120 matrices; 64 layers of attention (2 x 5,120 x 8,192 + 2 x 5,120 x 1,024),
    # feed-forward (3 x 5,120 x 25,600), norms (2 x 5,120 + 2 x 128); one last norm.
    layer = 2 * 5120 * 8192 + 2 * 5120 * 1024 + 3 * 5120 * 25600 + 2 * 5120 + 2 * 128
    assert counts.total == 2 * 151_936 * 5120 + 64 * layer + 5120 == 32_762_123_264
    assert round(counts.linear / 1e9, 2) == 31.21
    assert counts.head == 777_912_320


@pytest.mark.parametrize(
    ("layers", "hidden", "feed_forward", "heads", "tied", "total_size"),
    [
        (36, 2560, 9728, 32, True, 8_044_936_192),
        (36, 4096, 12_288, 32, False, 16_381_470_720),
        (40, 5120, 17_408, 40, False, 29_536_614_400),
        (64, 5120, 25_600, 64, False, 65_524_246_528),
    ],
)
def test_bytes_equal_those_of_the_published_weights(layers, hidden, feed_forward, heads, tied, total_size):
    """`metadata.total_size` in model.safetensors.index.json of Qwen/Qwen3-4B, -8B, -14B and -32B: bfloat16."""
    shape = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": feed_forward}
    a = architecture("qwen3_32b", **shape, num_attention_heads=heads, tie_word_embeddings=tied)
    assert weight_bytes(a, "bfloat16", None) == total_size


def test_smollm2_has_the_published_number_of_parameters():
    assert parameters(architecture("smollm2_135m")).total == 134_515_008


def test_lora_on_all_linear_layers_of_qwen3_32b_has_134_million_parameters():
    a = architecture("qwen3_32b")
    assert len(adapted_modules(a, ALL)) == 448
    assert lora_parameters(a, ALL) == 134_217_728
    assert lora_parameters(a, ALL | {"r": 32}) == 2 * 134_217_728


def test_a_tied_head_is_counted_once():
    tied = parameters(architecture("qwen3_32b", tie_word_embeddings=True))
    assert tied.total == 32_762_123_264 - 777_912_320


def test_nf4_costs_4_127_bits_with_double_quantisation_and_4_5_without():
    assert quantised_bits({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}) == pytest.approx(4.127, abs=1e-3)
    assert quantised_bits({"load_in_4bit": True}) == 4.5


def test_bitsandbytes_leaves_embedding_head_and_norms_in_bfloat16():
    a = architecture("qwen3_32b")
    counts = parameters(a)
    whole = weight_bytes(a, "bfloat16", {"load_in_4bit": True})
    assert whole == counts.linear * 4.5 / 8 + 2 * (counts.total - counts.linear)
    assert weight_bytes(a, "bfloat16", None) == 2 * counts.total


def test_an_adapter_on_no_layer_is_refused():
    with pytest.raises(RecipeError, match="names no layer"):
        lora_parameters(architecture("tiny_qwen3"), {"target_modules": ["query_proj"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_32b", "smollm2_135m", "tiny_qwen3"])
def test_counts_equal_those_of_transformers_models(name):
    assert parameters(architecture(name)).total == sum(p.numel() for p in meta_model(name).parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    [
        ALL,
        {"r": 8, "target_modules": ["q_proj", "down_proj"]},
        {"r": 8, "target_modules": r".*layers\.[01]\.mlp\.(gate|up)_proj"},
        {"r": 8, "target_modules": ["v_proj", "lm_head"]},
        ALL | {"use_dora": True},
        ALL | {"rank_pattern": {"q_proj": 4, r"layers\.3\.mlp\.up_proj": 2}},
        ALL | {"exclude_modules": ["o_proj"]},
        {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [0, 5]},
        ALL | {"modules_to_save": ["lm_head"]},
        {"r": 4},
    ],
)
def test_adapter_counts_equal_those_of_peft(lora):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(meta_model("tiny_qwen3", num_hidden_layers=6), LoraConfig(task_type="CAUSAL_LM", **lora))
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_parameters(architecture("tiny_qwen3", num_hidden_layers=6), lora) == expected


def meta_model(name: str, **changes):
    """The model of a config file with shapes but no memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape = architecture(name, **changes).model_dump()
    classes = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config, model = classes[shape.pop("model_type")]
    with torch.device("meta"):
        return model(config(**shape))
