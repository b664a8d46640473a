"""One way to generate: batched decoding of token-id prompts in process, with its own KV cache and attention.

Evaluation asks the same few shapes again and again: many short prompts, few new tokens, often one long opening that
all share (the worked examples of a few-shot prompt). So the shared opening is computed and stored once however many
rows there are, rows are sorted by length, finished rows leave the batch, the cache is written in place, and the head
is computed for the last position only.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ATTENTION = "finetune_shared_prefix"
_MIN_SHARED = 16
"""A shared opening shorter than this is not worth a forward pass of its own."""
_KEEP = 0.75
"""Rows are moved together when at most this share of the batch is still running: moving costs a copy of the cache."""

Shared = list[tuple["torch.Tensor", "torch.Tensor"]]
"""Keys and values of the shared opening, one pair for each layer, each of shape (kv_heads, tokens, head_dim)."""


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    batch_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    done: Mapping[int, list[int]] | None = None,
    on_batch: Callable[[dict[int, list[int]]], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[list[int]]:
    """Answer each prompt; a result ends with the stop id that ended it, or has max_new_tokens ids and none.

    model: a causal LM of transformers, or a PeftModel around one, in evaluation mode afterwards as before.
    temperature 0 takes the most likely token (the lowest id of equals); above 0, row i draws from its own stream made
    of (seed, i), so that what is drawn for a row does not depend on its neighbours.
    done: answers that an interrupted call already reported through `on_batch`. Batches are laid out over all prompts
    and a batch counts as done only as a whole, so that a resumed call computes exactly what an undisturbed one does.
    """
    assert max_new_tokens > 0, "nothing to generate"
    assert all(prompts), "an empty prompt has no last position to continue"
    answers: dict[int, list[int]] = {}
    finished = done or {}
    shared_tokens = common_prefix(prompts)
    batches = plan_batches([len(prompt) - shared_tokens for prompt in prompts], batch_tokens)
    began, made = time.monotonic(), 0
    with _decoding(model):
        shared: Shared | None = None
        for number, rows in enumerate(batches, 1):
            if all(row in finished for row in rows):
                answers.update({row: finished[row] for row in rows})
                continue
            if shared is None and shared_tokens:
                shared = _read_shared(model, prompts[0][:shared_tokens])
            suffixes = [prompts[row][shared_tokens:] for row in rows]
            streams = [_stream(seed, row) for row in rows] if temperature > 0 else None
            new = _decode_batch(
                model,
                suffixes,
                shared=shared,
                shared_tokens=shared_tokens,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                pad_id=pad_id,
                temperature=temperature,
                streams=streams,
            )
            batch = dict(zip(rows, new, strict=True))
            answers.update(batch)
            made += sum(map(len, new))
            if on_batch is not None:
                on_batch(batch)
            if say is not None:
                rate = made / max(time.monotonic() - began, 1e-9)
                say(f"batch {number}/{len(batches)}: {len(answers)}/{len(prompts)} answers, {rate:.0f} tokens/s")
    return [answers[row] for row in range(len(prompts))]


def fold_adapter(model: Any) -> None:
    """Add the adapter to the weights in memory, by PEFT's own rule: the very weights that MERGE writes to disk.

    Decoding through a float32 adapter costs about twice the CPU time (SmolLM2-135M, r 16, all linear layers,
    32 rows). A 4-bit base is left as it is, because its weights cannot hold the sum.
    Afterwards the base cannot be had back exactly: ask it before.
    """
    from finetune.base import quantised_modules

    if not quantised_modules(model):
        model.merge_adapter()


class Kept:
    """Answers written as they come, one line a batch, so that a killed stage goes on where it was.

    The file belongs to a `.partial` directory, whose name is the hash of everything that decides the answers. A torn
    last line (killed while writing) is cut off and its batch is generated again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._answers: dict[str, dict[int, list[int]]] = {}
        whole = 0
        if file.exists():
            content = file.read_bytes()
            whole = content.rfind(b"\n") + 1
            for line in content[:whole].splitlines():
                part = json.loads(line)
                rows = {int(row): ids for row, ids in part["rows"].items()}
                self._answers.setdefault(part["of"], {}).update(rows)
            os.truncate(file, whole)

    def of(self, name: str) -> dict[int, list[int]]:
        """Row -> token ids already generated for this set of prompts."""
        return self._answers.get(name, {})

    def add(self, name: str, rows: Mapping[int, list[int]]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"of": name, "rows": {str(row): ids for row, ids in rows.items()}}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._answers.setdefault(name, {}).update(rows)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the opening that all prompts share, leaving each at least one token of its own; 0 if not worth it."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts, key=list), max(prompts, key=list)
    limit = min(map(len, prompts)) - 1
    length = next((i for i in range(limit) if first[i] != last[i]), limit)
    return length if length >= _MIN_SHARED else 0


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers, longest first (so that too large a batch fails at once), rows x longest <= batch_tokens.

    A single row longer than batch_tokens is a batch of its own. The order depends on nothing but the arguments.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _decode_batch(
    model: Any,
    suffixes: Sequence[Sequence[int]],
    *,
    shared: Shared | None,
    shared_tokens: int,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    temperature: float,
    streams: list[random.Random] | None,
) -> list[list[int]]:
    import torch

    device = model.device
    longest = max(map(len, suffixes))
    pads = torch.tensor([longest - len(suffix) for suffix in suffixes], device=device)
    ids = torch.tensor([[pad_id] * (longest - len(suffix)) + list(suffix) for suffix in suffixes], device=device)
    columns = torch.arange(longest + max_new_tokens, device=device)
    real = columns[None, :] >= pads[:, None]
    # A pad position attends to itself, so that no row of the softmax is empty (NaN); nothing ever attends to it.
    causal = columns[None, :longest] <= columns[:longest, None]
    itself = torch.eye(longest, dtype=torch.bool, device=device)
    mask = (causal[None] & real[:, None, :longest] | itself[None])[:, None]
    positions = (columns[None, :longest] - pads[:, None]).clamp(min=0) + shared_tokens
    cache = _Slab(longest + max_new_tokens)

    answers: list[list[int]] = [[] for _ in suffixes]
    running = list(range(len(suffixes)))
    width = longest
    while True:
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=shared,
        ).logits[:, -1]
        chosen = _choose(logits, temperature, [streams[row] for row in running] if streams is not None else None)
        going = []
        for place, (row, token) in enumerate(zip(running, chosen, strict=True)):
            # A row that is done may still sit in the batch until enough have left.
            if answers[row] and (answers[row][-1] in stop_ids):
                continue
            answers[row].append(token)
            if token not in stop_ids:
                going.append(place)
        width += 1
        if not going or width == longest + max_new_tokens:
            return answers
        if len(going) <= _KEEP * len(running):
            kept = torch.tensor(going, device=device)
            cache.keep(kept)
            real, positions = real[kept], positions[kept]
            running, chosen = [running[place] for place in going], [chosen[place] for place in going]
        ids = torch.tensor(chosen, device=device)[:, None]
        positions = positions[:, -1:] + 1
        mask = real[:, None, None, :width]


