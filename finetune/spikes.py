"""When a step's loss or gradient is a spike: one stated rule, computed from the log alone. No torch.

The log travels in the checkpoint, so a run that was stopped and resumed warns exactly as an undisturbed one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 20
"""Steps looked back on."""
FEWEST = 10
"""Before so many steps nothing is called a spike: there is nothing to compare with."""
_LOSS_FACTOR = 1.5
_NORM_FACTOR = 3.0


def spike_in(history: Sequence[Mapping[str, Any]]) -> str | None:
    """What is unusual in the last step of `history`, in words; None when nothing is.

    Compared with the largest of the 20 steps before it (at least 10): a loss above it by more than half, or a gradient
    norm above 3 times. The largest and not a median with a spread: batches of rows of like length differ by kind, and
    in a recipe with replay the loss jumps between 0.2 and 3.9 in a healthy run (tests/curves.json).
    """
    *before, last = history[-WINDOW - 1 :]
    if len(before) < FEWEST:
        return None
    for name, words, factor in (("loss", "loss", _LOSS_FACTOR), ("grad_norm", "gradient norm", _NORM_FACTOR)):
        largest = max(line[name] for line in before)
        if last[name] > largest + (factor - 1) * abs(largest):
            return f"{words} {last[name]:.4g}, where the {len(before)} steps before it had at most {largest:.4g}"
    return None
