"""How many requests fit: the memory arithmetic behind every vLLM command of a bundle.

A GPU gives vLLM `UTILISATION` of its memory; weights and a reserve go off, the rest holds keys and values:
2 (K and V) x layers x kv_heads x head_dim x bytes for each token of every running request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
UTILISATION = 0.90
"""Passed to vLLM as --gpu-memory-utilization, so that the figures do not hang on its default (0.92 in 0.32.0)."""
BLOCK = 16
"""Tokens in one block of vLLM's cache on a GPU; 128 on a CPU (seen in 0.32.0)."""
ROOM = 16
"""Requests of full length that one copy of the model should hold before a further GPU makes a further copy."""
KEPT_BACK = 0.1
"""Share of the cache that one request may not count on: vLLM refuses to start when its cache is smaller than one."""
W4A16_BITS = 4.125
"""Bits for each weight of a linear layer in W4A16: four, and one bfloat16 scale for each group of 128."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Card:
    """A kind of GPU. `reserve_gib` is assumed, not measured: activations of one batch, CUDA graphs, NCCL."""

    name: str
    gib: float
    reserve_gib: float
    max_num_seqs: int
    max_num_batched_tokens: int


LARGE = Card("80 GB", 79.0, 4.0, 256, 8192)
SMALL = Card("24 GB", 22.0, 2.0, 64, 2048)
"""Cards of 24 GB show 22 GiB (L4, A10) to 23.6 GiB; the smallest counts."""


@dataclass(frozen=True)
class Layout:
    """One way to spread a model over GPUs. `problem` says why it cannot be, and then no number means anything."""

    gpus: int
    card: Card
    tensor_parallel: int
    copies: int
    """Independent copies of the model, each on `tensor_parallel` GPUs (vLLM: --data-parallel-size)."""
    max_model_len: int
    weights_gib: float
    """On each GPU."""
    kv_tokens: int
    """Tokens of all running requests that one copy can hold."""
    problem: str = ""

    @property
    def requests(self) -> float:
        """Requests of full length that run at once, over all copies; shorter ones pack denser."""
        return self.copies * self.kv_tokens / _blocks(self.max_model_len)


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int:
    """Bytes of keys and values for one token in all layers; `config` is config.json of the checkpoint."""
    return 2 * int(config["num_hidden_layers"]) * _kv_heads(config) * _head_dim(config) * _BYTES[dtype]


def kv_tokens(budget: int, per_token: int, *, block: int = BLOCK) -> int:
    """Tokens that `budget` bytes hold, in whole blocks, as vLLM counts them."""
    return max(0, budget) // (per_token * block) * block


def weight_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def w4a16_bytes(config: Mapping[str, Any], dtype: str) -> int:
    """About what the checkpoint takes in W4A16: linear layers in 4 bits, embeddings and lm_head as they are."""
    hidden, inner, layers = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    attention = 2 * hidden * _head_dim(config) * (int(config["num_attention_heads"]) + _kv_heads(config))
    linear = layers * (attention + 3 * hidden * inner)
    tables = int(config["vocab_size"]) * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(linear * W4A16_BITS / 8 + tables * _BYTES[dtype])


def layout(
    config: Mapping[str, Any], weights: int, *, gpus: int, card: Card, max_model_len: int, dtype: str
) -> Layout:
    """As few GPUs to one copy as leave room for `ROOM` requests of full length; the other GPUs hold further copies."""
    found = [
        _one(config, weights, gpus=gpus, tensor_parallel=width, card=card, max_model_len=max_model_len, dtype=dtype)
        for width in range(1, gpus + 1)
        if gpus % width == 0 and divides(config, width)
    ]
    fitting = [one for one in found if not one.problem]
    return next((one for one in fitting if one.requests / one.copies >= ROOM), (fitting or found)[-1])


def divides(config: Mapping[str, Any], width: int) -> bool:
    """Whether vLLM can split this model over `width` GPUs: query heads and inner width divide, kv heads divide or are
    held several times."""
    kv = _kv_heads(config)
    whole = all(int(config[key]) % width == 0 for key in ("num_attention_heads", "intermediate_size"))
    return whole and (kv % width == 0 or width % kv == 0)


def _one(
    config: Mapping[str, Any], weights: int, *, gpus: int, tensor_parallel: int, card: Card, max_model_len: int,
    dtype: str,
) -> Layout:  # fmt: skip
    kv_heads = _kv_heads(config)
    # Fewer kv heads than GPUs: each GPU still holds one whole head.
    per_token = kv_bytes_per_token(config, dtype) // kv_heads * max(1, kv_heads // tensor_parallel)
    share = weights / tensor_parallel / GIB
    left = UTILISATION * card.gib - share - card.reserve_gib
    tokens = kv_tokens(int(left * GIB), per_token)
    length = min(max_model_len, int(tokens * (1 - KEPT_BACK)) // BLOCK * BLOCK)
    problem = ""
    if length < min(max_model_len, 1024):
        problem = (
            f"the weights take {share:.1f} GiB of each {card.name} GPU; of {UTILISATION:.0%} of {card.gib:g} GiB, less "
            f"a reserve of {card.reserve_gib:g} GiB, {max(0.0, left):.1f} GiB are left for keys and values: "
            f"{tokens:,} tokens"
        )
    return Layout(gpus, card, tensor_parallel, gpus // tensor_parallel, length, share, tokens, problem)


def _kv_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def _blocks(tokens: int) -> int:
    return max(1, -(-tokens // BLOCK)) * BLOCK
