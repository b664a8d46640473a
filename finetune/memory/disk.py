"""Bytes on the disk: what is fetched, what is written, and whether the base is here already."""

import os
from pathlib import Path

from finetune.config import Recipe
from finetune.config.export import Scheme
from finetune.config.model import Model
from finetune.memory.counts import DTYPE_BYTES, lora_parameters, parameters, weight_bytes
from finetune.memory.device import adapter_size, optimiser_size

_KEPT_CHECKPOINTS = 2
_FP32 = 4
ANSWER_TOKENS = 64
"""Of the longest answer that models are compared on (asked.py), a row of the vocabulary for each."""


def disk_bytes(recipe: Recipe) -> dict[str, int]:
    """What -> bytes; the bundle is hard-linked and costs nothing. All of it is there at the end of the run, but for
    `logits`: what the files that PROOF and EXPORT compare models by need beyond the rest, while they are there."""
    model, a = recipe.model, recipe.model.architecture
    whole, trained = weight_bytes(a, model.dtype, None), lora_parameters(a, recipe.method.lora)
    adapter = trained * adapter_size(model, recipe.machine.layout)
    state = adapter + trained * optimiser_size(recipe.machine.layout)
    quantised = sum(quantised_bytes(recipe, scheme) for scheme in recipe.export)
    there = model.origin == "embedded" or model.path is not None or (hub_snapshot(model) / "config.json").exists()
    return {
        "download": 0 if there else whole,
        "checkpoints": _KEPT_CHECKPOINTS * state,
        "adapters": len(recipe.stages) * adapter,
        "merged": whole,
        "quantised": quantised,
        "logits": _logits(recipe, quantised),
        "bundle": 0,
    }


def _logits(recipe: Recipe, quantised: int) -> int:
    """PROOF has two files (as served, in float32) before anything is quantised, EXPORT one beside all the rest. That of
    BASES, of 24 answers, is smaller than the merged model, which is not there yet."""
    each = compared_prompts(recipe) * ANSWER_TOKENS * recipe.model.architecture.vocab_size * _FP32
    return max(2 * each - quantised, each if recipe.export else 0)


def tested_rows(recipe: Recipe) -> int:
    return sum(task.test_rows for task in recipe.tasks.values())


def compared_prompts(recipe: Recipe) -> int:
    """Prompts that PROOF asks, and EXPORT again."""
    return min(recipe.score.parity_prompts, tested_rows(recipe))


def quantised_bytes(recipe: Recipe, scheme: Scheme) -> int:
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
