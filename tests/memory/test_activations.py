"""What the planner says autograd keeps, against what autograd keeps."""

import pytest

from finetune.config.model import Architecture
from finetune.memory.device import kept_bytes

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}
ROWS, LENGTH = 4, 128


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("dtype", "float32_adapter", "masked", "attention"),
    [
        ("bfloat16", True, True, "sdpa"),
        ("bfloat16", True, False, "sdpa"),
        ("bfloat16", False, True, "sdpa"),
        ("float32", True, True, "sdpa"),
        ("bfloat16", True, True, "eager"),
    ],
)
def test_kept_activations_are_predicted_within_three_per_cent(kind, dtype, float32_adapter, masked, attention):
    lora = {"r": 16, "target_modules": "all-linear"}
    size = 2 if dtype == "bfloat16" else 4
    copy = 4 if float32_adapter and size == 2 else 0
    a = Architecture(model_type=kind, **SHAPE)
    layer = kept_bytes(a, attention, lora, size=size, copy=copy, masked=masked, length=LENGTH)
    last_norm = 4 * a.hidden_size
    predicted = ROWS * LENGTH * (a.num_hidden_layers * layer + last_norm)
    kept = measure(kind, dtype, float32_adapter, masked, attention, lora)
    assert predicted == pytest.approx(kept, rel=0.03)


def measure(kind, dtype, float32_adapter, masked, attention, lora) -> int:
    """Bytes of the storages that one forward through the decoder saves for its backward, weights left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    classes = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config, model_class = classes[kind]
    base = model_class(config(**SHAPE, attn_implementation=attention)).to(getattr(torch, dtype))
    adapter = LoraConfig(task_type="CAUSAL_LM", **lora)
    model = get_peft_model(base, adapter, autocast_adapter_dtype=float32_adapter).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(0, SHAPE["vocab_size"], (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    if masked:
        mask[0, 100:] = 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(size for size, _ in saved.values())
