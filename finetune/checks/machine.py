"""Processes, layout and batch: one owner for DeepSpeed, and a machine that has what is asked of it."""

from collections.abc import Iterator, Mapping

from finetune.config import Recipe
from finetune.errors import Problem
from finetune.memory import Here


def check_batches(recipe: Recipe) -> Iterator[Problem]:
    machine = recipe.machine
    each = machine.per_device_batch_size or 1
    together = machine.batches * each
    unit = "GPUs" if machine.device == "cuda" else "processes"
    if machine.sequence_parallel > 1:
        unit = f"groups of {machine.sequence_parallel} {unit}"
    for name in recipe.stages:
        size = getattr(recipe, name).batch_size
        if size % together:
            below, above = size // together * together, (size // together + 1) * together
            fits = f"{below} or {above}" if below else str(above)
            rule = f"does not divide over {machine.batches} {unit} x per_device {each} (={together})"
            fix = f"use {fits}, or change machine.per_device_batch_size"
            yield Problem(f"{name}.batch_size", size, rule, fix)


def check_layout(recipe: Recipe) -> Iterator[Problem]:
    machine = recipe.machine
    if machine.device == "auto":  # its layout is the planner's choice
        return
    if machine.layout == "single" and machine.processes > 1:
        yield Problem("machine.layout", "single", f"is for one process, not {machine.processes}", "ddp or zero3")
    if machine.layout == "ddp" and machine.processes == 1:
        yield Problem("machine.layout", "ddp", "is for several processes", "machine.layout=single")
    if machine.processes % machine.nodes:
        rule = f"does not divide over {machine.nodes} nodes"
        yield Problem("machine.processes", machine.processes, rule, f"a multiple of {machine.nodes}")
    if machine.device == "cuda" and machine.gpu_memory_gib is None:
        yield Problem("machine.gpu_memory_gib", None, "is needed to plan for a GPU that is not here", "80 for an A100")
    deepspeed = machine.deepspeed
    if machine.layout == "zero3" and deepspeed is None:
        yield Problem(
            "machine.deepspeed", None, "layout zero3 is DeepSpeed's", "copy it from configs/machine/a100x8.yaml"
        )
    if deepspeed is None:
        return
    if machine.layout != "zero3":
        rule = f"is only for layout zero3, not {machine.layout}"
        yield Problem("machine.deepspeed", "{...}", rule, "machine.deepspeed=null, or machine.layout=zero3")
    zero = deepspeed.get("zero_optimization", {})
    if zero.get("stage") != 3:
        path = "machine.deepspeed.zero_optimization.stage"
        yield Problem(path, zero.get("stage"), "layout zero3 is stage 3", f"{path}=3")
    if "optimizer" in deepspeed:
        rule = "builds a fused optimiser for minutes; the adapter is small"
        yield Problem("machine.deepspeed.optimizer", "{...}", rule, f"drop it, and set {recipe.stages[-1]}.trl.optim")
    if "scheduler" in deepspeed:
        rule = "would take the place of the recipe's learning rate schedule, and no stage would know"
        fix = f"drop it, and set {recipe.stages[-1]}.trl.lr_scheduler_type"
        yield Problem("machine.deepspeed.scheduler", "{...}", rule, fix)
    if deepspeed.get("fp16", {}).get("enabled"):
        yield Problem("machine.deepspeed.fp16", "{...}", "one precision per run, bfloat16", "drop it; set model.dtype")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if deepspeed.get(key, "auto") != "auto":
            path = f"machine.deepspeed.{key}"
            rule = "is worked out from batch_size and machine.per_device_batch_size"
            yield Problem(path, deepspeed[key], rule, f"{path}=auto")


