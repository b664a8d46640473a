"""A split by time trains on what came first; a group stays whole where its latest row goes."""

import random
from collections import defaultdict
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.prepare import Split, TimeSplit
from finetune.corpus.latest import gather
from finetune.corpus.split import SIDES, side_of
from finetune.corpus.times import read_time, side_at

TIME = TimeSplit(columns={"orders": "date"}, valid_from="2024-01-01", test_from="2024-07-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("text", "pattern", "iso"),
    [
        ("2024-05-31", None, "2024-05-31T00:00:00+00:00"),
        (" 2024-05-31 23:59 ", None, "2024-05-31T23:59:00+00:00"),
        ("2024-05-31T23:59:00+08:00", None, "2024-05-31T15:59:00+00:00"),
        ("2024年5月31日", "%Y年%m月%d日", "2024-05-31T00:00:00+00:00"),
        ("05/31/24", "%m/%d/%y", "2024-05-31T00:00:00+00:00"),
    ],
)
def test_times_are_read_as_their_format_says(text: str, pattern: str | None, iso: str) -> None:
    assert datetime.fromtimestamp(read_time(text, pattern), UTC).isoformat() == iso


@pytest.mark.parametrize("text", ["", "31.05.2024", "2024-02-30", "yesterday", "2024"])
def test_what_is_no_time_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_time(text, None)


def test_the_first_instant_of_a_side_belongs_to_it() -> None:
    at = [read_time(text, None) for text in ("2023-12-31T23:59:59", "2024-01-01", "2024-06-30", "2024-07-01")]
    assert [SIDES[side_at(seconds, TIME)] for seconds in at] == ["train", "valid", "valid", "test"]


DATES = st.sampled_from(["2023-01-01", "2023-12-31", "2024-01-01", "2024-06-30", "2024-07-01", "2025-01-01"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdé组"), DATES)), st.randoms())
def test_a_group_goes_where_its_latest_row_goes_and_what_straddles_is_counted(
    rows: list[tuple[str, str]], order: random.Random
) -> None:
    times, straddling, moved = gather(((group, read_time(date, None)) for group, date in rows), TIME)
    dates: dict[str, list[str]] = defaultdict(list)
    for group, date in rows:
        dates[group].append(date)
    split = Split(time=TIME)
    own = {date: side_of("x", 0, split, read_time(date, None)) for _, date in rows}
    for group, found in dates.items():
        assert side_of(group, 0, split, times.of(group)) == own[max(found)]
    assert straddling == sum(len({own[date] for date in found}) > 1 for found in dates.values())
    assert moved == sum(own[date] != own[max(found)] for found in dates.values() for date in found)
    shuffled = list(rows)
    order.shuffle(shuffled)
    again = gather(((group, read_time(date, None)) for group, date in shuffled), TIME).times
    assert [again.of(group) for group in dates] == [times.of(group) for group in dates]


def test_a_group_of_a_source_without_a_time_is_dealt_by_hash() -> None:
    split, by_hash = Split(time=TIME), Split()
    groups = [f"group {i}" for i in range(50)]
    times = gather([], TIME).times
    assert [side_of(g, 0, split, times.of(g)) for g in groups] == [side_of(g, 0, by_hash) for g in groups]
