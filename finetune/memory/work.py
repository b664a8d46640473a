"""Rows, tokens, steps, FLOPs and hours of a training stage."""

import math
from dataclasses import dataclass
from typing import Literal

from finetune.config import Recipe
from finetune.config.machine import Machine
from finetune.config.training import Training
from finetune.memory.counts import parameters
from finetune.order import steps_of

# Share of the peak that training is assumed to reach. 0.40 is what well-tuned dense training reaches on A100
# (Chowdhery et al. 2022, PaLM, table 3: 0.21 to 0.46); NF4 weights must be unpacked in every pass.
_UTILISATION, _UTILISATION_NF4 = 0.40, 0.30
# Achieved by each of two CPU cores with AVX512-bf16 over whole SFT stages of SmolLM2-135M, evaluation included:
# 0.076 to 0.090 in the four sample recipes (2026-11-22, 1.5 to 2.3 s for a step of 8 rows of 53 to 87 tokens).
_CPU_TFLOPS_PER_CORE = 0.08


@dataclass(frozen=True)
class Counted:
    """What PREPARE or PAIRS counted for a training stage; None: not counted."""

    rows: int
    """Rows, or preferences for DPO."""
    tokens: int | None
    longest: int | None
    held_out: int | None = None
    """Tokens that one evaluation reads."""


@dataclass(frozen=True)
class StageState:
    """What of a stage is already in the work folder."""

    name: str
    state: Literal["cached", "resumable", "to run"]
    note: str = ""
    """The finished folder; what is left to go on from; why it was not looked at."""
    step: int | None = None
    """Optimiser step of the newest sealed checkpoint that this machine can go on from."""


@dataclass(frozen=True)
class Work:
    stage: str
    rows: int
    tokens: int
    evaluated: int
    steps: int
    flops: float
    hours: float | None


def utilisation(machine: Machine, *, quantised: bool) -> float:
    """The share of peak speed that hours are computed with; 1.0 on a CPU, whose figure is already an achieved one."""
    if machine.device == "cpu":
        return 1.0
    return _UTILISATION_NF4 if quantised else _UTILISATION


def count_work(recipe: Recipe, name: str, counted: Counted | None) -> Work:
    """At most so much: where nothing has been counted, the recipe's limits and full rows are assumed."""
    section: Training = getattr(recipe, name)
    count = counted.rows if counted else _rows_at_most(recipe, name)
    sequences = 2 if name == "dpo" else 1
    limit = longest(recipe, name, counted) * sequences
    per_row = counted.tokens / max(count, 1) if counted and counted.tokens is not None else limit
    if getattr(section, "packing", False):  # a place of a batch holds a pack, full but for a few tokens
        count, per_row = math.ceil(count * per_row / section.max_length), section.max_length
    steps = steps_of(count, batch_size=section.batch_size, epochs=section.epochs, max_steps=section.max_steps)
    total = round(steps * section.batch_size * per_row)
    each = _held_out(recipe, name, counted)
    evaluated = math.ceil(steps / section.eval_steps) * each
    # DPO's reference scores every pair of the training once, and every one held out.
    scored = min(total, round(count * per_row)) + each if name == "dpo" else 0
    length = per_row / sequences
    flops = total * flops_per_token(recipe, length=length)
    flops += (evaluated + scored) * flops_per_token(recipe, length=length, forward_only=True)
    speed = assumed_speed(recipe)
    return Work(
        stage=name,
        rows=counted.rows if counted else _rows_at_most(recipe, name),
        tokens=total,
        evaluated=evaluated,
        steps=steps,
        flops=flops,
        hours=None if speed is None else flops / speed / 3600,
    )


def longest(recipe: Recipe, name: str, counted: Counted | None) -> int:
    """Tokens of the longest sequence that a device sees: the recipe's limit, or the longest row that was counted."""
    section: Training = getattr(recipe, name)
    known = counted.longest if counted and not getattr(section, "packing", False) else None
    return min(section.max_length, known) if known else section.max_length


def _held_out(recipe: Recipe, name: str, counted: Counted | None) -> int:
    """Tokens that one evaluation reads; 0 for CPT where nothing was counted."""
    section: Training = getattr(recipe, name)
    if counted and counted.held_out is not None:
        return counted.held_out
    if name == "dpo":
        return 2 * section.max_length * (recipe.dpo.pairs.eval_prompts if recipe.dpo.pairs else 0)
    return section.max_length * sum(task.valid_rows for task in recipe.tasks.values()) if name == "sft" else 0


def flops_per_token(recipe: Recipe, *, length: float, forward_only: bool = False) -> float:
    """2 for each weight forward and 2 back (frozen weights need no gradient of their own), 2 more when recomputed.
    Causal attention adds 2 x length x query width for each layer and pass.
    """
    a, machine = recipe.model.architecture, recipe.machine
    counts = parameters(a)
    weights = counts.linear + (counts.head or counts.embedding)
    attention = a.num_hidden_layers * length * a.num_attention_heads * a.head_dim
    if forward_only:
        return 2 * weights + 2 * attention
    passes = 2 + bool(machine.gradient_checkpointing)
    # Attention has no weights to be frozen: its backward costs two forwards.
    return passes * 2 * weights + (passes + 1) * 2 * attention


def _rows_at_most(recipe: Recipe, name: str) -> int:
    """Rows by the recipe's own limits. Running text has none but `max_chars`: four characters are taken as a token."""
    if name == "sft":
        tasks = sum(task.train_rows for task in recipe.tasks.values())
        return tasks + (round(recipe.replay.share * tasks) if recipe.replay else 0)
    if name == "dpo":
        return recipe.dpo.pairs.prompts if recipe.dpo.pairs else recipe.dpo.batch_size
    known = [use.max_chars for use in recipe.text if use.max_chars]
    return max(1, math.ceil(sum(known) / 4 / recipe.cpt.max_length))


def assumed_speed(recipe: Recipe) -> float | None:
    """FLOP/s of all devices together, as assumed."""
    machine = recipe.machine
    if machine.device == "cpu":
        cores = (machine.threads or 1) * machine.processes
        return (machine.tflops or _CPU_TFLOPS_PER_CORE * cores) * 1e12
    if machine.tflops is None:
        return None
    return machine.tflops * 1e12 * machine.processes * utilisation(machine, quantised=recipe.method.bnb is not None)
