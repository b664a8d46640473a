"""What reaches the language-model head: only the positions that are scored, and a shared prompt once.

TRL's trainers call `model(..., labels=labels, fused_lm_head=True)` and read per-token log-probabilities from the
answer. Off Triton its own head scores every position. Here, on CPU, four things are left out that change no result:

- positions without a label never reach the head (a third of a forward at 49,152 tokens of vocabulary);
- padding: the rows of a batch become one flat row, padded or packed, and each document is attended to by itself
  (attention.py), so that a packed step and a padded one are the same computation;
- where all documents of a batch begin alike (a system turn, a task's instruction), that start is read once;
- in a batch of pairs (DPO: first half chosen, second half rejected) the prompt, which both answers share, is read
  once: one row holds prompt, chosen and rejected, and the rejected tokens are masked from the chosen ones.
"""

import functools
import types
from typing import Any

import torch

from finetune.attention import attend_documents, share_start

_ROWS = 256
"""Positions multiplied at once: 25 MB of bfloat16 logits at a vocabulary of 49,152."""
_LINES = 16
"""Positions lifted to float32 at once: 3 MB, which stay in a core's cache from the first pass over them to the last."""

_FLAT = ("input_ids", "position_ids", "cu_seq_lens_q")
_REPEATED = ("cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")  # the same bounds for other kernels
_TAKEN = {*_FLAT, *_REPEATED, "attention_mask", "use_cache", "return_dict"}

_RESHAPED = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def score_supervised_only(model: Any, *, outputs: tuple[str, ...], pairs: bool = False) -> None:
    """Give `model` (the model under the adapter, already given TRL's fused head) the head described above.

    `outputs` are TRL's names of the per-token fields wanted. `pairs` says that batches are chosen rows followed by
    rejected rows; calls without `fused_lm_head=True` are then left as they were. Otherwise they are refused, because
    the model attends inside documents only.
    """
    shaped = [name for name in _RESHAPED if getattr(model.config, name, None) not in (None, 1.0)]
    assert not shaped, f"this model reshapes its logits ({shaped[0]}); the lean head would not"
    if not pairs:
        attend_documents(model)
    inner = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return inner(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        given = {name for name, value in kwargs.items() if value is not None}  # PEFT passes many a None
        assert not args, "TRL's trainers pass tensors by name"
        assert given <= _TAKEN, f"what is {sorted(given - _TAKEN)} for?"
        input_ids: torch.Tensor = kwargs["input_ids"]
        attention: torch.Tensor | None = kwargs.get("attention_mask")
        target = labels[:, 1:]
        mask = target != -100
        if not pairs:
            hidden = _hidden_of_documents(self, kwargs, mask)
        elif attention is not None and bool((attention[:, 1:] > attention[:, :-1]).any()):
            return inner(fused_lm_head=True, labels=labels, **kwargs)  # left padding: the mask matters
        else:
            hidden = _hidden_of_pairs(self, input_ids, attention, mask)
        return _score(self.get_output_embeddings(), hidden, target, mask, outputs)

    model.forward = types.MethodType(forward, model)


class _LogProbs(torch.autograd.Function):
    """Log-probability of each row's target, (n,), with the gradient for `hidden` prepared on the way.

    d log p(target) / d hidden = W[target] - softmax @ W depends on a row alone, so it is computed while the logits are
    at hand: nothing of the vocabulary's width is kept or computed twice. The head is frozen. Half of TRL's kernel's
    time for a batch of short answers went into doing this again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, extra: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        scores = hidden.new_empty(len(target), dtype=torch.float32)
        wanted = hidden.requires_grad
        slopes = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(target), _ROWS):
            part = slice(start, start + _ROWS)
            logits, total = hidden[part] @ weight.T, scores.new_empty(len(target[part]))
            for first in range(start, start + len(logits), _LINES):
                lines, tile = slice(first, min(first + _LINES, start + len(logits))), logits[first - start :][:_LINES]
                wide = tile.float()
                top = wide.amax(-1)
                mine = wide.gather(-1, target[lines, None]).squeeze(-1)
                sums = wide.sub_(top[:, None]).exp_().sum(-1)
                scores[lines] = mine - top - sums.log()
                extra["is_top1"][lines] = mine == top
                if "log_sum_sq_probs" in extra:
                    extra["log_sum_sq_probs"][lines] = wide.square().sum(-1).log() - 2 * sums.log()
                tile.copy_(wide)
                total[first - start :][:_LINES] = sums
            if slopes is not None:
                mean = (logits @ weight).float() / total[:, None]
                slopes[part] = (weight[target[part]].float() - mean).to(slopes.dtype)
            del logits, tile, wide  # views too, or the next tile is made beside this one: 78 MB at Qwen3's vocabulary
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes.float()).to(slopes.dtype), None, None, None


def _score(head: Any, hidden: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, outputs: tuple[str, ...]) -> Any:
    """TRL's output object; `hidden` has one row for each True in `mask`.

    Entropy and mean logits feed TRL metrics that are not shown here: they are zero, not measured.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    count = hidden.size(0)
    extra = {"is_top1": torch.zeros(count, dtype=torch.bool)}
    if "log_sum_sq_probs" in outputs:
        extra["log_sum_sq_probs"] = torch.zeros(count)
    log_probs = spread(_LogProbs.apply(hidden, head.weight, target[mask], extra))
    nothing = torch.zeros(mask.shape)
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / mask.sum().clamp(min=1), log_probs=log_probs, entropy=nothing, mean_logits=nothing,
        label_mask=mask, **{name: spread(values) for name, values in extra.items()},
    )


