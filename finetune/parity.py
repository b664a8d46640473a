"""Two models on the same answers: KL divergence and top-1 agreement, teacher-forced, over the whole vocabulary.

The first writes its logits to a file, the second is compared with them, so that one model is in memory at a time. The
worker of `finetune.quantise` runs this in an environment that has torch and little else: nothing but the standard
library and `finetune.errors` may be imported at the top.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import RecipeError

if TYPE_CHECKING:
    import torch

_POSITIONS = 512
"""Whose logits are made at once: 0.3 GB in float32 with a vocabulary of 152,000."""

Tokens = Sequence[Sequence[int]]


def logits_of(model: Any, prompts: Tokens, answers: Tokens, batch_tokens: int = 0) -> "Iterator[torch.Tensor]":
    """For each row in turn the logits before each answer token, float32 [len(answer), vocabulary].

    Neighbours share a forward while rows x longest stays within `batch_tokens`; 0: one row at a time, no padding. What
    is padded stands behind a row's own tokens, which never see it.
    """
    import torch

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    texts = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    for rows in _neighbours([len(text) for text in texts], batch_tokens):
        longest = max(len(texts[row]) for row in rows)
        ids = torch.tensor([texts[row] + [0] * (longest - len(texts[row])) for row in rows], device=model.device)
        with torch.inference_mode():
            hidden = core.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            spans = [
                hidden[place, len(texts[row]) - len(answers[row]) : len(texts[row])] for place, row in enumerate(rows)
            ]
            for some in _together(spans):
                logits = core.get_output_embeddings()(torch.cat(some)).float()
                yield from logits.split([len(span) for span in some])


def _together(spans: "Sequence[torch.Tensor]") -> "Iterator[list[torch.Tensor]]":
    """Spans for one product with the head: BASES reads that matrix from disk each time."""
    some: list[torch.Tensor] = []
    for span in spans:
        if some and sum(map(len, some)) + len(span) > _POSITIONS:
            yield some
            some = []
        some.append(span)
    if some:
        yield some


def _neighbours(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for row, length in enumerate(lengths):
        if batches and (len(batches[-1]) + 1) * max(longest, length) <= batch_tokens:
            batches[-1].append(row)
            longest = max(longest, length)
        else:
            batches.append([row])
            longest = length
    return batches


def store(model: Any, prompts: Tokens, answers: Tokens, file: Path, *, batch_tokens: int = 0) -> None:
    """Write the logits before every answer token, float32, one answer after the other, without any header."""
    with file.open("wb") as handle:
        for logits in logits_of(model, prompts, answers, batch_tokens):
            handle.write(memoryview(logits.cpu().numpy()).cast("B"))


def compare(
    model: Any, prompts: Tokens, answers: Tokens, file: Path, ids: Sequence[str], dtype: str, *,
    modes: Sequence[str] = (), batch_tokens: int = 0,
) -> dict[str, Any]:
    """KL(stored || model) in nats and top-1 agreement over every position of every answer; `file` is `store`'s.

    `dtype` decides what a near-tie is. `modes`: the mode of each row, for figures of each mode beside the whole.
    `kl_max_at` and the entries of `near_ties` and `disagreements` name the row and the position in its answer.
    """
    import torch

    kls: list[torch.Tensor] = []
    agreed: list[torch.Tensor] = []
    near_ties: list[dict[str, Any]] = []
    disagreements: list[dict[str, Any]] = []
    with file.open("rb") as handle:
        for name, ours in zip(ids, logits_of(model, prompts, answers, batch_tokens), strict=True):
            read = torch.frombuffer(bytearray(handle.read(ours.numel() * 4)), dtype=torch.float32)
            theirs = read.reshape(ours.shape).to(ours.device)
            p, q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
            kls.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0).cpu())
            best = theirs.topk(2, dim=-1).values
            same = theirs.argmax(-1) == ours.argmax(-1)
            agreed.append(same.cpu())
            for position in torch.nonzero(~same).flatten().tolist():
                first, second = best[position].tolist()
                entry = {"id": name, "position": position, "margin_nats": round(first - second, 5)}
                (near_ties if near_tie(first, second, dtype) else disagreements).append(entry)
        assert not handle.read(1), "the two models were not asked the same positions"
    if not all(bool(torch.isfinite(kl).all()) for kl in kls):
        raise RecipeError.one(
            "parity", None, "one of the two models compared gives probabilities that are not finite",
            "a training run diverged: lower the learning rate and train again",
        )  # fmt: skip
    worst = max(range(len(kls)), key=lambda row: float(kls[row].max()))
    each = {
        mode: _figures([row for row, own in enumerate(modes) if own == mode], kls, agreed)
        for mode in dict.fromkeys(modes)
    }  # fmt: skip
    return {
        **_figures(range(len(kls)), kls, agreed),
        "kl_max_at": {"id": ids[worst], "position": int(kls[worst].argmax())},
        "modes": each,
        "near_ties": near_ties,
        "disagreements": disagreements,
        "near_tie": f"two best logits within 2 steps of {dtype}",
        "over": "the adapter's own greedy answers",
    }


def _figures(rows: Sequence[int], kls: "list[torch.Tensor]", agreed: "list[torch.Tensor]") -> dict[str, Any]:
    import torch

    kl, same = torch.cat([kls[row] for row in rows]), torch.cat([agreed[row] for row in rows])
    return {
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": int(same.sum()) / len(same),
        "n_positions": len(kl),
        "n_prompts": len(rows),
    }


def near_tie(first: float, second: float, dtype: str, *, tolerance: float = 0.0) -> bool:
    """Whether rounding decides between the two best logits: each of them may be off by the step from the best to the
    next number that `dtype` can hold, or by `tolerance` nats, what another implementation may be off."""
    import torch

    step = float(torch.finfo(getattr(torch, dtype)).eps) * 2.0 ** math.floor(math.log2(max(abs(first), 1e-30)))
    return may_swap(first - second, max(tolerance, step))


def may_swap(margin: float, off: float) -> bool:
    """Whether two tokens whose log-probs are `margin` apart may change places when each may be `off` nats off: the one
    rule for PROOF, golden prompts and `finetune serve --check`."""
    return margin <= 2 * off
