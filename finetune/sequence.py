"""Sequence parallelism after DeepSpeed-Ulysses (arXiv 2309.14509): ranks of a group share the tokens of the same rows.

Embedding, linear layers, norms, loss and LoRA look at one token at a time, so a rank with a slice of every row does its
part alone. For attention the ranks of a group trade heads for tokens: each holds all tokens of its share of the heads,
runs the usual kernel, and trades back. The loss of a rank is the sum over its own labels divided by the labels of the
whole step, so averaging gradients over all ranks, as DDP and ZeRO do anyway, gives the gradient of one process.

DeepSpeed's own Ulysses (`UlyssesSPAttentionHF` behind accelerate's `sp_size`) is not used: its loss is a mean of means
of micro-batches and not over supervised tokens, its groups can be made only once in a process (CPT and SFT share one),
and it needs the DeepSpeed engine.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune import collective


@dataclass(frozen=True)
class Share:
    """The part of every row that this rank holds."""

    parts: int
    part: int
    group: Any
    """torch process group of the ranks that share rows."""

    def of(self, batch: dict[str, Any]) -> dict[str, Any]:
        """This rank's slice of a right-padded batch (rows, length), length a multiple of `parts`.

        `shift_labels` are cut from the labels of whole rows: the last token of a slice predicts the first of the next.
        The mask is left out: a causal model never looks at padding on the right.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        size = ids.size(1) // self.parts
        assert size * self.parts == ids.size(1), f"{ids.size(1)} tokens do not divide into {self.parts} slices"
        mine = slice(self.part * size, (self.part + 1) * size)
        whole = {
            "input_ids": ids,
            "labels": labels,
            "shift_labels": torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100),
            "position_ids": torch.arange(ids.size(1)).expand_as(ids),
        }
        return {"row": batch["row"], **{name: tensor[:, mine].contiguous() for name, tensor in whole.items()}}


def join(parts: int) -> Share:
    """Groups of `parts` neighbouring ranks; every rank has to call it, once the process group is there."""
    world, me = collective.world(), collective.rank()
    assert world % parts == 0, f"{world} ranks do not divide into groups of {parts}"
    groups = [torch.distributed.new_group(list(range(first, first + parts))) for first in range(0, world, parts)]
    return Share(parts=parts, part=me % parts, group=groups[me // parts])


def places(count: int, *, per_device: int, parts: int) -> list[int]:
    """Places 0 to `count` in the order that hands every batch of `per_device` to all ranks of one group.

    The data loader deals batches to ranks in turn, so each batch stands there `parts` times.
    """
    batches = [range(start, min(start + per_device, count)) for start in range(0, count, per_device)]
    return [place for batch in batches for _ in range(parts) for place in batch]


def share_attention(model: Any, share: Share) -> None:
    """Let `model` (a transformers decoder with sdpa) attend over the slices of its group."""
    assert model.config._attn_implementation == "sdpa", "checks asks for sdpa"
    # transformers builds no mask for a name that its table of masks does not know.
    ALL_ATTENTION_FUNCTIONS.register("ulysses_sdpa", partial(_attend, share))
    model.set_attn_implementation("ulysses_sdpa")


class _Trade(torch.autograd.Function):
    """Part i of dimension 0 goes to rank i of the group, and the answer holds what rank i sent: its own transpose."""

    @staticmethod
    def forward(ctx: Any, sent: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        got = torch.empty_like(sent)
        torch.distributed.all_to_all_single(got, sent, group=group)
        return got

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _Trade.apply(gradients[0].contiguous(), ctx.group), None


def _attend(
    share: Share, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, **given: Any,
) -> tuple[torch.Tensor, None]:
    """`query`, `key`, `value`: (rows, heads, slice, size) of this rank; returns (rows, slice, heads, size)."""
    assert attention_mask is None, "a slice has no padding to mask"
    assert given.get("sliding_window") is None, "all tokens are attended to"
    # Neighbouring query heads share a key head, so equal parts of both stay together.
    heads = [states.unflatten(1, (share.parts, -1)) for states in (query, key, value)]
    sent = torch.cat(heads, dim=2).transpose(0, 1).contiguous()  # (parts, rows, heads of one part, slice, size)
    got = _Trade.apply(sent, share.group).permute(1, 2, 0, 3, 4).flatten(2, 3)  # (rows, own heads, all tokens, size)
    whole = got.split([states.size(2) for states in heads], dim=1)
    answer, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *whole, None, **given)  # (rows, all tokens, own heads, size)
    back = _Trade.apply(answer.unflatten(1, (share.parts, -1)).transpose(0, 1).contiguous(), share.group)
    return back.permute(1, 2, 0, 3, 4).flatten(2, 3), None
