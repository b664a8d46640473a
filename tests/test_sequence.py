"""Rows cut into slices for several ranks: nothing lost at the cuts, batches to the right group, nothing unproven."""

import random

import pytest
import torch

from finetune.arguments import layout_of
from finetune.checks import check
from finetune.config import load
from finetune.resume import Layout
from finetune.sequence import Share, places
from tests import tiny

ULYSSES = ("recipe=maintenance", "model=qwen3_32b_128k", "machine=h100x8_ulysses", "stages=[sft]")


def test_the_slices_of_all_ranks_hold_every_position_and_every_label_once() -> None:
    """The token after a cut is predicted by the rank before it: labels are shifted before they are cut."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (3, 24), generator=draw)
    labels = torch.where(torch.rand(3, 24, generator=draw) < 0.5, ids, -100)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "row": torch.tensor([4, 5, 6])}
    slices = [Share(parts=4, part=part, group=None).of(batch) for part in range(4)]
    whole = {name: torch.cat([part[name] for part in slices], dim=1) for name in slices[0] if name != "row"}
    assert torch.equal(whole["input_ids"], ids)
    assert torch.equal(whole["shift_labels"][:, :-1], labels[:, 1:])
    assert (whole["shift_labels"][:, -1] == -100).all()
    assert torch.equal(whole["position_ids"], torch.arange(24).expand(3, 24))
    assert all(part["row"].tolist() == [4, 5, 6] and "attention_mask" not in part for part in slices)
    with pytest.raises(AssertionError, match="do not divide"):
        Share(parts=5, part=0, group=None).of(batch)


@pytest.mark.parametrize(("world", "parts", "per_device", "accumulation"), [(2, 2, 1, 4), (4, 2, 3, 2), (8, 4, 2, 1)])
def test_a_group_gets_the_same_batches_and_a_step_sees_the_rows_it_would_see_alone(
    world: int, parts: int, per_device: int, accumulation: int
) -> None:
    """accelerate's BatchSamplerShard deals batches to ranks in turn; played through with the real one."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    step = world // parts * per_device * accumulation
    order = list(range(3 * step))
    random.Random(1).shuffle(order)
    spread = [order[place] for place in places(len(order), per_device=per_device, parts=parts)]
    sampler = BatchSampler(SequentialSampler(spread), batch_size=per_device, drop_last=False)
    dealt = [
        [[spread[place] for place in batch] for batch in BatchSamplerShard(sampler, world, rank)]
        for rank in range(world)
    ]
    for rank, batches in enumerate(dealt):
        assert batches == dealt[rank // parts * parts]
    for number in range(3):
        steps = (batches[number * accumulation : (number + 1) * accumulation] for batches in dealt[::parts])
        seen = [row for batches in steps for batch in batches for row in batch]
        assert sorted(seen) == sorted(order[number * step : (number + 1) * step])


def test_rows_of_a_step_are_dealt_to_groups_and_a_checkpoint_remembers_them() -> None:
    machine = tiny.machine(layout="zero3", processes=8, sequence_parallel=4, per_device_batch_size=1)
    layout = layout_of(machine, 6, "sft")
    assert layout == Layout(world=8, per_device=1, accumulation=3, kind="zero3", sequence=4)
    assert layout != layout_of(machine.model_copy(update={"sequence_parallel": 2}), 12, "sft")
    assert "4 share a row" in str(layout)
    assert Layout(world=2, per_device=1, accumulation=1, kind="ddp").sequence == 1


def test_the_machine_for_long_rows_is_a_good_recipe() -> None:
    recipe = load(ULYSSES)
    assert check(recipe) == []
    assert (recipe.sft.max_length, recipe.machine.batches) == (131_072, 1)
    assert check(load(["recipe=maintenance", "model=tiny_qwen3", "machine=cpu_ulyssesx2", "stages=[sft]"])) == []


@pytest.mark.parametrize(
    ("words", "path", "said", "typed"),
    [
        (["stages=[sft,dpo]"], "stages", "cuts them up", "stages=[sft]"),
        (["sft.packing=true"], "sft.packing", "documents apart", "sft.packing=false"),
        (["sft.trl.label_smoothing_factor=0.1"], "sft.trl.label_smoothing_factor", "wrong labels", "~sft.trl.label_s"),
        (["machine.sequence_parallel=3"], "machine.sequence_parallel", "8 processes of a node", "sequence_parallel=2"),
        (["machine.processes=16", "machine.nodes=2", "machine.sequence_parallel=16"], "machine.sequence_parallel",
         "over a network", "sequence_parallel=8"),
        (["model.architecture.num_key_value_heads=4"], "machine.sequence_parallel", "4 key heads",
         "sequence_parallel=4"),
        (["model.attn_implementation=eager"], "model.attn_implementation", "around torch's sdpa", "=sdpa"),
        (["sft.batch_size=3", "machine.sequence_parallel=4"], "sft.batch_size", "2 groups of 4 GPUs", "use 2 or 4"),
    ],
)  # fmt: skip
def test_what_cannot_share_rows_is_refused_with_what_to_type(
    words: list[str], path: str, said: str, typed: str
) -> None:
    found = [problem for problem in check(load([*ULYSSES, *words])) if problem.path == path and said in problem.rule]
    assert found
    assert typed in found[0].fix


def test_a_plan_that_is_too_large_for_its_rows_says_how_to_share_them() -> None:
    from finetune.memory import Gpu, Here, plan, settle

    eight = Here(gpus=(Gpu("H100-80GB", 80.0),) * 8, cores=64, memory_gib=1024.0, disk_free_gib=1000.0)
    start = ["recipe=maintenance", "model=qwen3_32b_128k", "stages=[sft]"]
    alone = plan(settle(load([*start, "machine=h100x8"]), eight))
    shared = plan(settle(load([*start, "machine=h100x8_ulysses"]), eight))
    assert not alone.fits
    assert any("machine.sequence_parallel=8 'stages=[sft]'" in word for word in alone.advice)
    assert shared.fits
    (one,), (many,) = alone.stages, shared.stages
    assert many.per_device_batch_size * many.accumulation == load(start).sft.batch_size
    assert many.bytes.activations / many.per_device_batch_size < one.bytes.activations / 7.9
