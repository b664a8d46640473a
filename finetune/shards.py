"""safetensors files read by their headers: names, dtypes, shapes and byte ranges, without torch and without mmap.

Format: 8 bytes little-endian length of the header, the header as JSON, then the tensors
(https://github.com/huggingface/safetensors#format).
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from finetune.errors import RecipeError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WIDTH: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes of one element."""
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `start` and `end` are absolute byte positions in `file`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


def read_header(file: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file in file order. Raises RecipeError when the file is torn or not safetensors."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = struct.unpack("<Q", handle.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise _torn(file, f"its header claims {length} bytes of {size}")
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise _torn(file, f"its header is not JSON ({error})") from error
    begin = 8 + length
    tensors = []
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if not all(type(number) is int for number in (start, end, *shape)):
                raise _torn(file, f"{name} has places or a shape that are no whole numbers")
            if not 0 <= start <= end <= size - begin:
                raise _torn(file, f"{name} ends at byte {begin + end} of {size}")
            width = WIDTH.get(entry["dtype"])
            if width is not None and end - start != width * prod(shape):
                raise _torn(file, f"{name} has {end - start} bytes for shape {list(shape)} of {entry['dtype']}")
            tensors.append(Tensor(name, file, entry["dtype"], shape, begin + start, begin + end))
    except (AttributeError, KeyError, TypeError) as error:
        raise _torn(file, f"its header is not a safetensors header ({error!r})") from error
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.name))}


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The start of a safetensors file that holds `(name, dtype, shape)` in this order, padded to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + WIDTH[dtype] * prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def shard_names(directory: Path) -> list[str]:
    """The weight files that belong to the model in `directory`: the index's shards, or the single file.

    Raises RecipeError when there are none, when a shard is missing, or when it is undecided which are meant.
    """
    index, single = directory / INDEX, directory / SINGLE
    if not index.exists():
        if single.exists():
            return [SINGLE]
        raise RecipeError.one(
            str(directory), None, f"there is neither {SINGLE} nor {INDEX}",
            "give a Hugging Face model directory with safetensors weights (other formats are not read)",
        )  # fmt: skip
    names = sorted(set(weight_map(directory).values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise RecipeError.one(str(index), missing, "the index names files that are not there", "copy them again")
    if single.exists() and SINGLE not in names:
        raise RecipeError.one(
            str(index), None, f"a {SINGLE} stands beside shards of another save, and servers disagree which they load",
            f"remove the stale ones ({SINGLE}, or {INDEX} and its shards)",
        )  # fmt: skip
    return names


def weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> shard, as the index says it."""
    try:
        found = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError.one(
            str(directory / INDEX), None, f"the index cannot be read ({error!r})", "copy the model again"
        ) from error
    return {str(name): str(shard) for name, shard in found.items()}


def _torn(file: Path, what: str) -> RecipeError:
    return RecipeError.one(str(file), None, f"not a complete safetensors file: {what}", "copy or make the file again")
