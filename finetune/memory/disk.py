"""Bytes on the disk: what is fetched, what is written, and whether the base is here already."""

import os
from pathlib import Path

from finetune.config import Recipe
from finetune.config.export import Scheme
from finetune.config.model import Model
from finetune.memory.counts import DTYPE_BYTES, lora_parameters, parameters, weight_bytes
from finetune.memory.device import adapter_size, optimiser_size

_KEPT_CHECKPOINTS = 2


def disk_bytes(recipe: Recipe) -> dict[str, int]:
    """What -> bytes, all of it at the end of the run; the bundle is hard-linked and costs nothing."""
    model, a = recipe.model, recipe.model.architecture
    whole, trained = weight_bytes(a, model.dtype, None), lora_parameters(a, recipe.method.lora)
    adapter = trained * adapter_size(model, recipe.machine.layout)
    state = adapter + trained * optimiser_size(recipe.machine.layout)
    there = model.origin == "embedded" or model.path is not None or (hub_snapshot(model) / "config.json").exists()
    return {
        "download": 0 if there else whole,
        "checkpoints": _KEPT_CHECKPOINTS * state,
        "adapters": len(recipe.stages) * adapter,
        "merged": whole,
        "quantised": sum(_quantised(recipe, scheme) for scheme in recipe.export),
        "bundle": 0,
    }


def _quantised(recipe: Recipe, scheme: Scheme) -> int:
    """Linear layers in 4 bit with a 2-byte scale for each group, or in 8 bit; the rest as merged."""
    a = recipe.model.architecture
    counts = parameters(a)
    each = 0.5 + 2 / (recipe.quantise.group_for(a) or 32) if scheme == "w4a16" else 1.0
    return round(counts.linear * each) + (counts.total - counts.linear) * DTYPE_BYTES[recipe.model.dtype]


def hub_snapshot(model: Model) -> Path:
    """Where the hub's cache of this machine keeps the pinned commit, whether it is there or not."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return hub / f"models--{model.name.replace('/', '--')}" / "snapshots" / (model.revision or "not pinned")
