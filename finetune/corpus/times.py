"""Split by time: when a row was, and on which side that is."""

import functools
from datetime import UTC, datetime

from finetune.config.prepare import TimeSplit
from finetune.errors import Problem


def read_time(text: str, pattern: str | None) -> float:
    """Seconds since 1970 in UTC. ISO 8601 without a pattern; a time without a zone is UTC. ValueError if it is none."""
    text = text.strip()
    read = datetime.fromisoformat(text) if pattern is None else datetime.strptime(text, pattern)  # noqa: DTZ007
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def time_problem(file: str, line: int, column: str, settings: TimeSplit) -> Problem:
    """What to say of a row whose time cannot be read. The value is not shown: it may be anything."""
    wanted = "ISO 8601, like 2024-05-31" if settings.format is None else f"the format {settings.format}"
    fix = "correct the row, leave it out with `where`, or set prepare.split.time.format"
    return Problem(f"{file}:{line}", column, f"prepare.split.time needs a time here, in {wanted}", fix)


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
