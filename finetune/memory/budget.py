"""What a recipe needs on each device, of the host and of the disk, and how long it takes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetune.config import Recipe
from finetune.config.machine import Layout, Machine
from finetune.config.training import Training
from finetune.errors import Problem
from finetune.memory.children import children_bytes, quantising_bytes
from finetune.memory.counts import lora_parameters, parameters, weight_bytes
from finetune.memory.device import DeviceBytes, adapter_size, device_bytes
from finetune.memory.disk import disk_bytes
from finetune.memory.machines import GIB, Here, resolve_machine
from finetune.memory.work import Counted, StageState, Work, assumed_speed, count_work, longest, utilisation

# Never ours to fill: the CUDA context, NCCL's buffers, and one twentieth for the allocator's gaps.
_CONTEXT, _GAPS = 1.5 * GIB, 0.05
# A layout that leaves less than a tenth free is no better: the first long row ends it.
_ROOMY = 0.9
# On the host beside a GPU: libraries with CUDA's, and pinned buffers.
_HOST_PROCESS = 4 * GIB
# Attention's scores grow with the square of a prompt: where rows were not counted, so many tokens are taken.
_LIKELY_PROMPT = 256


@dataclass(frozen=True)
class StagePlan:
    """One training stage on one device."""

    name: str
    rows: int
    """Rows, or preferences for DPO."""
    tokens: int
    """Of all steps together."""
    evaluated: int
    """Tokens that all evaluations read, forward only; held in less memory than a step, as nothing is kept."""
    counted: tuple[str, ...]
    """Which of rows, tokens, longest and held_out PREPARE or PAIRS counted; the others are limits."""
    longest: int
    """Tokens of the longest row, or pack, that the bytes are counted with."""
    steps: int
    per_device_batch_size: int
    accumulation: int
    bytes: DeviceBytes
    flops: float
    """All devices together, forward and backward; recomputation, evaluation and DPO's reference included."""
    hours: float | None


@dataclass(frozen=True)
class Option:
    """One way to lay the same model out on the same machine, at one row a device."""

    method: str
    layout: Layout
    gib: float
    fits: bool
    note: str


