"""Bytes on the disk: what is fetched, what is written, and whether the base is here already."""

import os
from pathlib import Path

from finetune.config import Recipe
from finetune.config.model import Model
from finetune.memory.counts import DTYPE_BYTES, lora_parameters, weight_bytes

_KEPT_CHECKPOINTS = 2


def disk_bytes(recipe: Recipe) -> dict[str, int]:
    """What -> bytes, all of it at the end of the run; the bundle is hard-linked and costs nothing."""
    model, a = recipe.model, recipe.model.architecture
    whole, trained = weight_bytes(a, model.dtype, None), lora_parameters(a, recipe.method.lora)
    state = trained * (DTYPE_BYTES[model.dtype] + 3 * 4)
    there = model.origin == "embedded" or model.path is not None or (hub_snapshot(model) / "config.json").exists()
    return {
        "download": 0 if there else whole,
        "checkpoints": _KEPT_CHECKPOINTS * state,
        "adapters": len(recipe.stages) * trained * DTYPE_BYTES[model.dtype],
        "merged": whole,
        "bundle": 0,
    }


def hub_snapshot(model: Model) -> Path:
    """Where the hub's cache of this machine keeps the pinned commit, whether it is there or not."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return hub / f"models--{model.name.replace('/', '--')}" / "snapshots" / (model.revision or "not pinned")
