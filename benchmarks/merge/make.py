"""Random checkpoints of real shapes and a LoRA adapter for each, written tensor by tensor."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from finetune import shards

RANK = 16


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model; `shard_bytes` is the largest file."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    shard_bytes: int
    head_dim: int = 128

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for module, shape in self.linear().items():
                yield f"model.layers.{layer}.{module}.weight", shape
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"model.layers.{layer}.{norm}.weight", (self.hidden,)
            for norm in ("q_norm", "k_norm"):
                yield f"model.layers.{layer}.self_attn.{norm}.weight", (self.head_dim,)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def linear(self) -> dict[str, tuple[int, int]]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (q, self.hidden), "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden), "self_attn.o_proj": (self.hidden, q),
            "mlp.gate_proj": (self.intermediate, self.hidden), "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }  # fmt: skip

    @property
    def bytes(self) -> int:
        return sum(2 * prod(shape) for _, shape in self.tensors())


SHAPES = {
    "Qwen3-1.7B": Shape(2048, 6144, 28, 16, 8, 151_936, tied=True, shard_bytes=2 << 30),
    "Qwen3-4B": Shape(2560, 9728, 36, 32, 8, 151_936, tied=True, shard_bytes=4 << 30),
    "Qwen3-32B, one layer": Shape(5120, 25_600, 1, 64, 8, 151_936, tied=False, shard_bytes=4 << 30),
    "small": Shape(1024, 3072, 4, 8, 4, 151_936, tied=False, shard_bytes=256 << 20),
}
"""The third has the biggest tensors (1.56 GB each) of the models here; the last is for the test."""


def make(shape: Shape, folder: Path) -> None:
    """`base/` and `adapter/` in `folder`, unless they are there. bfloat16, rank 16 on every linear layer."""
    if (folder / "made").exists():
        return
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True, exist_ok=True)
    adapter.mkdir(exist_ok=True)
    numbers = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02
    _write_base(shape, base, numbers.to(torch.bfloat16))
    parts = {}
    for layer in range(shape.layers):
        for module, (rows, columns) in shape.linear().items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            parts[f"{name}.lora_A.weight"] = _take(numbers, (RANK, columns), len(parts))
            parts[f"{name}.lora_B.weight"] = _take(numbers, (rows, RANK), len(parts))
    save_file(parts, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [module.rpartition(".")[2] for module in shape.linear()]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (folder / "made").touch()


def _write_base(shape: Shape, base: Path, numbers: torch.Tensor) -> None:
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, dimensions in shape.tensors():
        if sum(2 * prod(held) for _, held in groups[-1]) + 2 * prod(dimensions) > shape.shard_bytes:
            groups.append([])
        groups[-1].append((name, dimensions))
    weight_map, count = {}, 0
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        with (base / file).open("wb") as handle:
            handle.write(shards.header_bytes([(name, "BF16", dimensions) for name, dimensions in group]))
            for name, dimensions in group:
                count += 1
                left = prod(dimensions)
                while left:
                    piece = _take(numbers, (min(left, numbers.numel() // 2),), count)
                    handle.write(memoryview(piece.view(torch.uint8).numpy()))
                    left -= piece.numel()
                weight_map[name] = file
    index = {"metadata": {"total_size": shape.bytes}, "weight_map": weight_map}
    (base / shards.INDEX).write_text(json.dumps(index))
    config = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "dtype": "bfloat16",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary, "tie_word_embeddings": shape.tied, "rope_theta": 1_000_000.0,
        "max_position_embeddings": 40_960, "eos_token_id": 0,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    (base / "tokenizer.json").write_text('{"added_tokens": []}')
    (base / "tokenizer_config.json").write_text("{}")
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")


def _take(numbers: torch.Tensor, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    first = seed * 1009 % (numbers.numel() // 2)
    return numbers[first : first + prod(shape)].view(shape).clone()
