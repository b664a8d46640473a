"""What this machine has, and `machine=auto` made concrete."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from finetune.config.machine import Layout, Machine

GIB = 2**30
# Peak dense bf16 TFLOP/s from the vendor's data sheets; the first name that occurs in the card's name counts.
_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "H800": 989.0, "GH200": 989.0, "B200": 2250.0, "A100": 312.0,
    "A800": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10": 125.0, "A6000": 155.0, "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float


@dataclass(frozen=True)
class Here:
    """The machine this process runs on."""

    gpus: tuple[Gpu, ...]
    cores: int
    """CPU cores that this process may use."""
    memory_gib: float
    """Host memory, or the control group's limit where that is lower."""
    disk_free_gib: float
    """Free space where the work folder is, or will be."""


def here(work: Path | None = None) -> Here:
    """Look at GPUs (nvidia-smi, where there is one), cores, memory and the disk that holds `work`."""
    folder = (work or Path.cwd()).resolve()
    while not folder.exists():
        folder = folder.parent
    return Here(
        gpus=_gpus(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=_memory_bytes() / GIB,
        disk_free_gib=shutil.disk_usage(folder).free / GIB,
    )


def resolve_machine(
    machine: Machine, here: Here, *, launched: int | None = None, sharded: bool | None = None
) -> Machine:
    """Fill in what the machine file leaves open and no recipe decides: device, processes, layout, memory, threads.

    `launched` is the number of processes that the launcher started (None: planning only); `sharded` says whether
    several GPUs share one copy of the weights (ZeRO-3) or hold one each (DDP; the default).
    """
    device = machine.device if machine.device != "auto" else ("cuda" if here.gpus else "cpu")
    changes: dict[str, object] = {"device": device}
    if machine.device == "auto":
        processes = launched or (len(here.gpus) if device == "cuda" else 1)
        layout: Layout = "single" if processes == 1 else "zero3" if sharded else "ddp"
        changes |= {"processes": processes, "layout": layout}
        changes |= {"deepspeed": machine.deepspeed if layout == "zero3" else None}
    if device == "cuda" and here.gpus and machine.gpu_memory_gib is None:
        smallest = min(here.gpus, key=lambda gpu: gpu.memory_gib)
        changes |= {"gpu": machine.gpu or smallest.name, "gpu_memory_gib": smallest.memory_gib}
        changes |= {"tflops": machine.tflops or peak_tflops(smallest.name)}
    changes |= {"host_memory_gib": machine.host_memory_gib or here.memory_gib}
    if machine.threads is None:
        local = -(-int(str(changes.get("processes", machine.processes))) // machine.nodes)
        changes |= {"threads": max(1, here.cores // local)}
    return machine.model_copy(update=changes)


def peak_tflops(name: str) -> float | None:
    """Peak dense bf16 TFLOP/s of a card by its name, None where it is not known."""
    return next((value for known, value in _TFLOPS.items() if known in name), None)


def _gpus() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        return ()
    cards = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # As CUDA does: the list ends at the first entry that names no card.
        known = {key: card for card in cards for key in card[:2]}
        names = [name.strip() for name in visible.split(",")]
        end = next((i for i, name in enumerate(names) if name not in known), len(names))
        cards = [known[name] for name in names[:end]]
    return tuple(Gpu(name=card[2], memory_gib=float(card[3]) / 1024) for card in cards)


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            return min(total, int(text))
    return total
