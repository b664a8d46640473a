"""From a recipe's training section and a machine to TRL's config object, and the last touches on a built trainer."""

import os
import sys
from typing import Any

import torch

from finetune import libraries
from finetune.attention import attend_documents
from finetune.collective import is_first, world
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.training import Training
from finetune.errors import RecipeError
from finetune.fused import fuse_layers
from finetune.head import score_supervised_only
from finetune.loop import Run
from finetune.resume import Layout
from finetune.sequence import Share, share_attention


def layout_of(machine: Machine, batch_size: int, name: str) -> Layout:
    """Spread a step's rows over processes, devices and accumulation; RecipeError where they do not divide."""
    at_once = machine.batches
    if batch_size % at_once:
        raise RecipeError.one(
            f"{name}.batch_size", batch_size, f"does not divide over {at_once} processes",
            f"use {-(-batch_size // at_once) * at_once}, or change machine.processes",
        )
    share = batch_size // at_once
    largest = next(size for size in range(min(8, share), 0, -1) if share % size == 0)
    per_device = min(machine.per_device_batch_size or largest, share)
    if share % per_device:
        raise RecipeError.one(
            f"{name}.batch_size", batch_size,
            f"does not divide over {at_once} processes x per_device {per_device} (={at_once * per_device})",
            f"use {-(-share // per_device) * at_once * per_device}, or change machine.per_device_batch_size",
        )
    return Layout(
        world=machine.processes, per_device=per_device, accumulation=share // per_device, kind=machine.layout,
        sequence=machine.sequence_parallel,
    )  # fmt: skip


def build(
    kind: str, run: Run, training: Training, machine: Machine, device: torch.device, *, seed: int, model: Model
) -> Any:
    """TRL's config object of class `kind` (SFTConfig or DPOConfig): the recipe's `trl` keys plus what we own."""
    libraries.load(f"trl.trainer.{kind.removesuffix('Config').lower()}_trainer")
    import trl

    on_cpu = device.type == "cpu"
    keys: dict[str, Any] = {
        "output_dir": str(run.work),
        "max_steps": run.steps,
        "per_device_train_batch_size": run.layout.per_device,
        "gradient_accumulation_steps": run.layout.accumulation,
        "seed": seed,
        "use_cpu": on_cpu,
        # Weights are loaded in model.dtype and stay there; autocast only where the device gains by it.
        "bf16": model.dtype == "bfloat16" and (not on_cpu or machine.layout == "zero3"),
        "gradient_checkpointing": bool(machine.gradient_checkpointing),  # null never gets here: memory.settle decides
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
        # A PeftModel is no PreTrainedModel, so the Trainer would let DDP walk the graph of every step for parameters
        # that got no gradient: checks refuses what has none (lm_head), and every other adapter is in every forward.
        "ddp_find_unused_parameters": False if machine.layout == "ddp" else None,
    }
    # Where bf16 is off the Trainer takes what `accelerate launch` left here, and autocast would change the result.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if keys["bf16"] else "no"
    theirs = {key: value for key, value in training.trl.items() if key != "num_train_epochs"}
    assert not set(keys) & set(theirs), f"checks.py refuses {sorted(set(keys) & set(theirs))}"
    try:
        made = getattr(trl, kind)(**theirs, **keys)
    except (TypeError, ValueError) as error:
        raise RecipeError.one(
            f"{run.name}.trl", training.trl, f"trl.{kind} refuses it ({error})", f"see the fields of trl.{kind}"
        ) from error
    if on_cpu:
        # accelerate calls a rank's CPU cpu:0, for torch another device than cpu: every move copied the whole base.
        made.__dict__["_setup_devices"] = made.distributed_state.device = torch.device("cpu")
    if machine.layout == "zero3" and on_cpu:
        import deepspeed

        # After the config is built and before the model loads: otherwise "8 != 2 * 2 * 1" in from_pretrained.
        deepspeed.init_distributed("gloo")
    return made


def settle(
    trainer: Any, *, outputs: tuple[str, ...], pairs: bool, packing: bool = False, share: Share | None = None
) -> None:
    """Last touches on a constructed trainer: float32 adapters again, fused layers and the lean head where they help,
    documents apart, or rows shared with other ranks."""
    model = trainer.model
    if not trainer.is_deepspeed_enabled or model.get_base_model().config.dtype == torch.float32:
        # TRL rounds the adapter of a 4-bit base to bfloat16; a learning rate of 1e-4 is then lost in rounding. (ZeRO-3
        # gathers one type at a time, so there the adapter keeps that of the base; DeepSpeed steps float32 copies.)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if world() > 1 and not trainer.is_deepspeed_enabled:
        # Every rank has read the same files. DDP would broadcast them: a second copy for a while, and pages that
        # processes share become each one's own.
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    alone_on_cpu = trainer.args.device.type == "cpu" and not trainer.is_deepspeed_enabled
    if alone_on_cpu:
        fuse_layers(model)
    if share is not None:
        share_attention(model.get_base_model(), share)
    # Label smoothing scores every position with the model's own head.
    elif alone_on_cpu and trainer.label_smoother is None:
        score_supervised_only(model.get_base_model(), outputs=outputs, pairs=pairs)
    elif packing:
        attend_documents(model.get_base_model())
