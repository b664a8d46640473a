"""Causal attention inside each document of a flat row, and nothing else: no padding, no mask, no leak.

A flat row is (1, tokens): documents one after another, `position_ids` starting again with each and `cu_seq_lens_q` with
their bounds, as TRL's padding-free collator makes it and as flash-attn's kernels read it. For `sdpa` and `eager`
transformers would build a (tokens, tokens) mask from the positions. A document at a time costs half of that for packs
of 2048 tokens and needs no mask that could be forgotten: without `cu_seq_lens_q` the call fails.
"""

import functools
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MASKED = ("sdpa", "eager")
"""What would need a mask to keep documents apart; flash_attention_2 and _3 read `cu_seq_lens_q` themselves."""


def attend_documents(model: Any) -> None:
    """Let `model` (a transformers decoder) take flat rows only; its implementation keeps its arithmetic."""
    name = model.config._attn_implementation
    if name in MASKED:
        # transformers builds no mask for a name that its table of masks does not know.
        ALL_ATTENTION_FUNCTIONS.register(f"documents_{name}", functools.partial(_attend, _KERNELS[name]))
        model.set_attn_implementation(f"documents_{name}")


def _attend(
    kernel: Any, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, *, scaling: float, dropout: float = 0.0, **given: Any,
) -> tuple[torch.Tensor, None]:
    """`query` is (1, heads, tokens, size), `key` and `value` have fewer heads; returns (1, tokens, heads, size)."""
    assert attention_mask is None, "a flat row has no padding to mask"
    assert given.get("sliding_window") is None, "a document is attended to as a whole"
    bounds = given.get("cu_seq_lens_q")
    assert bounds is not None, "where a document ends was not said: it would attend to its neighbour"
    sizes = _sizes_of(bounds)
    assert (query.size(0), query.size(2)) == (1, sum(sizes)), "not one flat row"
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    return torch.cat([kernel(*part, scaling=scaling, dropout=dropout).transpose(1, 2) for part in parts], 1), None


def _sizes_of(bounds: torch.Tensor) -> list[int]:
    """Tokens of each document, read from the device once a forward: every layer is given the same tensor, and on CUDA
    each reading waits for all work before it."""
    found: list[int] | None = getattr(bounds, "document_sizes", None)
    if found is None:
        found = bounds.document_sizes = bounds.diff().tolist()
    return found


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float, dropout: float
) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
    )


def _eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float, dropout: float
) -> torch.Tensor:
    """transformers' `eager_attention_forward`, without repeating keys and values for the heads that share them."""
    shared = query.unflatten(1, (key.size(1), -1))
    weights = torch.matmul(shared, key.unsqueeze(2).transpose(3, 4)) * scaling
    length = query.size(2)
    weights = weights + _later(1 << (length - 1).bit_length(), query.dtype, query.device)[:length, :length]
    weights = torch.nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout)
    return torch.matmul(weights, value.unsqueeze(2)).flatten(1, 2)


@functools.lru_cache(maxsize=32)
def _later(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(length, length): minus infinity where the key comes after the query. Kept for powers of two only."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)


_KERNELS = {"sdpa": _sdpa, "eager": _eager}
