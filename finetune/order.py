"""Which rows every optimiser step sees: decided once, before training, the same on every layout and after a resume."""

import random
from collections.abc import Sequence

_WINDOW = 8
"""Batches that are sorted by length together: batches of 8 short rows are then over 90 % full, and data still mixes."""


def plan_order(lengths: Sequence[int], *, batch_size: int, steps: int, seed: int) -> list[int]:
    """Row numbers for `steps * batch_size` places, in order; step k sees places [k * batch_size, (k + 1) * batch_size).

    Every epoch is a new permutation of all rows, so no row is seen twice before all others were seen once. Inside a
    window of a few batches rows are sorted by length and cut into batches, and the batches are shuffled: batches hold
    rows of like length, so little is padding.
    """
    assert lengths, "no rows to train on"
    draw = random.Random(seed)  # noqa: S311 - a data order, not a secret
    places = steps * batch_size
    stream: list[int] = []
    while len(stream) < places:
        epoch = list(range(len(lengths)))
        draw.shuffle(epoch)
        stream.extend(epoch)
    del stream[places:]
    ordered: list[int] = []
    window = _WINDOW * batch_size
    for start in range(0, places, window):
        rows = sorted(stream[start : start + window], key=lambda row: (lengths[row], row))
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        draw.shuffle(batches)
        ordered.extend(row for batch in batches for row in batch)
    return ordered


def steps_of(rows: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps: max_steps where it is given, else enough to see every row `epochs` times."""
    if max_steps is not None:
        return max_steps
    return max(1, -(-int(rows * epochs + 0.5) // batch_size))


def filling(lengths: Sequence[int], order: Sequence[int], *, batch_size: int) -> float:
    """Share of the padded places that hold a token, when every batch is padded to its longest row."""
    used = sum(lengths[row] for row in order)
    padded = sum(
        len(order[i : i + batch_size]) * max(lengths[row] for row in order[i : i + batch_size])
        for i in range(0, len(order), batch_size)
    )
    return used / padded