def _choose(logits: "torch.Tensor", temperature: float, streams: list[random.Random] | None) -> list[int]:
    import torch

    if streams is None:
        return list(logits.argmax(dim=-1).tolist())
    # One uniform number a row and step, through the inverse of the cumulated distribution, in float64: the draw of a
    # row then depends on its own stream and logits alone.
    total = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    points = torch.tensor([[stream.random()] for stream in streams], dtype=torch.float64, device=logits.device)
    drawn = torch.searchsorted(total, points * total[:, -1:], right=True)[:, 0]
    return list(drawn.clamp(max=logits.shape[-1] - 1).tolist())


def _stream(seed: int, row: int) -> random.Random:
    # Not Random(seed + row): neighbouring seeds would share rows' streams.
    return random.Random(hashlib.sha256(f"{seed}:{row}".encode()).digest())  # noqa: S311 - draws answers, no secrets


def _read_shared(model: Any, opening: Sequence[int]) -> Shared:
    import torch

    cache = _Slab(len(opening))
    ids = torch.tensor([list(opening)], device=model.device)
    causal = torch.ones(len(opening), len(opening), dtype=torch.bool, device=model.device).tril()[None, None]
    positions = torch.arange(len(opening), device=model.device)[None]
    model(
        input_ids=ids,
        attention_mask=causal,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        shared_prefix=None,
    )
    return [(keys[0], values[0]) for keys, values in cache.stored]


