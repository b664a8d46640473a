"""Which rows every optimiser step sees: decided once, before training, the same on every layout and after a resume."""

import random
from bisect import bisect_left, insort
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


def plan_packs(lengths: Sequence[int], *, room: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Packs of row numbers for `steps * batch_size` places; step k sees packs [k * batch_size, (k + 1) * batch_size).

    As in `plan_order` every epoch holds every row once. Each epoch packs anew: rows of equal length change places, and
    the number of packs, which follows from the lengths alone, stays.
    """
    assert lengths, "no rows to train on"
    draw = random.Random(seed)  # noqa: S311 - a data order, not a secret
    places = steps * batch_size
    stream: list[list[int]] = []
    while len(stream) < places:
        rows = list(range(len(lengths)))
        draw.shuffle(rows)
        packs = [[rows[place] for place in pack] for pack in place_rows([lengths[row] for row in rows], room=room)]
        draw.shuffle(packs)
        stream.extend(packs)
    return stream[:places]


def place_rows(lengths: Sequence[int], *, room: int) -> list[list[int]]:
    """Best-fit decreasing: the longest row first, each into the fullest pack that still has room for it, none cut.

    TRL's `pack_dataset(strategy="bfd")` makes as many packs, but cuts what is longer than a pack, packs each thousand
    rows for themselves and does not say which rows it joined.
    """
    assert max(lengths) <= room, "a row is longer than a pack"
    packs: list[list[int]] = []
    spaces: list[int] = []  # the distinct free lengths of open packs, ascending
    open_packs: dict[int, list[int]] = {}  # free length -> packs that have it
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        at = bisect_left(spaces, lengths[row])
        if at == len(spaces):
            pack, space = len(packs), room
            packs.append([])
        else:
            space = spaces[at]
            pack = open_packs[space].pop()
            if not open_packs[space]:
                del spaces[at]
        packs[pack].append(row)
        held = open_packs.setdefault(space - lengths[row], [])
        if not held:
            insort(spaces, space - lengths[row])
        held.append(pack)
    return packs


def pack_room(lengths: Sequence[int], *, max_length: int) -> int:
    """The least room that needs no more packs than `max_length`: all packs are then about as long as the longest,
    where otherwise the last one would hold the rest.
    """
    count = len(place_rows(lengths, room=max_length))
    low, high = max(max(lengths), -(-sum(lengths) // count)), max_length
    while low < high:
        middle = (low + high) // 2
        if len(place_rows(lengths, room=middle)) <= count:
            high = middle
        else:
            low = middle + 1
    return high


def steps_of(rows: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps: max_steps where it is given, else enough to see every row (or pack) `epochs` times."""
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
