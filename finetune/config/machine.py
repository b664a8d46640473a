"""Section `machine`: processes, memory and layout. How fast a thing ran is never part of its identity."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.config.section import Section

Positive = Annotated[int, Field(ge=1)]
Layout = Literal["single", "ddp", "zero3"]


class Preparation(Section):
    """Where PREPARE works off the documents: the same rows come out of each engine, with any number of workers."""

    engine: Literal["local", "datatrove", "slurm"] = "local"
    """datatrove: its local executor; slurm: its jobs on a cluster, for what outgrows one machine."""
    workers: Positive | None = None
    """Pieces at one time; null: one for each core here, on a cluster as many as it starts."""
    partition: str | None = None
    time: str | None = None
    """Slurm's limit for one piece, such as 01:00:00."""
    memory_gib: Positive = 2
    """Host memory of each job of a cluster."""
    sbatch: dict[str, str] = {}
    """Further words for sbatch, such as {account: law, qos: normal}."""


class Machine(Section):
    name: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    nodes: Positive = 1
    processes: Positive = 1
    """Processes over all nodes: one for each GPU."""
    layout: Layout = "single"
    sequence_parallel: Positive = 1
    """Processes that share the tokens of the same rows (Ulysses), for rows too long for one; CPT and SFT only."""
    gpu: str | None = None
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    host_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Host memory of one node; null: what this machine has."""
    per_device_batch_size: Positive | None = None
    """null: the largest that the planner says fits."""
    gradient_checkpointing: bool | None = None
    """Recompute activations; null: only where that batch does not fit without, which costs about a third more."""
    threads: Positive | None = None
    """CPU threads of each process; null: cores divided by local processes."""
    tflops: Annotated[float, Field(gt=0)] | None = None
    """Peak dense bf16 TFLOP/s of one device, for the planner."""
    usd_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None
    prepare: Preparation = Preparation()
    deepspeed: dict[str, Any] | None = None
    """The one and only DeepSpeed config, handed to TrainingArguments(deepspeed=...)."""

    @property
    def batches(self) -> int:
        """Batches that are worked on at one time: a group of processes that shares rows has one."""
        return self.processes // self.sequence_parallel