class _Slab:
    """A KV cache whose memory is taken once: transformers' DynamicCache copies all of it at every token.

    It has what a decoder asks of a cache (`update`, `get_seq_length`) and no more.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.stored: Shared = []
        self.used: list[int] = []

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", layer_idx: int, *_: Any, **__: Any
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        if layer_idx == len(self.stored):
            batch, heads, _tokens, size = key_states.shape
            self.stored.append(
                (
                    key_states.new_empty(batch, heads, self.capacity, size),
                    value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1]),
                )
            )
            self.used.append(0)
        keys, values = self.stored[layer_idx]
        begin, end = self.used[layer_idx], self.used[layer_idx] + key_states.shape[2]
        keys[:, :, begin:end], values[:, :, begin:end] = key_states, value_states
        self.used[layer_idx] = end
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.used[layer_idx] if layer_idx < len(self.used) else 0

    def keep(self, rows: "torch.Tensor") -> None:
        """Drop all rows of the batch but these."""
        self.stored = [(keys[rows], values[rows]) for keys, values in self.stored]


def _attend(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor",
    scaling: float,
    dropout: float = 0.0,
    shared_prefix: Shared | None = None,
    **_: Any,
) -> tuple["torch.Tensor", None]:
    """Attention of (batch, heads, new, head_dim) queries to the shared opening and to the row's own keys.

    One softmax (float32) runs over both parts, so the result is that of a cache holding the opening in every row; the
    opening's part is one matrix product for the whole batch. Query heads are folded onto their key-value head, where
    transformers' sdpa and eager paths copy keys and values once for each query head at every token.
    attention_mask: bool, (batch, 1, new, own keys), True where a key may be seen; the opening is seen by all.
    """
    import torch

    batch, heads, new, size = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    if shared_prefix is None and new > 1:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=heads != kv_heads
        )
        return mixed.transpose(1, 2).contiguous(), None
    fold = heads // kv_heads * new
    folded = (query * scaling).reshape(batch, kv_heads, fold, size)
    own = torch.matmul(folded, key.transpose(2, 3)).view(batch, kv_heads, heads // kv_heads, new, length)
    own = own.masked_fill_(~attention_mask[:, :, None], float("-inf")).view(batch, kv_heads, fold, length)
    if shared_prefix is None:
        weights = own.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        mixed = torch.matmul(weights, value)
    else:
        shared_keys, shared_values = shared_prefix[module.layer_idx]
        opening = shared_keys.shape[1]
        rows = folded.transpose(0, 1).reshape(kv_heads, batch * fold, size)
        common = torch.matmul(rows, shared_keys.transpose(1, 2))
        common = common.view(kv_heads, batch, fold, opening).transpose(0, 1)
        weights = torch.cat([common, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        to_common = weights[..., :opening].transpose(0, 1).reshape(kv_heads, batch * fold, opening)
        mixed = torch.matmul(to_common, shared_values).view(kv_heads, batch, fold, size).transpose(0, 1)
        mixed = mixed + torch.matmul(weights[..., opening:], value)
    mixed = mixed.reshape(batch, heads, new, size)
    return mixed.transpose(1, 2).contiguous(), None


@contextmanager
def _decoding(model: Any) -> Iterator[None]:
    """Evaluation mode and our attention inside, what was there before outside."""
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention, training = core.config._attn_implementation, model.training
    core.set_attn_implementation(_ATTENTION)
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        core.set_attn_implementation(attention)
        model.train(training)
