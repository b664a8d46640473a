"""The metric of numbers: how near is near enough, and how a number may be written."""

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.config.section import Section
from finetune.metrics.metric import Ratios, Row, metric


class Tolerance(Section):
    relative: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """Largest difference as a share of the gold number: 0.01 is 1 %. The wider of the two tolerances counts."""
    absolute: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    """Largest difference in the gold number's own unit."""
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ",", ".", " ", "'"] = ""
    """What may stand between groups of three digits; where it is used, every group must have it."""
    units: tuple[str, ...] = ()
    """Units that may follow or precede a number (`%`, `USD`, `元`), written exactly so. None is converted: an answer in
    another unit than gold's, or without it, is wrong."""

    @model_validator(mode="after")
    def _tell_apart(self) -> "Tolerance":
        if self.decimal == self.thousands:
            raise ValueError("decimal and thousands must be two different characters")
        return self


def read_quantity(text: str, options: Tolerance) -> tuple[Decimal, str] | None:
    """The number and its unit, if the whole text is one: a sign, digits, one of the units; else None.

    `+`, `-` and the minus sign (U+2212) may come first. Full-width digits, Chinese numerals, exponents, fractions and
    accounting brackets are no numbers here.
    """
    tidy = text.strip()
    unit = ""
    for name in sorted(options.units, key=len, reverse=True):
        if tidy.endswith(name):
            unit, tidy = name, tidy.removesuffix(name).rstrip()
            break
        if tidy.startswith(name):
            unit, tidy = name, tidy.removeprefix(name).lstrip()
            break
    groups = rf"[0-9]{{1,3}}(?:{re.escape(options.thousands)}[0-9]{{3}})+|" if options.thousands else ""
    found = re.fullmatch(rf"([+\-−]?)({groups}[0-9]+)(?:{re.escape(options.decimal)}([0-9]+))?", tidy)
    if found is None:
        return None
    sign, whole, part = found.groups()
    digits = whole.replace(options.thousands, "") if options.thousands else whole
    value = Decimal(f"{digits}.{part or 0}")
    return (value if sign in ("", "+") else -value), unit


def is_near(answer: Decimal, gold: Decimal, options: Tolerance) -> bool:
    """|answer - gold| <= max(absolute, relative x |gold|), exactly (no binary fractions)."""
    return abs(answer - gold) <= max(options.absolute, options.relative * abs(gold))


def count_numbers(answer: str, row: Row, options: Tolerance) -> Ratios:
    given, gold = read_quantity(answer, options), read_quantity(row.answer, options)
    return {
        "unreadable": (float(given is None), 1.0),
        "other_unit": (float(given is not None and gold is not None and given[1] != gold[1]), float(given is not None)),
        "equal": (float(given is not None and given == gold), 1.0),
    }


def _no_number(row: Row, options: Tolerance) -> str | None:
    return "it is no number as metric_options say" if read_quantity(row.answer, options) is None else None


@metric("numeric", options=Tolerance, ratios=count_numbers, gold=_no_number)
def numeric(answer: str, row: Row, options: Tolerance) -> float:
    """1 if the whole answer is a number in gold's unit and within the tolerance."""
    given, gold = read_quantity(answer, options), read_quantity(row.answer, options)
    assert gold is not None, "gold is checked before anything is asked"
    return float(given is not None and given[1] == gold[1] and is_near(given[0], gold[0], options))
