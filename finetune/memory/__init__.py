"""Bytes, hours and money before anything starts. Pure arithmetic: nothing here imports torch."""

from finetune.memory.budget import Plan, StagePlan, settle
from finetune.memory.counts import Counts, lora_parameters, parameters
from finetune.memory.device import DeviceBytes, device_bytes
from finetune.memory.machines import Gpu, Here, here, resolve_machine
from finetune.memory.planner import plan
from finetune.memory.work import Counted, StageState

__all__ = [
    "Counted",
    "Counts",
    "DeviceBytes",
    "Gpu",
    "Here",
    "Plan",
    "StagePlan",
    "StageState",
    "device_bytes",
    "here",
    "lora_parameters",
    "parameters",
    "plan",
    "resolve_machine",
    "settle",
]
