"""The few things that the ranks of a training say to each other; nothing happens where one process trains alone."""

from typing import Any

import torch


def world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    if world() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return list(tensor.tolist())


def gather(value: Any) -> list[Any]:
    """What every rank gave, in the order of ranks."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    torch.distributed.all_gather_object(found, value)
    return found


def tell(value: Any) -> Any:
    """What the first rank gave; what the others gave is not looked at."""
    if world() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all() -> None:
    if world() > 1:
        torch.distributed.barrier()


def leave() -> None:
    """Close the process group: its buffers lie on the device that the next stage's child needs for itself."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
