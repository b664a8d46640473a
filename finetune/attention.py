"""Causal attention inside each document of a flat row, and nothing else: no mask, no leak.

A flat row is (1, tokens): documents one after another, `position_ids` starting again with each and `cu_seq_lens_q` with
their bounds, as TRL's padding-free collator makes it and as flash-attn's kernels read it. For `sdpa` and `eager`
transformers would build a (tokens, tokens) mask from the positions. A document at a time costs half of that for packs
of 2048 tokens and needs no mask that could be forgotten: without `cu_seq_lens_q` the call fails.

Short documents of like length are attended to together, each filled up on the right with its own last token: no token
looks to its right, and what stands in the places filled up is left out again.

A start that all documents share may stand in the row once, before them (`share_start`): none of its tokens looks past
it, so that its states are the same in every document, and what the documents send back to it adds up.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MASKED = ("sdpa", "eager")
"""What would need a mask to keep documents apart; flash_attention_2 and _3 read `cu_seq_lens_q` themselves."""

_SHORT = 512
"""Tokens: a longer document keeps a kernel busy by itself."""
_LIKE = 0.85
"""The shortest document of a group over its longest: at most 18 % of the places of a group are filled up."""


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
    groups = _groups_of(bounds)
    assert (query.size(0), query.size(2)) == (1, len(groups.home)), "not one flat row"
    rows = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, size)
    spread = (_Spread.apply(states, groups) for states in rows)
    parts = zip(*(states.split([count * length for count, length in groups.shapes]) for states in spread), strict=True)
    answers = []
    for (count, length), part in zip(groups.shapes, parts, strict=True):
        alike = (states.view(count, length, *states.shape[1:]).transpose(1, 2) for states in part)
        answers.append(kernel(*alike, scaling=scaling, dropout=dropout).transpose(1, 2).flatten(0, 1))
    return _Gather.apply(torch.cat(answers), groups)[None], None


# --- documents of like length together -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """Places for the tokens of a flat row, group after group and in a group document after document."""

    shapes: tuple[tuple[int, int], ...]
    """Of each group: documents, places of each."""
    source: torch.Tensor
    """(places,): the token that stands in a place."""
    home: torch.Tensor
    """(tokens,): the place of a token; of one that documents share, its place in one of them."""
    filled: torch.Tensor
    """Places that are nobody's home: filled up, or of the shared start in another document."""
    copies: torch.Tensor
    """(documents, shared): the places of the shared start."""


class _Spread(torch.autograd.Function):
    """Tokens (tokens, heads, size) to places. What was filled up has no gradient; where all documents took a token of
    their shared start, theirs are added, in float32 at least."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, groups: _Groups) -> torch.Tensor:
        ctx.groups = groups
        return states.index_select(0, groups.source)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        copies = ctx.groups.copies
        moved = gradients[0].index_select(0, ctx.groups.home)
        if copies.size(1):
            wide = torch.promote_types(moved.dtype, torch.float32)
            moved[: copies.size(1)] = gradients[0][copies].sum(0, dtype=wide)
        return moved, None


class _Gather(torch.autograd.Function):
    """Places to tokens; a place that is nobody's home gets no gradient."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, groups: _Groups) -> torch.Tensor:
        ctx.groups = groups
        return states.index_select(0, groups.home)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].index_select(0, ctx.groups.source).index_fill_(0, ctx.groups.filled, 0), None


def _groups_of(bounds: torch.Tensor) -> _Groups:
    """Read from the device once a forward: every layer is given the same tensor, and on CUDA each reading waits for
    all work before it."""
    found: _Groups | None = getattr(bounds, "document_groups", None)
    if found is None:
        found = bounds.document_groups = _group(bounds.diff().tolist(), bounds.device)
    return found


def share_start(bounds: torch.Tensor, shared: int) -> torch.Tensor:
    """The bounds of documents whose first `shared` tokens stand in the row once, before the rest of the first document,
    of the second, and so on."""
    marked: Any = bounds.clone()
    marked.document_groups = _group(bounds.diff().tolist(), bounds.device, shared)
    result: torch.Tensor = marked
    return result


def _group(sizes: list[int], device: torch.device, shared: int = 0) -> _Groups:
    """Documents of `sizes` tokens by length, the longest first; a new group begins where one is too short for it."""
    starts = torch.tensor([0, *(size - shared for size in sizes)]).cumsum(0).tolist()
    groups: list[list[int]] = []
    for document in sorted(range(len(sizes)), key=lambda document: -sizes[document]):
        longest = sizes[groups[-1][0]] if groups else 0
        if not groups or longest > _SHORT or sizes[document] < _LIKE * longest:
            groups.append([])
        groups[-1].append(document)
    source, filled, copies, home = [], [], [], torch.empty(shared + starts[-1], dtype=torch.long)
    place = 0
    for group in groups:
        width = torch.arange(sizes[group[0]])
        for document in group:
            start, size = starts[document], sizes[document]
            source.append(torch.where(width < shared, width, start + width.clamp(max=size - 1)))
            copies.append(place + width[:shared])
            home[shared + start : start + size] = place + width[shared:size]
            filled.append(place + width[size:])
            if len(copies) > 1:
                filled.append(copies[-1])
            place += len(width)
    home[:shared] = copies[0]
    shapes = tuple((len(group), sizes[group[0]]) for group in groups)
    places = (torch.cat(source), home, torch.cat(filled), torch.stack(copies))
    return _Groups(shapes, *(index.to(device) for index in places))


# --- kernels: (documents, heads, length, size), keys and values with fewer heads -------------------------------------


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
    length, size = query.shape[2:]
    shared = query.size(0) * key.size(1)
    rows = query.reshape(shared, -1, size)  # query heads that share a key head, one after another
    later = _later(1 << (length - 1).bit_length(), query.dtype, query.device)[:length, :length]
    keys = key.reshape(shared, length, size).transpose(1, 2)
    weights = torch.baddbmm(later.repeat(rows.size(1) // length, 1), rows, keys, alpha=scaling)
    weights = torch.nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout)
    return torch.bmm(weights, value.reshape(shared, length, size)).view(query.shape)


@functools.lru_cache(maxsize=32)
def _later(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(length, length): minus infinity where the key comes after the query. Kept for powers of two only."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)


_KERNELS = {"sdpa": _sdpa, "eager": _eager}
