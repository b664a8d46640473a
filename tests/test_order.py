"""Which rows every step sees."""

import random
from collections import Counter

import pytest

from finetune.order import filling, pack_room, place_rows, plan_order, plan_packs, steps_of

_DRAW = random.Random(1)
LENGTHS = [_DRAW.randrange(20, 200) for _ in range(100)]


def test_every_row_is_seen_once_before_any_is_seen_twice() -> None:
    order = plan_order(LENGTHS, batch_size=4, steps=25, seed=0)
    assert sorted(order) == list(range(100))


def test_a_step_and_a_half_epochs_sees_half_the_rows_twice() -> None:
    counts = Counter(plan_order(LENGTHS, batch_size=10, steps=15, seed=0))
    assert set(counts) == set(range(100))
    assert sorted(counts.values()) == [1] * 50 + [2] * 50


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    assert plan_order(LENGTHS, batch_size=8, steps=9, seed=3) == plan_order(LENGTHS, batch_size=8, steps=9, seed=3)
    assert plan_order(LENGTHS, batch_size=8, steps=9, seed=3) != plan_order(LENGTHS, batch_size=8, steps=9, seed=4)


def test_batches_hold_rows_of_like_length() -> None:
    order = plan_order(LENGTHS, batch_size=8, steps=24, seed=0)
    shuffled = [row for _ in range(2) for row in random.Random(0).sample(range(100), 96)]
    assert filling(LENGTHS, order, batch_size=8) > 0.85
    assert filling(LENGTHS, order, batch_size=8) > filling(LENGTHS, shuffled, batch_size=8) + 0.2


def test_lengths_of_successive_batches_are_mixed() -> None:
    order = plan_order(LENGTHS, batch_size=4, steps=25, seed=0)
    means = [sum(LENGTHS[row] for row in order[i : i + 4]) for i in range(0, 100, 4)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("rows", "epochs", "max_steps", "steps"),
    [(100, 1, None, 13), (100, 2.5, None, 32), (100, 1, 7, 7), (3, 1, None, 1)],
)
def test_steps_come_from_max_steps_or_from_epochs(rows: int, epochs: float, max_steps: int | None, steps: int) -> None:
    assert steps_of(rows, batch_size=8, epochs=epochs, max_steps=max_steps) == steps


LOGNORMAL = [min(2048, max(16, int(_DRAW.lognormvariate(5, 0.8)))) for _ in range(2000)]


@pytest.mark.parametrize("max_length", [2048, 4096])
def test_packs_of_a_long_tailed_corpus_are_98_percent_full(max_length: int) -> None:
    packs = place_rows(LOGNORMAL, room=max_length)
    assert sum(LOGNORMAL) / (len(packs) * max_length) > 0.98


def test_there_are_as_few_packs_as_in_trls_own_packing() -> None:
    import pyarrow as pa
    from trl.data_utils import _pack_bfd

    table = pa.table({"input_ids": [[0] * length for length in LOGNORMAL]})
    assert len(place_rows(LOGNORMAL, room=2048)) == len(_pack_bfd(table, 2048))


def test_a_pack_holds_whole_rows_and_every_epoch_all_of_them_once() -> None:
    count = len(place_rows(LENGTHS, room=512))
    packs = plan_packs(LENGTHS, room=512, batch_size=count, steps=2, seed=0)
    for epoch in (packs[:count], packs[count:]):
        assert sorted(row for pack in epoch for row in pack) == list(range(100))
    assert max(sum(LENGTHS[row] for row in pack) for pack in packs) <= 512
    assert packs == plan_packs(LENGTHS, room=512, batch_size=count, steps=2, seed=0)
    assert packs != plan_packs(LENGTHS, room=512, batch_size=count, steps=2, seed=1)
    assert {tuple(pack) for pack in packs[:count]} != {tuple(pack) for pack in packs[count:]}


def test_a_rest_is_shared_out_over_all_packs() -> None:
    lengths = [100] * 45
    assert [len(pack) for pack in place_rows(lengths, room=2000)] == [20, 20, 5]
    room = pack_room(lengths, max_length=2000)
    assert room == 1500
    assert [len(pack) for pack in place_rows(lengths, room=room)] == [15, 15, 15]


def test_a_row_longer_than_a_pack_is_never_cut() -> None:
    with pytest.raises(AssertionError, match="longer than a pack"):
        place_rows([10, 700], room=512)
