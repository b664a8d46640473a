"""float32 arithmetic on weights as they are stored: what is compared is the weights, not the rounding of a kernel.

A bfloat16 forward of SmolLM2 differs from itself by 1.9e-3 nats under another attention kernel, more than a right merge
may cost. So every matrix is widened (or dequantised, or read from disk) when it is used and let go afterwards: the
model in memory stays as large as it was, which is what makes it possible at 32 billion parameters.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.adapter import Adapter, read_tensor
from finetune.fourbit import RoundTrip, dequantised
from finetune.shards import Tensor, read_header, shard_names

if TYPE_CHECKING:
    import torch

Weight = Callable[[str, Any], "torch.Tensor"]
"""(name in the checkpoint without `.weight`, module) -> the matrix to compute with, in any number format."""
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


def exactly_merged(base_dir: Path, adapter: Adapter) -> Weight:
    """The adapter added to the matrices that the model holds, in float32 and not rounded afterwards."""
    tensors = tensors_of(base_dir)
    updates = adapter.plan(tensors)

    def weight_of(name: str, module: Any) -> "torch.Tensor":
        weight = stored(name, module)
        update = updates.get(find(tensors, name).name)
        return weight if update is None else adapter.apply(update, weight.float().cpu(), 0, len(weight))

    return weight_of


class Merged:
    """The matrices that MERGE would write, made one by one when they are asked for: base from disk, 4-bit round trip
    where `trip` says so, then the adapter, rounded to the base's number format."""

    def __init__(self, base_dir: Path, adapter: Adapter, trip: RoundTrip | None) -> None:
        self._tensors = tensors_of(base_dir)
        self._adapter, self._trip = adapter, trip
        self._updates = adapter.plan(self._tensors)

    def __call__(self, name: str, module: Any) -> "torch.Tensor":
        tensor = find(self._tensors, name)
        weight = read_tensor(tensor)
        if self._trip and name in self._trip.modules:
            weight = self._trip.apply(weight)
        update = self._updates.get(tensor.name)
        return weight if update is None else self._adapter.apply(update, weight, 0, tensor.shape[0])


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a model directory by its name."""
    return {name: tensor for shard in shard_names(directory) for name, tensor in read_header(directory / shard).items()}


def find(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The matrix of a module; a tied head has none of its own and is the embedding."""
    if name == "lm_head" and "lm_head.weight" not in tensors:
        name = "model.embed_tokens"
    return tensors[f"{name}.weight"]

