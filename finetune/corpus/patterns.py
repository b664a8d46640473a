"""Regular expressions that a recipe brings, each with a limit on the time that it may work on one text."""

import functools
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.errors import RecipeError

SECONDS = 30
"""Processor seconds that a pattern may work on one text."""


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def found_in(text: str, pattern: str, place: str) -> bool:
    """Whether the pattern is found in the text, which stands at `place`. RecipeError as of `limited`."""
    with limited(pattern, place):
        return compiled(pattern).search(text) is not None


def find_all(text: str, pattern: re.Pattern[str], place: str) -> list[re.Match[str]]:
    """Every match, in order. RecipeError as of `limited`."""
    with limited(pattern.pattern, place):
        return list(pattern.finditer(text))


@contextmanager
def limited(pattern: str, place: str) -> Iterator[None]:
    """RecipeError at `place` (file, file:line or a section) where what is searched for within takes over SECONDS.

    They are seconds of this process's own work; the regular expression engine looks for signals. Only the main thread
    may set a timer: units of work run there. Elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _listen()
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    except TimeoutError:
        rule = f"the pattern was still at work on this text after {SECONDS} s: it backtracks"
        fix = "write it without a repeat inside a repeat, and name what ends each group"
        raise RecipeError.one(place, pattern, rule, fix) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@functools.cache
def _listen() -> None:
    """Once in a process: to set a handler takes longer than to search a row."""
    signal.signal(signal.SIGVTALRM, _stop)


def _stop(*_: object) -> None:
    raise TimeoutError
