"""Forgetting: perplexity of general text that the adapter never trained for, before and after."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WINDOW = 512
"""Tokens that are read together. Part of the measure: longer windows give lower perplexities."""
_BATCH_TOKENS = 1024
_LARGEST_NATS = 700
"""exp(710) is no float."""
_HEAD_ROWS = 256
"""Positions whose logits exist in float32 at once: 152,000 words x 4 bytes x 256 = 156 MB."""


def cut_windows(
    texts: Sequence[str], encode: Callable[[str], list[int]], eos_id: int, *, tokens: int
) -> list[list[int]]:
    """Texts of one kind, each closed by eos, joined and cut into windows of one length, at most `tokens` in all.

    One length needs no padding and no mask. What does not fill a window is left out, unless it is all there is.
    """
    stream: list[int] = []
    for text in texts:
        if len(stream) >= tokens:
            break
        stream += [*encode(text), eos_id]
    stream = stream[:tokens]
    size = min(WINDOW, len(stream))
    if size < 2:
        return []
    return [stream[begin : begin + size] for begin in range(0, len(stream) - size + 1, size)]


def negative_log_likelihood(model: Any, windows: Sequence[Sequence[int]]) -> list[float]:
    """Mean nats a token of each window, its first token given. The model is in evaluation mode."""
    import torch

    assert not model.training, "dropout would be measured too"
    per_batch = max(1, _BATCH_TOKENS // len(windows[0]))
    losses: list[float] = []
    with torch.inference_mode():
        for begin in range(0, len(windows), per_batch):
            ids = torch.tensor([list(window) for window in windows[begin : begin + per_batch]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits
            for row, target in zip(logits, ids, strict=True):
                parts = [
                    torch.nn.functional.cross_entropy(
                        row[at : min(at + _HEAD_ROWS, len(target) - 1)].float(),
                        target[at + 1 : at + 1 + _HEAD_ROWS],
                        reduction="sum",
                    ).item()
                    for at in range(0, len(target) - 1, _HEAD_ROWS)
                ]
                losses.append(math.fsum(parts) / (len(target) - 1))
            del logits, row  # or the next batch's are made beside them: 311 MB at Qwen3's vocabulary in bfloat16
    return losses


def summarise(base: Mapping[str, Sequence[float]], tuned: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Kind -> mean nats of each window, for both systems -> perplexities and their relative change."""
    before = {kind: _perplexity(losses) for kind, losses in base.items()}
    after = {kind: _perplexity(losses) for kind, losses in tuned.items()}
    return {
        "perplexity_base": before,
        "perplexity_tuned": after,
        "change": {kind: after[kind] / before[kind] - 1 for kind in before},
    }


def _perplexity(losses: Sequence[float]) -> float:
    """Infinite where it is no number any more: a model that training has broken is measured, and fails its gate."""
    nats = math.fsum(losses) / len(losses)
    return math.exp(nats) if nats < _LARGEST_NATS else nats * math.inf
