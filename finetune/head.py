"""What reaches the language-model head: only the positions that are scored, and a shared prompt once.

TRL's trainers call `model(..., labels=labels, fused_lm_head=True)` and read per-token log-probabilities from the
answer. Off Triton its own head scores every position. Here, on CPU, three things are left out that change no result:

- positions without a label never reach the head (a third of a forward at 49,152 tokens of vocabulary);
- the padding mask: with padding on the right a causal model never looks at it, and without a mask the attention
  kernel takes its causal path;
- in a batch of pairs (DPO: first half chosen, second half rejected) the prompt, which both answers share, is read
  once: one row holds prompt, chosen and rejected, and the rejected tokens are masked from the chosen ones.
"""

import functools
import types
from typing import Any

import torch

_TILE = 32_768
"""Vocabulary entries projected at once, TRL's own choice: bounds the memory of the logits."""

_RESHAPED = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def score_supervised_only(model: Any, *, outputs: tuple[str, ...], pairs: bool = False) -> None:
    """Give `model` (the model under the adapter, already given TRL's fused head) the head described above.

    `outputs` are TRL's names of the per-token fields wanted. `pairs` says that batches are chosen rows followed by
    rejected rows. Calls without `fused_lm_head=True` are left as they were.
    """
    shaped = [name for name in _RESHAPED if getattr(model.config, name, None) not in (None, 1.0)]
    assert not shaped, f"this model reshapes its logits ({shaped[0]}); the lean head would not"
    inner = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        plain = set(kwargs) <= {"input_ids", "attention_mask", "use_cache", "return_dict"} and not args
        if not fused_lm_head or labels is None or not plain:
            return inner(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        input_ids: torch.Tensor = kwargs["input_ids"]
        attention: torch.Tensor | None = kwargs.get("attention_mask")
        if attention is not None and bool((attention[:, 1:] > attention[:, :-1]).any()):
            return inner(fused_lm_head=True, labels=labels, **kwargs)  # left padding: the mask matters
        target = labels[:, 1:]
        mask = target != -100
        if pairs:
            hidden = _hidden_of_pairs(self, input_ids, attention, mask)
        else:
            hidden = self.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1][mask]
        return _score(self.get_output_embeddings(), hidden, target, mask, outputs)

    model.forward = types.MethodType(forward, model)


def _score(head: Any, hidden: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, outputs: tuple[str, ...]) -> Any:
    """TRL's own kernel on the supervised positions; `hidden` has one row for each True in `mask`."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import FusedCausalLMOutput

    fields: tuple[Any, ...] = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, target[mask], 1.0, _TILE, None, 1.0, outputs
    )
    spread: list[Any] = [None if x is None else x.new_zeros(mask.shape).masked_scatter(mask, x) for x in fields]
    log_probs: torch.Tensor = spread[0]
    entropy, log_sum_sq_probs, mean_logits, is_top1 = spread[1:]
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / mask.sum().clamp(min=1), log_probs=log_probs, entropy=entropy,
        log_sum_sq_probs=log_sum_sq_probs, mean_logits=mean_logits, is_top1=is_top1, label_mask=mask,
    )


def _hidden_of_pairs(
    model: Any, input_ids: torch.Tensor, attention: torch.Tensor | None, mask: torch.Tensor
) -> torch.Tensor:
    """Hidden states at the supervised positions (in the order of `mask`), with each pair's common start read once.

    `input_ids` is (2 * pairs, length), right padded; `mask` is (2 * pairs, length - 1): position t predicts t + 1.
    """
    pairs = input_ids.size(0) // 2
    sizes = [input_ids.size(1)] * (2 * pairs) if attention is None else attention.sum(1).tolist()
    supervised = mask.int().argmax(1).tolist()  # position whose successor is the first supervised token
    joined, shapes = [], []
    for row in range(pairs):
        chosen, rejected = input_ids[row], input_ids[row + pairs]
        # Up to and including the token before the first supervised one, and never further than both rows agree.
        start = min(supervised[row], supervised[row + pairs]) + 1
        assert bool((chosen[:start] == rejected[:start]).all()), "a pair does not share its prompt"
        joined.append(torch.cat([chosen[: sizes[row]], rejected[start : sizes[row + pairs]]]))
        shapes.append((start, sizes[row], len(joined[-1])))
    width = max(len(ids) for ids in joined)
    ids = input_ids.new_zeros((pairs, width))
    positions = torch.arange(width).repeat(pairs, 1)
    allowed = torch.ones((width, width), dtype=torch.bool).tril().repeat(pairs, 1, 1)
    for row, (start, middle, end) in enumerate(shapes):
        ids[row, :end] = joined[row]
        positions[row, middle:end] -= middle - start
        allowed[row, middle:end, start:middle] = False
    dtype = model.dtype
    blocked = torch.zeros((pairs, 1, width, width), dtype=dtype).masked_fill_(
        ~allowed.unsqueeze(1), torch.finfo(dtype).min
    )
    hidden = model.base_model(
        input_ids=ids, attention_mask=blocked, position_ids=positions, use_cache=False
    ).last_hidden_state
    rows, columns = mask.nonzero(as_tuple=True)
    places = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        start, middle, _ = shapes[row % pairs]
        places.append(column if row < pairs or column < start else column - start + middle)
    return hidden[rows % pairs, torch.tensor(places)]
