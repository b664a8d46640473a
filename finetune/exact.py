"""float32 arithmetic on weights as they are stored: what is compared is the weights, not the rounding of a kernel.

A bfloat16 forward of SmolLM2 differs from itself by 1.9e-3 nats under another attention kernel, more than a right merge
may cost. So every matrix is widened (or dequantised, or read from disk) when it is used and let go afterwards: the
model in memory stays as large as it was, which is what makes it possible at 32 billion parameters.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.adapter import Adapter
from finetune.deltas import Update, read_tensor
from finetune.fourbit import RoundTrip, dequantised
from finetune.shards import Tensor, read_header, shard_names

if TYPE_CHECKING:
    import torch

Weight = Callable[[str, Any], "torch.Tensor"]
"""(name in the checkpoint without `.weight`, module) -> the matrix to compute with, in any number format."""
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ROWS = 8192
"""Rows of a matrix that are float32 at once: 168 MB of a head of width 5120."""


def stored(name: str, module: Any) -> "torch.Tensor":
    """The matrix that the module holds; that of a 4-bit module dequantised, as training used it."""
    weight: torch.Tensor = dequantised(module) if type(module).__name__ == "Linear4bit" else module.weight
    return weight


def compute_in_float32(model: Any, weight_of: Weight = stored) -> None:
    """From now on `model`, with or without a LoRA adapter on it, computes in float32; there is no way back.

    Every linear layer and embedding of the base asks `weight_of` each time it is used: another base is put into the
    same model by calling this again. Norms are widened in place; an adapter's own matrices are float32 already.
    """
    import torch

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    core.set_attn_implementation("sdpa")  # flash attention has no float32
    matrices = (torch.nn.Linear, torch.nn.Embedding)
    for path, module in model.named_modules():
        if isinstance(module, matrices) and ".lora_" not in path:
            name = path.removeprefix("base_model.model.").removesuffix(".base_layer")
            how = _linear if isinstance(module, torch.nn.Linear) else _embedding
            module.forward = partial(how, name, module, weight_of)
        elif not isinstance(module, matrices):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


def _linear(name: str, module: Any, weight_of: Weight, x: "torch.Tensor") -> "torch.Tensor":
    import torch

    weight = weight_of(name, module)
    parts = [torch.nn.functional.linear(x.float(), part.to(x.device).float()) for part in weight.split(_ROWS)]
    made = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return made if module.bias is None else made + module.bias.float()


def _embedding(name: str, module: Any, weight_of: Weight, ids: "torch.Tensor") -> "torch.Tensor":
    import torch

    weight = weight_of(name, module)
    return torch.nn.functional.embedding(ids.to(weight.device), weight).float().to(ids.device)


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a model directory by its name."""
    return {name: tensor for shard in shard_names(directory) for name, tensor in read_header(directory / shard).items()}


class _Plan:
    """An adapter's updates for the matrices of a base, by the names of modules."""

    def __init__(self, base_dir: Path, adapter: Adapter) -> None:
        tensors = tensors_of(base_dir)
        self.tied = _HEAD not in tensors
        self._tensors = tensors | ({_HEAD: replace(tensors[_EMBEDDING], name=_HEAD)} if self.tied else {})
        self._updates, self._adapter = adapter.plan(self._tensors), adapter

    def read(self, name: str) -> "torch.Tensor":
        return read_tensor(self._tensors[f"{name}.weight"])

    def update(self, name: str) -> Update | None:
        """What was trained on an embedding is not added to the head that shares its numbers, but for single tokens,
        which PEFT trains in both."""
        update = self._updates.get(f"{name}.weight")
        if update is None and self.tied and f"{name}.weight" == _HEAD:
            shared = self._updates.get(_EMBEDDING)
            update = shared if shared is not None and shared.kind == "tokens" else None
        return update

    def add(self, update: Update | None, weight: "torch.Tensor") -> "torch.Tensor":
        """The merged matrix in the number format of `weight`."""
        return weight if update is None else self._adapter.apply(update, weight, 0, len(weight))


def exactly_merged(base_dir: Path, adapter: Adapter) -> Weight:
    """The adapter added to the matrices that the model holds, in float32 and not rounded afterwards."""
    plan = _Plan(base_dir, adapter)

    def weight_of(name: str, module: Any) -> "torch.Tensor":
        weight, update = stored(name, module), plan.update(name)
        return weight if update is None else plan.add(update, weight.float().cpu())

    return weight_of


def merged(base_dir: Path, adapter: Adapter, trip: RoundTrip | None) -> Weight:
    """The matrices that MERGE would write, made one by one when they are asked for: base from disk, 4-bit round trip
    where `trip` says so, then the adapter, rounded to the base's number format."""
    plan = _Plan(base_dir, adapter)

    def weight_of(name: str, module: Any) -> "torch.Tensor":
        weight = plan.read(name)
        return plan.add(plan.update(name), trip.apply(weight) if trip and name in trip.modules else weight)

    return weight_of