def check_sequence(recipe: Recipe) -> Iterator[Problem]:
    """What ranks that share rows (finetune/sequence.py) cannot do, or what is not proven."""
    machine, shape = recipe.machine, recipe.model.architecture
    parts, path = machine.sequence_parallel, "machine.sequence_parallel"
    if parts == 1 or machine.device == "auto":  # how many processes there are is not known yet
        return
    local = machine.processes // machine.nodes
    if machine.layout == "single" or local % parts:
        rule = f"does not divide the {local} processes of a node, and no group may reach over a network"
        yield Problem(path, parts, rule, f"{path}={_divisor(parts, local)}")
    if shape.num_key_value_heads % parts:
        heads = f"{shape.num_attention_heads} heads and {shape.num_key_value_heads} key heads"
        fix = f"{path}={_divisor(parts, shape.num_key_value_heads)}"
        yield Problem(path, parts, f"deals out {heads} of {recipe.model.name}, which does not come out even", fix)
    if recipe.model.attn_implementation != "sdpa":
        rule = f"trades heads around torch's sdpa (on CUDA that is flash attention); {path}={parts}"
        yield Problem("model.attn_implementation", recipe.model.attn_implementation, rule,
                      "model.attn_implementation=sdpa")  # fmt: skip
    for name in recipe.stages:
        section = getattr(recipe, name)
        if name == "dpo":
            rule = f"dpo compares whole answers, and {path}={parts} cuts them up"
            fix = "stages=[sft]; a second command without it and with stages=[sft,dpo] goes on from there"
            yield Problem("stages", list(recipe.stages), rule, fix)
        for key in ("label_smoothing_factor", "use_liger_kernel"):  # they read labels that were shifted after the cut
            if section.trl.get(key):
                rule = f"has a loss of its own, which {path}={parts} would feed wrong labels"
                yield Problem(f"{name}.trl.{key}", section.trl[key], rule, f"~{name}.trl.{key}, or {path}=1")
        if name != "dpo" and section.packing:
            rule = f"a slice of a pack cannot tell its documents apart; {path}={parts}"
            yield Problem(f"{name}.packing", True, rule, f"{name}.packing=false, or {path}=1")


def _divisor(parts: int, count: int) -> int:
    """The largest number up to `parts` that divides `count`."""
    return next(number for number in range(min(parts, count), 0, -1) if count % number == 0)


def check_launcher(recipe: Recipe, environment: Mapping[str, str]) -> Iterator[Problem]:
    """A second owner of DeepSpeed, FSDP or the precision, in what `accelerate launch` leaves in the environment."""
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
        if recipe.machine.layout != "zero3" or file is not None or stage != "3":
            value = file or f"zero_stage {stage}"
            rule = f"accelerate brings a second DeepSpeed config beside machine.layout={recipe.machine.layout}"
            fix = "drop deepspeed_config from the accelerate config: the machine file is its one owner"
            yield Problem("accelerate launch", value, rule, fix)
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        fix = "use an accelerate config without fsdp_config, and machine.layout=zero3 to share the weights"
        yield Problem("accelerate launch", "FSDP", "is no layout of this toolkit", fix)
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16" if recipe.model.dtype == "bfloat16" else "no"):
        rule = f"model.dtype={recipe.model.dtype} decides the precision"
        yield Problem("accelerate launch", precision, rule, "--mixed_precision no")


def check_presence(recipe: Recipe, here: Here, launched: int | None) -> Iterator[Problem]:
    machine = recipe.machine
    local = -(-machine.processes // machine.nodes)
    if machine.device == "cuda" and len(here.gpus) < local:
        rule = f"wants {local} GPUs on each node, here {'is' if len(here.gpus) == 1 else 'are'} {len(here.gpus)}"
        plan = f"finetune plan recipe={recipe.name} machine={machine.name}"
        yield Problem("machine", machine.name, rule, f"machine=auto model=smollm2_135m; to plan for it: {plan}")
    elif launched is not None and launched != machine.processes:
        rule = f"wants {machine.processes} processes, {launched} were started"
        # accelerate starts one CPU process whatever number it is asked for, with exit code 0.
        start = "torchrun --nproc_per_node" if machine.device == "cpu" else "accelerate launch --num_processes"
        yield Problem("machine", machine.name, rule, f"{start} {local} finetune/train.py recipe={recipe.name} ...")
    elif launched == 1 and machine.device == "cuda" and len(here.gpus) > 1:
        rule = f"one process sees {len(here.gpus)} GPUs and trains on one"
        start = f"accelerate launch --num_processes {len(here.gpus)} finetune/train.py recipe={recipe.name} ..."
        yield Problem("machine", machine.name, rule, f"CUDA_VISIBLE_DEVICES=0 before the command, or {start}")


def check_engine(recipe: Recipe) -> Iterator[Problem]:
    """PREPARE on a cluster: what Slurm has to be told, and what only Slurm reads."""
    asked = recipe.machine.prepare
    for name, example in {"partition": "cpu", "time": "01:00:00"}.items():
        if asked.engine == "slurm" and getattr(asked, name) is None:
            path = f"machine.prepare.{name}"
            yield Problem(path, None, "is what Slurm has to be told", f"{path}={example}")
    if asked.engine != "slurm":
        for name in ("partition", "time", "sbatch"):
            if value := getattr(asked, name):
                yield Problem(f"machine.prepare.{name}", value, "is for Slurm", "machine.prepare.engine=slurm")
