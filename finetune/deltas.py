"""What one adapter does to one tensor of the base, rows by rows, bit for bit as PEFT's merge_and_unload() does it.

Every sum and product is taken in float32 in PEFT's order; only what a cache holds is worked on at once, which is
several times faster than whole tensors and does not change a bit: each element depends on its own row alone.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.errors import RecipeError
from finetune.shards import Tensor

if TYPE_CHECKING:
    import torch

DTYPE: Mapping[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""safetensors' name of a number format that can be merged -> torch's."""
FEWEST_ROWS = 64
"""Below 16 rows the matrix product takes another kernel with another order of summation (seen with MKL on AVX-512 for
1, 2 and 8 rows). Cuts at multiples of 64 rows also keep slices aligned as whole matrices are."""
_CACHED = 1 << 18
"""float32 elements worked on at once: 1 MiB. Of 0.5 to 128 MiB it was the fastest, five times as fast as the last."""


@dataclass(frozen=True)
class Update:
    """What happens to one base tensor: `kind` lora (rows += scale * B A), embedding (the same, transposed), dora,
    replace (modules_to_save) or tokens (rows `tokens` replaced). `roles` maps a role to the adapter's tensor."""

    target: str
    kind: str
    scale: float
    roles: Mapping[str, Tensor]
    tokens: tuple[int, ...] = ()


class Change:
    """An update with its small tensors in memory, ready for many blocks of rows and several threads.

    `own_base`: the adapter's copy of an embedding or head (PEFT saves one beside a LoRA on it) takes the base's place,
    as in PEFT. Without it that copy has to be what is merged into, or what came before would be lost.
    """

    def __init__(self, update: Update, *, own_base: bool = True) -> None:
        whole = ("whole", "base_layer")
        self._update, self._own_base = update, own_base
        self._held = {role: read_tensor(tensor).float() for role, tensor in update.roles.items() if role not in whole}

    def __call__(self, block: "torch.Tensor", first: int, last: int) -> None:
        """Merge rows [first, last) of the base tensor, which `block` holds, in place."""
        update = self._update
        if "whole" in update.roles:
            block.copy_(read_rows(update.roles["whole"], first, last))
            return
        if "base_layer" in update.roles:
            self._take_own(block, read_rows(update.roles["base_layer"], first, last))
        if update.kind == "tokens":
            for row, token in enumerate(update.tokens):
                if first <= token < last:
                    block[token - first].copy_(self._held["tokens"][row])
            return
        merge = self._embedding if update.kind == "embedding" else self._linear
        for begin, end in cuts(first, last, _CACHED // max(1, block.shape[1])):
            merge(block[begin - first : end - first], begin, end)

    def _linear(self, rows: "torch.Tensor", first: int, last: int) -> None:
        import torch

        merged = torch.mm(self._held["lora_B"][first:last], self._held["lora_A"])
        merged.mul_(self._update.scale).add_(rows)
        if self._update.kind == "dora":
            # DoRA (2402.09353, section 4.3): the norm of each row of the merged direction is divided out.
            norm = torch.linalg.norm(merged, dim=1)
            merged.mul_((self._held["lora_magnitude_vector"][first:last] / norm).view(-1, 1))
        rows.copy_(merged)

    def _embedding(self, rows: "torch.Tensor", first: int, last: int) -> None:
        import torch

        delta = torch.mm(self._held["lora_embedding_B"], self._held["lora_embedding_A"][:, first:last])
        # PEFT rounds the delta of an embedding before adding it, unlike that of a linear layer.
        rows.add_(delta.mul_(self._update.scale).T.to(rows.dtype))

    def _take_own(self, block: "torch.Tensor", own: "torch.Tensor") -> None:
        import torch

        own = own.to(block.dtype)
        if self._own_base:
            block.copy_(own)
        elif not torch.equal(own, block):
            raise RecipeError.one(
                self._update.target, None,
                "the adapter brings a copy of this tensor that is not what it would be merged into, and one of the two"
                " would be lost", "give the base (and the adapters before it) that this adapter was trained on",
            )  # fmt: skip


def cuts(first: int, last: int, rows_at_once: int) -> Iterator[tuple[int, int]]:
    """[first, last) in ranges of about `rows_at_once` rows, at multiples of 64 from `first` and never fewer than 64
    unless there are fewer. A range without rows is one empty range."""
    step = max(FEWEST_ROWS, rows_at_once // FEWEST_ROWS * FEWEST_ROWS)
    edges = [*range(first, last - FEWEST_ROWS + 1, step)] or [first]
    return itertools.pairwise([*edges, last])


def hash_tensor(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, read piece by piece."""
    import torch

    digest = hashlib.sha256()
    for part in cuts(0, tensor.shape[0], (32 << 20) // max(1, row_bytes(tensor))):
        digest.update(memoryview(read_rows(tensor, *part).reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def row_bytes(tensor: Tensor) -> int:
    return tensor.bytes // tensor.shape[0] if tensor.shape and tensor.shape[0] else tensor.bytes


def read_tensor(tensor: Tensor) -> "torch.Tensor":
    """One tensor in memory of its own: a memory map would count the whole file as resident."""
    return read_rows(tensor, 0, tensor.shape[0] if tensor.shape else 1)


def read_rows(tensor: Tensor, first: int, last: int, buffer: "torch.Tensor | None" = None) -> "torch.Tensor":
    """Rows [first, last), in `buffer` (bytes) when one is given; bytes [n] for formats that are not merged.

    A tensor without dimensions has one row. Memory comes from torch: its alignment is part of what makes a matrix
    product repeatable.
    """
    import torch

    stride = row_bytes(tensor)
    size = (last - first) * stride
    if buffer is None:
        buffer = torch.empty(size, dtype=torch.uint8)
    data = buffer[:size]
    with tensor.file.open("rb", buffering=0) as handle:
        handle.seek(tensor.start + first * stride)
        view, done = memoryview(data.numpy()), 0
        while done < size:
            count = handle.readinto(view[done:])
            if not count:
                raise RecipeError.one(str(tensor.file), None, "it ends early and was whole before", "copy it again")
            done += count
    if tensor.dtype not in DTYPE:
        return data
    shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
    return data.view(getattr(torch, DTYPE[tensor.dtype])).view(shape)