@dataclass(frozen=True)
class Plan:
    recipe: str
    model: str
    method: str
    machine: Machine
    parameters: int
    lora_parameters: int
    stages: tuple[StagePlan, ...]
    children: Mapping[str, int]
    """Stage that one process runs -> its peak bytes: on one device (score, pairs, bases, proof, export), of the host
    (merge)."""
    quantising: int
    """Peak bytes of host memory while EXPORT rounds the merged model; 0 where nothing is exported."""
    usable: int
    """Bytes of one device that a run may use."""
    kept_peak: int
    """Peak of one device with the same batch if no activation were recomputed, by the recipe's limits."""
    host: int
    """Peak bytes of host memory on the first node."""
    host_usable: int
    save_peak: int
    """Bytes gathered on the first rank when an adapter is saved: the adapter alone, never the base."""
    disk: Mapping[str, int]
    """What -> bytes, at the end of the run but for `logits`; the bundle is hard-linked and costs nothing."""
    tokens_known: bool
    """Whether tokens, and so hours and cost, were counted in every stage and are no upper limits."""
    utilisation: float
    """Share of a GPU's peak that hours are computed with; 1.0 on a CPU, whose speed is an achieved one."""
    flops_per_second: float | None
    """Of all devices together, utilisation included: flops / this = seconds; None where it is not known."""
    hours: float | None
    """Training only, every stage; None where the device's speed is not known."""
    usd: float | None
    options: tuple[Option, ...]
    best: Option | None
    """Of `options`: nothing gathered before nothing rounded, a tenth of the memory to spare; None on one device."""
    progress: tuple[StageState, ...] = ()
    """Every stage of the run in its order: cached, resumable or to run; empty where nobody looked."""
    problems: tuple[Problem, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def per_device_batch_size(self) -> int:
        return self.stages[0].per_device_batch_size

    @property
    def generation(self) -> int:
        """Peak bytes of the stages that one process runs on one device."""
        return max(peak for name, peak in self.children.items() if name != "merge")

    @property
    def peak(self) -> int:
        return max(self.generation, *(stage.bytes.peak for stage in self.stages))

    @property
    def checkpointing(self) -> str:
        """Whether activations are recomputed, and why."""
        needs, room, on = self.kept_peak / GIB, _ROOMY * self.usable / GIB, bool(self.machine.gradient_checkpointing)
        choice = ("on" if on else "off") + (", as it was set" if on == (needs <= room) else "")
        return f"{choice}: this batch needs {needs:,.1f} GiB without, {room:,.1f} may be filled"

    def to_json(self) -> dict[str, Any]:
        """Plain data, bytes as numbers of bytes; docs/planning.md names every key, and a test holds both together."""
        plain = asdict(self)
        plain["machine"] = self.machine.model_dump(mode="json")
        for stage, row in zip(self.stages, plain["stages"], strict=True):
            row["bytes"] |= {"training": stage.bytes.training, "peak": stage.bytes.peak}
        totals = {"fits": self.fits, "peak": self.peak, "checkpointing": self.checkpointing}
        totals |= {"generation": self.generation}
        totals |= {"per_device_batch_size": self.per_device_batch_size}
        return {"schema_version": "1", **plain, **totals}

    def render(self) -> str:
        from finetune.memory.view import render

        return render(self)


def settle(recipe: Recipe, here: Here, *, launched: int | None = None) -> Recipe:
    """The recipe with its machine made concrete, batch and recomputation included: what every stage then runs with.

    `launched` is the number of processes the launcher started, None when only planning.
    """
    machine = resolve_machine(recipe.machine, here, launched=launched)
    if recipe.machine.device == "auto" and machine.layout == "ddp" and not _holds(recipe, machine):
        machine = resolve_machine(recipe.machine, here, launched=launched, sharded=True)
    return recipe.model_copy(update={"machine": _decided(recipe, machine)})


def _decided(recipe: Recipe, machine: Machine) -> Machine:
    """First the largest batch that fits at all, then no recomputation where that same batch fits without.

    A smaller batch that does without would mean more forwards in a step: most rows are far shorter than the limit that
    bytes are counted with, so each is paid in full, and under ZeRO-3 each gathers all weights.
    """
    if machine.per_device_batch_size is None:
        machine = machine.model_copy(update={"per_device_batch_size": _fitting_batch(recipe, machine)})
    if machine.gradient_checkpointing is None:
        roomy = _kept_peak(recipe, machine) <= _ROOMY * usable_bytes(machine)
        machine = machine.model_copy(update={"gradient_checkpointing": not roomy})
    return machine


def measure(recipe: Recipe, counted: Mapping[str, Counted] | None = None) -> Plan:
    """Add everything up for a recipe whose machine is resolved; `planner.plan` then says what is wrong with it."""
    machine, model, method = _decided(recipe, recipe.machine), recipe.model, recipe.method
    recipe = recipe.model_copy(update={"machine": machine})
    stages = tuple(_stage(recipe, name, (counted or {}).get(name)) for name in recipe.stages)
    hours = [stage.hours for stage in stages if stage.hours is not None]
    total_hours = sum(hours) if len(hours) == len(stages) else None
    price = machine.usd_per_gpu_hour
    prompt = _prompt(recipe, counted or {})
    children, quantising = children_bytes(recipe, length=prompt), quantising_bytes(recipe, length=prompt)
    options = _options(recipe, machine)
    whole = weight_bytes(model.architecture, model.dtype, method.bnb)
    adapter = lora_parameters(model.architecture, method.lora)
    return Plan(
        recipe=recipe.name,
        model=model.name,
        method=method.name,
        machine=machine,
        parameters=parameters(model.architecture).total,
        lora_parameters=adapter,
        stages=stages,
        children=children,
        quantising=quantising,
        usable=usable_bytes(machine),
        kept_peak=_kept_peak(recipe, machine),
        host=_host(machine, stages, children, quantising, whole),
        host_usable=round((machine.host_memory_gib or 0) * GIB),
        save_peak=adapter * adapter_size(model, machine.layout),
        disk=disk_bytes(recipe),
        tokens_known=all("tokens" in stage.counted for stage in stages),
        utilisation=utilisation(machine, quantised=method.bnb is not None),
        flops_per_second=assumed_speed(recipe),
        hours=total_hours,
        usd=None if price is None or total_hours is None else total_hours * price * machine.processes,
        options=options,
        best=next((o for o in options if o.gib * GIB <= _ROOMY * usable_bytes(machine)), None),
    )


def usable_bytes(machine: Machine) -> int:
    """Bytes of one device that a run may use: of a GPU's memory, or of a CPU process's part of the host's."""
    if machine.device == "cuda":
        return max(0, round((machine.gpu_memory_gib or 0) * GIB * (1 - _GAPS) - _CONTEXT))
    local = -(-machine.processes // machine.nodes)
    return max(0, round((machine.host_memory_gib or 0) * GIB * (1 - _GAPS) / local))


def _fitting_batch(recipe: Recipe, machine: Machine) -> int:
    """The largest per-device batch that divides every stage's batch and fits; 1 when nothing does."""
    batches = [_section(recipe, name).batch_size for name in recipe.stages]
    largest = max(1, min(batches) // machine.batches)
    for size in range(largest, 1, -1):
        even = all(batch % (size * machine.batches) == 0 for batch in batches)
        if even and _peak(recipe, machine, size) <= usable_bytes(machine):
            return size
    return 1


def _holds(recipe: Recipe, machine: Machine) -> bool:
    return _peak(recipe, machine, 1) <= usable_bytes(machine)


def _kept_peak(recipe: Recipe, machine: Machine) -> int:
    kept = machine.model_copy(update={"gradient_checkpointing": False})
    return _peak(recipe, kept, machine.per_device_batch_size or 1)


def _peak(recipe: Recipe, machine: Machine, batch: int) -> int:
    return max(_bytes(recipe, machine, name, batch).peak for name in recipe.stages)


def _bytes(recipe: Recipe, machine: Machine, name: str, batch: int, length: int | None = None) -> DeviceBytes:
    return device_bytes(
        recipe.model,
        recipe.method,
        layout=machine.layout,
        processes=machine.processes,
        cuda=machine.device == "cuda",
        checkpointing=machine.gradient_checkpointing is not False,  # not decided: what is needed at least
        rows=batch,
        # Ranks that share a row have a slice of its tokens, and in attention all tokens of a slice of the heads.
        length=-(-(length or _section(recipe, name).max_length) // machine.sequence_parallel),
        preference=name == "dpo",
        deepspeed=machine.deepspeed,
    )


def _stage(recipe: Recipe, name: str, counted: Counted | None) -> StagePlan:
    section, machine = _section(recipe, name), recipe.machine
    batch = machine.per_device_batch_size or 1
    work: Work = count_work(recipe, name, counted)
    known = () if counted is None else tuple(key for key, value in asdict(counted).items() if value is not None)
    length = longest(recipe, name, counted)
    return StagePlan(
        name=name,
        rows=work.rows,
        tokens=work.tokens,
        evaluated=work.evaluated,
        counted=known,
        longest=length,
        steps=work.steps,
        per_device_batch_size=batch,
        accumulation=max(1, section.batch_size // (batch * machine.batches)),
        bytes=_bytes(recipe, machine, name, batch, length),
        flops=work.flops,
        hours=work.hours,
    )


def _section(recipe: Recipe, name: str) -> Training:
    section: Training = getattr(recipe, name)
    return section


def _prompt(recipe: Recipe, counted: Mapping[str, Counted]) -> int:
    """Tokens of the longest prompt that is asked: no longer than the longest row, where that was counted."""
    known = [counted[name].longest or 0 for name in ("sft", "dpo") if name in counted]
    limit = max(_section(recipe, name).max_length for name in recipe.stages)
    return min(limit, max(known, default=0) or _LIKELY_PROMPT)


def _host(
    machine: Machine, stages: tuple[StagePlan, ...], children: Mapping[str, int], quantising: int, whole: int
) -> int:
    local = -(-machine.processes // machine.nodes)
    if machine.device == "cpu":
        training = max(stage.bytes.peak for stage in stages)
        return max(local * training, *children.values())
    # Under ZeRO-3 transformers reads all weights on the first rank; otherwise one shard (5 GB) at a time on each.
    loading = whole if machine.layout == "zero3" else local * min(whole, 5 * 10**9)
    offloaded = max(stage.bytes.offloaded for stage in stages) * local
    return round(max(max(loading, offloaded) + local * _HOST_PROCESS, children["merge"], quantising))


def _options(recipe: Recipe, machine: Machine) -> tuple[Option, ...]:
    """The same machine with LoRA on bf16 or NF4 weights, replicated or sharded: what each holds at least."""
    if machine.processes == 1:
        return ()
    found = []
    layouts: tuple[Layout, ...] = ("ddp", "zero3")  # methods and layouts in the order of preference
    for method in ("lora", "qlora"):
        for layout in layouts:
            other = laid_out(recipe.model_copy(update={"machine": machine}), method, layout)
            peak = _peak(other, other.machine, 1)
            found.append(Option(method, layout, peak / GIB, peak <= usable_bytes(machine), _note(method, layout)))
    return tuple(found)


def laid_out(recipe: Recipe, method: str, layout: Layout) -> Recipe:
    """The recipe with LoRA on bf16 or NF4 weights, replicated or sharded; batch and recomputation left open."""
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    bnb = None if method == "lora" else recipe.method.bnb or nf4
    left = {"layout": layout, "gradient_checkpointing": None, "per_device_batch_size": None}
    changes = {"method": recipe.method.model_copy(update={"name": method, "bnb": bnb})}
    return recipe.model_copy(update=changes | {"machine": recipe.machine.model_copy(update=left)})


def _note(method: str, layout: str) -> str:
    if layout == "ddp":
        rounded = "" if method == "lora" else "; trains on rounded weights"
        return f"no traffic but the adapter's gradients{rounded}"
    if method == "lora":
        return "unquantised weights, gathered in every forward and backward"
    return "every GPU holds the whole 4-bit model while loading; gathers 4-bit weights in every step"
