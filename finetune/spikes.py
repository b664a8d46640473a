"""When a step's loss or gradient is a spike: one stated rule, computed from the log alone. No torch.

The log travels in the checkpoint, so a run that was stopped and resumed warns exactly as an undisturbed one.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

WINDOW = 20
"""Steps looked back on."""
FEWEST = 10
"""Before so many steps nothing is called a spike: there is nothing to compare with."""
_SIGMAS = 6.0
_LOSS_FACTOR = 1.5
_NORM_FACTOR = 10.0
_SIGMA_OF_MAD = 1.4826
"""The standard deviation of normal numbers is 1.4826 times their median absolute deviation (robust statistics)."""


def spike_in(history: Sequence[Mapping[str, Any]]) -> str | None:
    """What is unusual in the last step of `history`, in words; None when nothing is.

    Compared with the 20 steps before it (at least 10): a loss above their median by more than 6 robust standard
    deviations and by more than half of it, or a gradient norm of more than 10 times their median.
    """
    *before, last = history[-WINDOW - 1 :]
    if len(before) < FEWEST:
        return None
    losses = [line["loss"] for line in before]
    middle = median(losses)
    sigma = _SIGMA_OF_MAD * median(abs(loss - middle) for loss in losses)
    if last["loss"] > max(middle + _SIGMAS * sigma, _LOSS_FACTOR * middle):
        return f"loss {last['loss']:.4g}, where the {len(before)} steps before it had a median of {middle:.4g}"
    usual = median(line["grad_norm"] for line in before)
    if last["grad_norm"] > _NORM_FACTOR * usual:
        return f"gradient norm {last['grad_norm']:.4g}, where the {len(before)} steps before it had {usual:.4g}"
    return None
