"""From a recipe's training section and a machine to TRL's config object, and the last touches on a built trainer."""

import sys
from typing import Any

import torch

from finetune.collective import is_first
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.training import Training
from finetune.errors import RecipeError
from finetune.head import score_supervised_only
from finetune.loop import Run
from finetune.resume import Layout


def layout_of(machine: Machine, batch_size: int, name: str) -> Layout:
    """Spread a step's rows over processes, devices and accumulation; RecipeError where they do not divide."""
    world = machine.processes
    if batch_size % world:
        raise RecipeError.one(
            f"{name}.batch_size", batch_size, f"does not divide over {world} processes",
            f"use {-(-batch_size // world) * world}, or change machine.processes",
        )
    share = batch_size // world
    largest = next(size for size in range(min(8, share), 0, -1) if share % size == 0)
    per_device = min(machine.per_device_batch_size or largest, share)
    if share % per_device:
        raise RecipeError.one(
            f"{name}.batch_size", batch_size,
            f"does not divide over {world} processes x per_device {per_device} (={world * per_device})",
            f"use {-(-share // per_device) * world * per_device}, or change machine.per_device_batch_size",
        )
    return Layout(world=world, per_device=per_device, accumulation=share // per_device, kind=machine.layout)


def build(
    kind: str, run: Run, training: Training, machine: Machine, device: torch.device, *, seed: int, model: Model
) -> Any:
    """TRL's config object of class `kind` (SFTConfig or DPOConfig): the recipe's `trl` keys plus what we own."""
    import trl

    on_cpu = device.type == "cpu"
    checkpointing = machine.gradient_checkpointing
    keys: dict[str, Any] = {
        "output_dir": str(run.work),
        "max_steps": run.steps,
        "per_device_train_batch_size": run.layout.per_device,
        "gradient_accumulation_steps": run.layout.accumulation,
        "seed": seed,
        "use_cpu": on_cpu,
        # Weights are loaded in model.dtype and stay there; autocast only where the device gains by it.
        "bf16": model.dtype == "bfloat16" and (not on_cpu or machine.layout == "zero3"),
        "gradient_checkpointing": not on_cpu if checkpointing is None else checkpointing,
        "max_length": training.max_length,
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "eval_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_pin_memory": not on_cpu,
        "report_to": [],
        "disable_tqdm": not (sys.stderr.isatty() and is_first()),
        "deepspeed": machine.deepspeed if machine.layout == "zero3" else None,
    }
    theirs = {key: value for key, value in training.trl.items() if key != "num_train_epochs"}
    assert not set(keys) & set(theirs), f"checks.py refuses {sorted(set(keys) & set(theirs))}"
    try:
        made = getattr(trl, kind)(**theirs, **keys)
    except (TypeError, ValueError) as error:
        raise RecipeError.one(
            f"{run.name}.trl", training.trl, f"trl.{kind} refuses it ({error})", f"see the fields of trl.{kind}"
        ) from error
    if machine.layout == "zero3" and on_cpu:
        import deepspeed

        # After the config is built and before the model loads: otherwise "8 != 2 * 2 * 1" in from_pretrained.
        deepspeed.init_distributed("gloo")
    return made


def settle(trainer: Any, *, outputs: tuple[str, ...], pairs: bool) -> None:
    """Last touches on a constructed trainer: float32 adapters again, and the lean head where it helps."""
    model = trainer.model
    if not trainer.is_deepspeed_enabled:
        # TRL rounds the adapter of a 4-bit base to bfloat16; a learning rate of 1e-4 is then lost in rounding.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if trainer.args.device.type == "cpu" and not trainer.is_deepspeed_enabled:
        score_supervised_only(model.get_base_model(), outputs=outputs, pairs=pairs)
