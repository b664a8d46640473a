"""What a metric is: one decorated function `(answer, row, options) -> a number from 0 to 1`, and what it may bring.

Answers are taken as the model gave them, only white space around them is removed (each metric says what more). Nothing
is searched for inside an answer: a rule that digs the right word out of a chatty answer would favour one system over
another, and whoever uses the served model would have to have the same rule.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, TypeVar

from pydantic import ValidationError

from finetune.config.section import Section

Ratios = Mapping[str, tuple[float, float]]
"""Name -> (numerator, denominator) of one row; the figure of a set of rows is the quotient of the sums."""
Kind = Literal["generated", "likelihood"]
_ROUNDING = 1e-9
"""A mean of shares may lie so far above 1."""


class Row(Protocol):
    """What a metric may ask of a row: `corpus.records.Chat` has it."""

    @property
    def answer(self) -> str:
        """Gold."""

    @property
    def passages(self) -> Mapping[str, str]:
        """Name -> text of the documents that may be quoted."""

    @property
    def choices(self) -> Sequence[str]:
        """The options of a multiple choice."""

    @property
    def source(self) -> str:
        """File that the row came from."""

    @property
    def line(self) -> int:
        """Line of it."""


class Task(Protocol):
    """What a metric may ask of a task: `config.data.Task` has it."""

    @property
    def metric(self) -> str: ...

    @property
    def metric_options(self) -> Any: ...


class NoOptions(Section):
    """Most metrics have nothing to set."""


ScoreRow = Callable[[str, Any, Any], float]
Decorated = TypeVar("Decorated", bound=ScoreRow)


@dataclass(frozen=True)
class Metric:
    """A metric as `@metric` registered it."""

    name: str
    score: ScoreRow
    options: type[Section]
    """What `metric_options` of a task may say, checked when the recipe is loaded."""
    ratios: Callable[[str, Any, Any], Ratios] | None
    """(answer, row, options) -> what the row adds to each figure of the whole set."""
    details: Callable[[Sequence[str], Sequence[Any], Any], dict[str, Any]] | None
    """(answers, rows, options) -> figures of the whole set that are no quotient of sums."""
    gold: Callable[[Any, Any], str | None] | None
    """(row, options) -> why the row's gold answer cannot be scored, or None."""
    needs: tuple[str, ...]
    """Keys of the task without which the metric has nothing to look at."""
    kind: Kind


METRICS: dict[str, Metric] = {}
"""Name -> metric, filled by `@metric`."""


def metric(
    name: str,
    *,
    options: type[Section] = NoOptions,
    ratios: Callable[[str, Any, Any], Ratios] | None = None,
    details: Callable[[Sequence[str], Sequence[Any], Any], dict[str, Any]] | None = None,
    gold: Callable[[Any, Any], str | None] | None = None,
    needs: tuple[str, ...] = (),
    kind: Kind = "generated",
) -> Callable[[Decorated], Decorated]:
    """Make a function `(answer, row, options) -> float` a metric that recipes can name."""

    def register(function: Decorated) -> Decorated:
        assert name not in METRICS, f"there is a metric {name} already"
        METRICS[name] = Metric(name, function, options, ratios, details, gold, needs, kind)
        return function

    return register


def score(answer: str, row: Row, task: Task) -> float:
    """How right an answer to this row is by the task's metric, from 0 to 1.

    Raises ValueError where the metric gives anything else: NaN is no JSON, and no mean, interval or gate is known.
    """
    found = METRICS[task.metric].score(answer, row, task.metric_options)
    if not isinstance(found, Real) or not -_ROUNDING <= found <= 1 + _ROUNDING:
        raise _not_a_number(found, row, task, "a score is a number from 0 to 1")
    return float(found)


def _not_a_number(found: Any, row: Row, task: Task, rule: str) -> ValueError:
    # What is no number may be the answer itself.
    told = str(found) if found is None or isinstance(found, Real) else f"a {type(found).__name__}"
    return ValueError(f"metric {task.metric} gave {told} for the row {row.source}:{row.line}: {rule}")


def ratios(answers: Sequence[str], rows: Sequence[Row], task: Task) -> dict[str, list[tuple[float, float]]]:
    """Figure -> (numerator, denominator) of each row: what a bootstrap over groups needs. {} for most metrics.

    Raises ValueError where one of them is no finite number.
    """
    count = METRICS[task.metric].ratios
    if count is None:
        return {}
    found = [count(answer, row, task.metric_options) for answer, row in zip(answers, rows, strict=True)]
    for row, one in zip(rows, found, strict=True):
        for part in (part for parts in one.values() for part in parts):
            if not isinstance(part, Real) or not math.isfinite(part):
                raise _not_a_number(part, row, task, "what it adds to a ratio is a finite number")
    names = dict.fromkeys(name for one in found for name in one)
    return {name: [one.get(name, (0.0, 0.0)) for one in found] for name in names}


def details(answers: Sequence[str], rows: Sequence[Row], task: Task) -> dict[str, Any]:
    """What the mean of the scores hides, as plain data: the quotients of `ratios` and the metric's own figures.

    A quotient whose denominator is 0 over all rows (no clean passage, no abstention) is null: it is not known.
    """
    own = METRICS[task.metric].details
    summed = {name: quotient(parts) for name, parts in ratios(answers, rows, task).items()}
    return {**summed, **(own(answers, rows, task.metric_options) if own else {})}


def quotient(parts: Sequence[tuple[float, float]]) -> float | None:
    below = math.fsum(part[1] for part in parts)
    return math.fsum(part[0] for part in parts) / below if below else None


def kind(task: Task) -> Kind:
    """Does the model write its answer, or is the likeliest of the given options taken?"""
    return METRICS[task.metric].kind


def gold_problem(row: Row, task: Task) -> str | None:
    """Why the row's gold answer cannot be scored by the task's metric, or None."""
    check = METRICS[task.metric].gold
    return check(row, task.metric_options) if check else None


def check_name(name: str) -> str:
    """The name, if it is a metric's; raises ValueError with the names there are."""
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"is not a metric; {guess}(one of {', '.join(sorted(METRICS))})")
    return name


def read_options(name: str, given: Any) -> Section:
    """`metric_options` as the metric's own, typed ones; raises pydantic's ValidationError with every problem."""
    options = METRICS[name].options
    try:
        return options.model_validate(given.model_dump() if isinstance(given, Section) else given)
    except ValidationError as error:
        raise ValidationError.from_exception_data(name, [_named(name, item) for item in error.errors()]) from error


def _named(name: str, item: Any) -> Any:
    message, value = item["msg"].removeprefix("Value error, "), item["input"]
    known = ", ".join(METRICS[name].options.model_fields)
    if item["type"] == "extra_forbidden":
        message = f"is not an option of {name}, which has {known or 'none'}"
    elif item["type"] == "missing":
        message, value = f"must be given for {name}", None
    return {"type": "value_error", "loc": item["loc"], "input": value, "ctx": {"error": ValueError(message)}}