def _hidden_of_documents(model: Any, given: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
    """Hidden states at the supervised positions (in the order of `mask`): position t predicts t + 1.

    `given` holds a padded batch (rows, length) or, as TRL's padding-free collator makes it, one flat row.
    """
    scored = torch.nn.functional.pad(mask, (0, 1))
    if given.get("cu_seq_lens_q") is not None:
        assert given.get("attention_mask") is None, "a flat row has no padding to mask"
        flat = {name: given[name] for name in _FLAT}
    else:
        padded: torch.Tensor = given["input_ids"]
        here = given.get("attention_mask")
        here = torch.ones_like(padded) if here is None else here
        positions, bounds = here.cumsum(1) - 1, here.sum(1).cumsum(0, dtype=torch.int32)
        here = here.bool()
        values = (padded[here][None], positions[here][None], torch.nn.functional.pad(bounds, (1, 0)))
        flat = dict(zip(_FLAT, values, strict=True))
        scored = scored[here][None]
    if (shared := _shared_start(model, flat, scored)) > 0:
        once = flat["position_ids"] >= shared
        once[:, :shared] = True  # of the first document
        flat |= {name: flat[name][once][None] for name in ("input_ids", "position_ids")}
        flat["cu_seq_lens_q"] = share_start(flat["cu_seq_lens_q"], shared)
        scored = scored[once][None]
    return model.base_model(**flat, use_cache=False).last_hidden_state[scored]


def _shared_start(model: Any, flat: dict[str, torch.Tensor], scored: torch.Tensor) -> int:
    """How many tokens all documents begin with, none of them scored; 0 where noise is drawn for each token of each."""
    bounds, noise = flat["cu_seq_lens_q"], getattr(model.get_input_embeddings(), "neftune_noise_alpha", None)
    dropout = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    if len(bounds) < 3 or (model.training and (noise or dropout or getattr(model.config, "attention_dropout", 0))):
        return 0
    shortest = torch.arange(int((bounds[1:] - bounds[:-1]).min()), device=bounds.device)
    starts = flat["input_ids"][0][bounds[:-1, None] + shortest]  # (documents, tokens of the shortest)
    alike = (starts == starts[0]).all(0).cumprod(0).sum()
    return min([int(alike), *flat["position_ids"][scored].tolist()])


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
