"""The plan, what is wrong with it, and what to type instead, found by planning the models and machines of `configs`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.config import Recipe
from finetune.config.load import choices
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.errors import Problem
from finetune.memory.budget import Plan, laid_out, measure
from finetune.memory.machines import GIB, Gpu, Here, resolve_machine
from finetune.memory.work import Counted, StageState

# Beyond these, training on a CPU is a mistake: nobody means to download 65 GB for that.
_LONGEST_HOURS_ON_CPU = 72.0
_MOST_PARAMETERS_ON_CPU = 8_000_000_000
# What `settle` decides for a model on a machine.
_OPEN: dict[str, Any] = {"per_device_batch_size": None, "gradient_checkpointing": None}


def plan(
    recipe: Recipe,
    *,
    counted: Mapping[str, Counted] | None = None,
    progress: tuple[StageState, ...] = (),
    here: Here | None = None,
) -> Plan:
    """Plan a recipe whose machine is resolved. `counted` (stage -> what is known of its data) replaces limits.

    With `here`, this machine's free disk counts as well. Nothing is started, downloaded or written.
    """
    found = dataclasses.replace(measure(recipe, counted), progress=progress)
    lacks = _lacks(found, here)
    if lacks:
        advice = tuple(_instead(recipe))
        fix = "take a smaller model, a shorter max_length or a larger machine"
        if advice:
            fix = f"accelerate launch finetune/train.py {advice[0]}"
        disk = "free some space, or work=/path/on/a/larger/disk"
        problems = tuple(Problem(path, value, rule, disk if path == "work" else fix) for path, value, rule in lacks)
        return dataclasses.replace(found, problems=problems, advice=advice)
    return dataclasses.replace(found, advice=tuple(_better(found)))


def _lacks(found: Plan, here: Here | None) -> list[tuple[str, Any, str]]:
    """(path, value, rule) for each thing that runs out: device, host, disk, time."""
    machine = found.machine
    lacks: list[tuple[str, Any, str]] = []
    where = "GPU" if machine.device == "cuda" else "process"
    worst = max(found.stages, key=lambda stage: stage.bytes.peak)
    if worst.bytes.peak > found.usable:
        needs = (
            f"needs {_gib(worst.bytes.peak)} on each {where} in {worst.name}, of which {_gib(found.usable)} is usable"
        )
        lacks.append(("machine", machine.name, f"{found.model} with method={found.method} {needs}"))
    alone = found.usable if machine.device == "cuda" else found.host_usable
    if found.generation > alone:
        name = max((stage for stage in found.children if stage != "merge"), key=lambda stage: found.children[stage])
        needs = f"needs {_gib(found.generation)} on one {where}, of which {_gib(alone)} is usable"
        rule = f"{name} of {found.model}, which one process runs, {needs}"
        lacks.append(("machine", machine.name, rule))
    if machine.host_memory_gib is not None and found.host > found.host_usable and not lacks:
        rule = f"needs {_gib(found.host)} of host memory, there is {_gib(found.host_usable)}"
        lacks.append(("machine", machine.name, rule))
    slow = found.hours is not None and found.hours > _LONGEST_HOURS_ON_CPU
    if machine.device == "cpu" and (slow or found.parameters > _MOST_PARAMETERS_ON_CPU):
        days = f" and would take up to {(found.hours or 0) / 24:,.0f} days" if slow else ""
        rule = f"{found.model} ({found.parameters / 1e9:.1f} B parameters) is too large to train on a CPU{days}"
        lacks.append(("machine", machine.name, rule))
    needed = sum(found.disk.values())
    if here is not None and needed > here.disk_free_gib * GIB:
        lacks.append(("work", None, f"needs {_gib(needed)} of disk, {here.disk_free_gib:.1f} GiB is free"))
    return lacks


def _instead(recipe: Recipe) -> list[str]:
    """Commands that fit: the same model on this machine another way, a model for it, a machine for the model."""
    start = f"recipe={recipe.name}"
    words = []
    if recipe.machine.processes > 1:
        for option in measure(recipe).options:
            other = laid_out(recipe, option.method, option.layout)
            same = (option.method, option.layout) == (recipe.method.name, recipe.machine.layout)
            if not same and not _lacks(measure(other), None):
                drop = " machine.deepspeed=null" if option.layout == "ddp" and recipe.machine.deepspeed else ""
                words.append(f"{start} method={option.method} machine.layout={option.layout}{drop}")
    if (parts := _sharing(recipe)) > 1:
        changed = recipe.machine.model_copy(update={"sequence_parallel": parts, **_OPEN})
        if not _lacks(measure(recipe.model_copy(update={"machine": changed})), None):
            stages = f"'stages=[{','.join(recipe.stages)}]'"
            where = f"model={recipe.model.key} method={recipe.method.name} machine={recipe.machine.name}"
            words.append(f"{start} {where} machine.sequence_parallel={parts} {stages}")
    machine = "cpu" if recipe.machine.device == "cpu" else recipe.machine.name
    smaller = [
        (measured.parameters, f"{start} model={name} machine={machine}")
        for name, other in _models(recipe)
        if not _lacks(measured := measure(other), None) and not other.model.note.startswith("tiny random")
    ]
    words += [word for _, word in sorted(smaller, reverse=True)]
    words += [
        f"{start} model={recipe.model.key} method={recipe.method.name} machine={name}"
        for name, other in _machines(recipe)
        if not _lacks(measure(other), None)
    ]
    return words


def _sharing(recipe: Recipe) -> int:
    """How many processes of a node could share the tokens of a row; 1 where they may not (checks/machine.py)."""
    machine, heads = recipe.machine, recipe.model.architecture.num_key_value_heads
    if machine.sequence_parallel > 1 or "dpo" in recipe.stages or recipe.model.attn_implementation != "sdpa":
        return 1
    return math.gcd(heads, machine.processes // machine.nodes)


def _better(found: Plan) -> Iterator[str]:
    """Advice on a plan that fits."""
    layout, method = found.machine.layout, found.method
    roomy = {(o.method, o.layout): o.gib for o in found.options if o.gib * GIB <= 0.9 * found.usable}
    if layout == "zero3" and (method, "ddp") in roomy:
        yield (
            f"machine.layout=ddp machine.deepspeed=null holds it too ({roomy[method, 'ddp']:.1f} GiB on each GPU) and "
            "gathers no weights: the frozen base has no optimiser state to shard"
        )
    if layout == "ddp" and method == "qlora" and ("lora", "zero3") in roomy:
        yield "method=lora machine.layout=zero3 trains on the unquantised weights: merging then loses nothing"
    if not found.tokens_known:
        yield "tokens and hours are upper limits where they stand behind <=; after `finetune prepare` they are counts"


def _models(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    for name, file in choices("model").items():
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "defaults" in plain:  # a variant of another file, for longer texts: never the smaller model
            continue
        changes: dict[str, Any] = {"model": Model.model_validate(plain["model"])}
        changes |= {s: type(getattr(recipe, s)).model_validate(plain[s]) for s in ("cpt", "sft", "dpo") if s in plain}
        if changes["model"].key != recipe.model.key:
            yield name, _unsettled(recipe.model_copy(update=changes))


def _machines(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Every machine file that names its GPU's memory."""
    for name, file in choices("machine").items():
        machine = Machine.model_validate(_read_machine(file))
        if machine.gpu_memory_gib is not None and machine.name != recipe.machine.name:
            there = Here(
                gpus=(Gpu(machine.gpu or "", machine.gpu_memory_gib),), cores=64, memory_gib=0, disk_free_gib=0
            )
            yield name, recipe.model_copy(update={"machine": resolve_machine(machine, there)})


def _read_machine(file: Path) -> dict[str, Any]:
    """A machine file with the groups of its defaults list merged in: what Hydra composes, in a tenth of the time."""
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    machine: dict[str, Any] = {}
    for entry in plain.get("defaults", ()):
        for group, name in entry.items() if isinstance(entry, dict) else ():
            shared = choices(group.removeprefix("/"))[name]
            machine = _merge(machine, yaml.safe_load(shared.read_text(encoding="utf-8"))["machine"])
    return _merge(machine, plain["machine"])


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    shared = [key for key in low.keys() & high.keys() if isinstance(low[key], dict) and isinstance(high[key], dict)]
    return low | high | {key: _merge(low[key], high[key]) for key in shared}


def _unsettled(recipe: Recipe) -> Recipe:
    """With batch and recomputation left to the planner again: those that were found belong to another model."""
    return recipe.model_copy(update={"machine": recipe.machine.model_copy(update=_OPEN)})


def _gib(count: float) -> str:
    return f"{count / GIB:,.1f} GiB"
