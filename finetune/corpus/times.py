"""Split by time: when a row was, and on which side that is."""

import functools
from datetime import UTC, datetime

from finetune.config.prepare import TimeSplit
from finetune.corpus.streams import BadInput, bad
from finetune.corpus.tables import Row


def read_time(text: str, pattern: str | None) -> float:
    """Seconds since 1970 in UTC. ISO 8601 without a pattern; a time without a zone is UTC. ValueError if it is none."""
    text = text.strip()
    read = datetime.fromisoformat(text) if pattern is None else datetime.strptime(text, pattern)  # noqa: DTZ007
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def timed(column: str | None, settings: TimeSplit, row: Row) -> Row | BadInput:
    """The row with its time in seconds in `_when`, or what is wrong. The value is not told: it may be anything.

    Rows of a source without a time (`column` None) stay as they are.
    """
    if column is None:
        return row
    try:
        return {**row, "_when": repr(read_time(row[column], settings.format))}
    except ValueError:
        wanted = "ISO 8601, like 2024-05-31" if settings.format is None else f"the format {settings.format}"
        fix = "correct the row, leave it out with `where`, or set prepare.split.time.format"
        rule = f"prepare.split.time needs a time here, in {wanted}"
        return bad(row["_file"], int(row["_line"]), "no time", rule, fix, column)


@functools.cache
def _bound(text: str) -> float:
    return read_time(text, None)


def bounds(settings: TimeSplit) -> tuple[float, float]:
    """From when rows are for validation and for testing, in seconds."""
    return _bound(settings.valid_from), _bound(settings.test_from)


def side_at(seconds: float, settings: TimeSplit) -> int:
    """0 train, 1 valid, 2 test."""
    valid_from, test_from = bounds(settings)
    return 2 if seconds >= test_from else 1 if seconds >= valid_from else 0
