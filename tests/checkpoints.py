"""Tiny model directories with every file that a real one has, for tests of MERGE, PROOF, VERIFY and HANDOFF."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
VOCABULARY = 320

MODEL = {
    "name": "tests/tiny", "key": "tiny", "licence": "apache-2.0", "modes": ["plain", "think"],
    "architecture": {
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320,
        "tie_word_embeddings": False, "max_position_embeddings": 256,
    },
}  # fmt: skip
"""Section `model` of a recipe for the checkpoints made here (kind qwen3)."""
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_base(
    directory: Path, *, kind: str = "qwen3", tied: bool = False, dtype: torch.dtype = torch.bfloat16, shards: int = 1,
    seed: int = 0,
) -> Path:
    """A random 2-layer model with a byte-level tokenizer and a thinking template, in `directory`."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
        "tie_word_embeddings": tied, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }  # fmt: skip
    make = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    model = make[1](make[0](**shape)).to(dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(directory, max_shard_size=size if shards == 1 else size // shards + 4096)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"rope_theta": 10_000.0}))
    write_tokenizer(directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.6, "top_p": 0.95})
    )
    return directory


def write_tokenizer(directory: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
             "model_max_length": 256}
        )
    )  # fmt: skip
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def make_adapter(base: Path, directory: Path, *, seed: int = 1, strength: float = 0.1, **lora: Any) -> Path:
    """A PEFT adapter with random (not zero) B matrices for the model in `base`; keys of LoraConfig."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM"} | lora
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn_like(parameter) * strength)
            elif "magnitude" in name:
                parameter.mul_(1 + strength * torch.rand_like(parameter))
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * strength)
    model.save_pretrained(directory)
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model directory."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found
