"""What a saved adapter has to prove, and what a log line is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune import arguments, loop
from finetune.errors import RecipeError
from finetune.resume import Layout
from tests import tiny

GOOD = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(3, 2)}


def save(path: Path, **changes: torch.Tensor | None) -> Path:
    tensors = {**GOOD, **{f"m.lora_{name}.weight": tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / "a.safetensors")
    return path / "a.safetensors"


def test_a_whole_adapter_passes_and_is_counted(tmp_path: Path) -> None:
    assert loop.check_adapter(save(tmp_path), set(GOOD), GOOD, trained=True) == 12


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"B": None}, "saved adapter and plan disagree"),
        ({"C": torch.ones(1)}, "saved adapter and plan disagree"),
        ({"B": torch.ones(0)}, "empty tensors"),
        ({"A": torch.tensor([[float("nan")]])}, "not finite"),
        ({"A": torch.tensor([[float("inf")]])}, "not finite"),
        ({"B": torch.full((3, 2), 2.0)}, "not the one in memory"),
        ({"B": torch.ones(3, 2, dtype=torch.bfloat16)}, "not the one in memory"),
    ],
)
def test_a_broken_adapter_is_never_sealed(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        loop.check_adapter(save(tmp_path, **changes), set(GOOD), GOOD, trained=True)


def test_an_adapter_that_learned_nothing_is_never_sealed(tmp_path: Path) -> None:
    inert = {**GOOD, "m.lora_B.weight": torch.zeros(3, 2)}
    file = save(tmp_path, B=inert["m.lora_B.weight"])
    with pytest.raises(AssertionError, match="nothing was trained"):
        loop.check_adapter(file, set(GOOD), inert, trained=True)
    assert loop.check_adapter(file, set(GOOD), inert, trained=False) == 12


@pytest.mark.parametrize(
    ("machine", "batch", "expected"),
    [
        ({}, 8, (1, 8, 1)), ({}, 24, (1, 8, 3)), ({}, 7, (1, 7, 1)), ({}, 11, (1, 1, 11)),
        ({"processes": 2, "layout": "ddp"}, 8, (2, 4, 1)),
        ({"processes": 2, "layout": "zero3", "per_device_batch_size": 1}, 8, (2, 1, 4)),
        ({"per_device_batch_size": 16}, 8, (1, 8, 1)),
    ],
)
def test_rows_of_a_step_are_spread_without_a_rest(
    machine: dict[str, Any], batch: int, expected: tuple[int, int, int]
) -> None:
    layout = arguments.layout_of(tiny.machine(**machine), batch, "sft")
    assert (layout.world, layout.per_device, layout.accumulation) == expected
    assert layout.world * layout.per_device * layout.accumulation == batch


def test_a_batch_that_does_not_divide_says_what_to_type() -> None:
    with pytest.raises(RecipeError, match=r"sft.batch_size=56: .*over 8 processes x per_device 3 \(=24\): use 72"):
        arguments.layout_of(tiny.machine(processes=8, layout="ddp", per_device_batch_size=3), 56, "sft")


def test_a_log_line_is_the_mean_over_its_window_and_keeps_evaluations(tmp_path: Path) -> None:
    run = loop.Run(
        name="sft", out=tmp_path, layout=Layout(1, 1, 1, "single"), steps=7, eval_steps=5, log_steps=3, row_ids=[],
        tracker=None, say=print,
    )
    history: list[dict[str, Any]] = [{"step": step, "loss": float(step), "lr": 0.1 * step} for step in range(1, 8)]
    history[4]["eval_loss"] = 9.0
    history[6]["spike"] = {"what": "loss 7", "records": ["a"]}
    lines = loop._thin(history, run)
    assert [line["step"] for line in lines] == [3, 5, 6, 7]
    assert [line["loss"] for line in lines] == [2.0, 4.5, 6.0, 7.0]
    assert [line.get("eval_loss") for line in lines] == [None, 9.0, None, None]
    spikes = [{"step": 7, "what": "loss 7", "records": ["a"]}]
    assert [line.get("spikes") for line in lines] == [None, None, None, spikes]
