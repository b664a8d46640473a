"""The plan as text for a terminal."""

from finetune.memory.budget import Plan, StagePlan
from finetune.memory.machines import GIB

_ROWS = (
    ("libraries", "interpreter and libraries"),
    ("weights", "base weights"),
    ("adapter", "adapter"),
    ("gradients", "gradients"),
    ("optimiser", "optimiser (AdamW)"),
    ("buffers", "gather and bucket buffers"),
    ("activations", "activations"),
    ("logits", "logits"),
    ("holes", "holes in the C heap"),
    ("training", "= training"),
    ("load_peak", "while loading"),
)


def render(plan: Plan) -> str:
    """About thirty lines: what is held where, what it costs, what is wrong, what to type instead."""
    machine = plan.machine
    where = "GPU" if machine.device == "cuda" else "process"
    gpu = f" x {machine.gpu}" if machine.gpu else ""
    lines = [
        f"{plan.recipe}: {plan.model} ({plan.parameters:,} parameters), method={plan.method} "
        f"({plan.lora_parameters:,} trained)",
        f"machine={machine.name}: {machine.processes}{gpu or f' x {machine.device}'}, layout={machine.layout}, "
        f"{_gib(plan.usable)} usable on each {where}",
        "",
        _line(f"GiB on each {where}", [stage.name for stage in plan.stages]),
    ]
    for name, title in _ROWS:
        values = [getattr(stage.bytes, name) for stage in plan.stages]
        if any(values):
            lines.append(_line(title, [f"{value / GIB:.2f}" for value in values]))
    lines += [
        _line("rows in a batch: device", [str(stage.per_device_batch_size) for stage in plan.stages]),
        _line("  x accumulation", [str(stage.accumulation) for stage in plan.stages]),
        _line("rows", [_known(stage, "rows", stage.rows) for stage in plan.stages]),
        _line("longest row, tokens", [_known(stage, "longest", stage.longest) for stage in plan.stages]),
        _line("steps", [f"{stage.steps:,}" for stage in plan.stages]),
        _line("tokens in all steps", [_known(stage, "tokens", stage.tokens) for stage in plan.stages]),
        _line("  and in evaluations", [_known(stage, "held_out", stage.evaluated) for stage in plan.stages]),
        _line("PFLOP", [f"{stage.flops / 1e15:,.4g}" for stage in plan.stages]),
        _line("hours", [_hours(stage) for stage in plan.stages]),
        "",
        f"one process   {_children(plan)}{' on one GPU' if where == 'GPU' else ''}; "
        f"merge {_gib(plan.children['merge'])}{_quantising(plan)} of host memory",
        f"checkpointing {plan.checkpointing}",
        f"host memory   {_gib(plan.host)} of {_gib(plan.host_usable)}; saving gathers the adapter only "
        f"({_gib(plan.save_peak)})",
        f"disk          {_gib(sum(plan.disk.values()))}: "
        + ", ".join(f"{name} {_gib(size)}" for name, size in plan.disk.items() if size),
        f"time          {_time(plan)}",
    ]
    if plan.progress:
        lines.append(f"stages        {_progress(plan)}")
    if plan.options:
        lines += ["", "ways to lay it out, one row on each GPU, activations recomputed:"]
        lines += [
            f"  {'*' if (o.method, o.layout) == (plan.method, machine.layout) else ' '} {o.method:<5} {o.layout:<5} "
            f"{o.gib:7.1f} GiB  {'fits' if o.fits else 'too big':<7}  {o.note}"
            for o in plan.options
        ]
    if plan.best is not None:
        lines.append(f"  best: {plan.best.method} {plan.best.layout}, {plan.best.note}")
    if plan.problems:
        lines += ["", "it does not fit:"]
        lines += [
            f"  {problem.path}{'' if problem.value is None else f'={problem.value}'}: {problem.rule}"
            for problem in plan.problems
        ]
        lines += ["", "type instead, after `accelerate launch finetune/train.py` (or `finetune plan` to look first):"]
        lines += [f"  {word}" for word in plan.advice]
    else:
        lines += ["", "it fits."] + [f"  {word}" for word in plan.advice]
    return "\n".join(lines)


def _children(plan: Plan) -> str:
    return ", ".join(f"{name} {_gib(peak)}" for name, peak in plan.children.items() if name != "merge")


def _quantising(plan: Plan) -> str:
    return f", quantising {_gib(plan.quantising)}" if plan.quantising else ""


def _line(title: str, cells: list[str]) -> str:
    return f"  {title:<28}" + "".join(f"{cell:>16}" for cell in cells)


def _known(stage: StagePlan, name: str, number: int) -> str:
    """`= 458` where it was counted, `<= 458` where it is the recipe's limit."""
    return f"{'=' if name in stage.counted else '<='} {number:,}"


def _progress(plan: Plan) -> str:
    """Stages of one state together, in the order of the run."""
    steps = {stage.name: stage.steps for stage in plan.stages}
    groups: list[tuple[str, list[str]]] = []
    for stage in plan.progress:
        note = "" if stage.state == "cached" else stage.note
        if stage.step is not None:
            note = f"step {stage.step} of {steps[stage.name]}"
        said = f"{stage.state} ({note})" if note else stage.state
        if not groups or groups[-1][0] != said:
            groups.append((said, []))
        groups[-1][1].append(stage.name)
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in groups)


def _hours(stage: StagePlan) -> str:
    return "not known" if stage.hours is None else f"{stage.hours:,.2f}"


def _time(plan: Plan) -> str:
    if plan.hours is None:
        return "not known: give machine.tflops"
    limit = "" if plan.tokens_known else "at most "
    speed = (
        f"at {(plan.flops_per_second or 0) / 1e12:.2f} TFLOP/s"
        if plan.machine.device == "cpu"
        else f"at {plan.utilisation:.0%} of {plan.machine.tflops:g} TFLOP/s"
    )
    cost = "" if plan.usd is None else f", {limit}{plan.usd:,.2f} USD"
    return f"{limit}{plan.hours:,.2f} hours of training {speed}{cost}; generation, merging and downloads come on top"


def _gib(count: float) -> str:
    return f"{count / GIB:,.1f} GiB"
