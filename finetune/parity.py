"""Two models on the same answers: KL divergence and top-1 agreement, teacher-forced, over the whole vocabulary.

The first writes its logits to a file, the second is compared with them, so that one model is in memory at a time. The
worker of `finetune.quantise` runs this in an environment that has torch and little else: nothing but the standard
library and `finetune.errors` may be imported at the top.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import RecipeError

if TYPE_CHECKING:
    import torch

_NEAR_TIE_STEPS = 2
"""Two best logits that are at most so many steps of the number format apart are a near-tie: rounding decides. A
bfloat16 logit between 16 and 32 can only be told from one that is 0.125 away."""


def logits_of(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> "torch.Tensor":
    """Logits before each answer token as float32 [len(answer), vocabulary]. One row at a time: no padding."""
    import torch

    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer)).logits[0]
        on_host: torch.Tensor = logits.float().cpu()
    return on_host


def store(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], file: Path) -> None:
    """Write the logits before every answer token, float32, one answer after the other, without any header."""
    with file.open("wb") as handle:
        for prompt, answer in zip(prompts, answers, strict=True):
            handle.write(memoryview(logits_of(model, prompt, answer).numpy()).cast("B"))


def compare(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], file: Path, ids: Sequence[str],
    dtype: str,
) -> dict[str, Any]:
    """KL(stored || model) and top-1 agreement over every position of every answer; `file` is what `store` wrote."""
    import torch

    kls: list[torch.Tensor] = []
    agreed = 0
    near_ties: list[dict[str, Any]] = []
    disagreements: list[dict[str, Any]] = []
    with file.open("rb") as handle:
        for name, prompt, answer in zip(ids, prompts, answers, strict=True):
            ours = logits_of(model, prompt, answer)
            theirs = torch.frombuffer(bytearray(handle.read(ours.numel() * 4)), dtype=torch.float32).reshape(ours.shape)
            p, q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
            kls.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
            best = theirs.topk(2, dim=-1).values
            same = theirs.argmax(-1) == ours.argmax(-1)
            agreed += int(same.sum())
            for position in torch.nonzero(~same).flatten().tolist():
                first, second = best[position].tolist()
                entry = {"id": name, "position": position, "margin_nats": round(first - second, 5)}
                near = first - second <= _NEAR_TIE_STEPS * _step(first, dtype)
                (near_ties if near else disagreements).append(entry)
        assert not handle.read(1), "the two models were not asked the same positions"
    kl = torch.cat(kls)
    if not bool(torch.isfinite(kl).all()):
        raise RecipeError.one(
            "parity", None, "one of the two models compared gives probabilities that are not finite",
            "a training run diverged: lower the learning rate and train again",
        )  # fmt: skip
    return {
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": agreed / len(kl),
        "n_positions": len(kl),
        "n_prompts": len(prompts),
        "near_ties": near_ties,
        "disagreements": disagreements,
        "near_tie": f"two best logits within {_NEAR_TIE_STEPS} steps of {dtype}",
        "over": "the adapter's own greedy answers",
    }


def _step(logit: float, dtype: str) -> float:
    """Distance from `logit` to the next number that `dtype` can hold."""
    import torch

    return float(torch.finfo(getattr(torch, dtype)).eps * 2.0 ** math.floor(math.log2(max(abs(logit), 1e-30))))
