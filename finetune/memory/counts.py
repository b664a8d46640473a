"""Parameters of a Qwen3 or Llama decoder and of the adapter that PEFT puts on it, exact."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.config.model import Architecture
from finetune.errors import RecipeError

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters."""

    embedding: int
    layer_linear: int
    """Weights of the linear layers of one decoder layer: what LoRA adapts and NF4 quantises."""
    layer_norm: int
    """Norm weights of one decoder layer."""
    layers: int
    final_norm: int
    head: int
    """0 when the head is tied to the embedding."""

    @property
    def linear(self) -> int:
        return self.layer_linear * self.layers

    @property
    def total(self) -> int:
        return self.embedding + self.linear + self.layer_norm * self.layers + self.final_norm + self.head


def linear_shapes(a: Architecture) -> dict[str, tuple[int, int]]:
    """Linear layer of one decoder layer -> (in features, out features), in the order of the forward pass."""
    q, kv = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    return {
        "q_proj": (a.hidden_size, q),
        "k_proj": (a.hidden_size, kv),
        "v_proj": (a.hidden_size, kv),
        "o_proj": (q, a.hidden_size),
        "gate_proj": (a.hidden_size, a.intermediate_size),
        "up_proj": (a.hidden_size, a.intermediate_size),
        "down_proj": (a.intermediate_size, a.hidden_size),
    }


def parameters(a: Architecture) -> Counts:
    """Parameters from the shape alone: Qwen3-32B has 32,762,123,264 (published as 32.8 B)."""
    # Qwen3 normalises each query and key head over head_dim, with one weight for all heads.
    head_norms = 2 * a.head_dim if a.model_type == "qwen3" else 0
    return Counts(
        embedding=a.vocab_size * a.hidden_size,
        layer_linear=sum(i * o for i, o in linear_shapes(a).values()),
        layer_norm=2 * a.hidden_size + head_norms,
        layers=a.num_hidden_layers,
        final_norm=a.hidden_size,
        head=0 if a.tie_word_embeddings else a.vocab_size * a.hidden_size,
    )


def adapted_modules(a: Architecture, lora: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Full module name -> (in, out) of every layer that `target_modules` names, with PEFT's matching rules.

    `all-linear` is every linear layer but the head; a string is a regular expression over the whole name; a list
    names endings. Raises RecipeError when nothing matches.
    """
    modules = {
        f"model.layers.{i}.{'self_attn' if name in _ATTENTION else 'mlp'}.{name}": shape
        for i in range(a.num_hidden_layers)
        for name, shape in linear_shapes(a).items()
    }
    target = lora.get("target_modules", ("q_proj", "v_proj"))
    if target == "all-linear":
        found = modules
    else:
        others = {"lm_head": (a.hidden_size, a.vocab_size), "model.embed_tokens": (a.vocab_size, a.hidden_size)}
        found = {name: shape for name, shape in {**modules, **others}.items() if _matches(name, target)}
    excluded = lora.get("exclude_modules")
    if excluded:
        found = {name: shape for name, shape in found.items() if not _matches(name, excluded)}
    layers = lora.get("layers_to_transform")
    if layers is not None:
        chosen = {layers} if isinstance(layers, int) else set(layers)
        found = {name: shape for name, shape in found.items() if _layer_of(name) in chosen}
    if not found:
        known = ", ".join(linear_shapes(a))
        raise RecipeError.one("method.lora.target_modules", target, "names no layer", f"all-linear, or some of {known}")
    return found


def lora_parameters(a: Architecture, lora: Mapping[str, Any]) -> int:
    """Trainable parameters of a LoRA adapter: r x (in + out) for each adapted layer, DoRA's magnitudes included."""
    rank, ranks = int(lora.get("r", 8)), lora.get("rank_pattern") or {}
    total = 0
    for name, (inputs, outputs) in adapted_modules(a, lora).items():
        r = next((int(v) for key, v in ranks.items() if re.fullmatch(rf"(.*\.)?({key})", name)), rank)
        total += r * (inputs + outputs) + (outputs if lora.get("use_dora") else 0)
        total += outputs if lora.get("lora_bias") else 0
    counts = parameters(a)
    whole = {"lm_head": a.vocab_size * a.hidden_size, "embed_tokens": counts.embedding}
    return total + sum(whole.get(name, 0) for name in lora.get("modules_to_save") or ())


def quantised_bits(bnb: Mapping[str, Any]) -> float:
    """Bits a weight, quantisation constants included (Dettmers et al. 2023, QLoRA, section 3).

    NF4 keeps a constant for each 64 weights: 32 bits, or with double quantisation 8 bits and 32 for each 256 of them.
    """
    if bnb.get("load_in_8bit"):
        return 8.0
    return 4 + (8 / 64 + 32 / (64 * 256) if bnb.get("bnb_4bit_use_double_quant") else 32 / 64)


def weight_bytes(a: Architecture, dtype: str, bnb: Mapping[str, Any] | None) -> int:
    """Bytes of the whole frozen base. bitsandbytes leaves embedding, head and norms as they are."""
    counts, size = parameters(a), DTYPE_BYTES[dtype]
    if not bnb:
        return counts.total * size
    return round(counts.linear * quantised_bits(bnb) / 8) + (counts.total - counts.linear) * size


def _matches(name: str, target: Any) -> bool:
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in target)


def _layer_of(name: str) -> int | None:
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None
