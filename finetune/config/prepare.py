"""Section `prepare`: what each step of the corpus preparation does."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.section import Section

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Repair(Section):
    """Undo mojibake, normalise Unicode to NFC, unify white space and line ends."""

    enabled: bool = True


class Filters(Section):
    min_chars: Annotated[int, Field(ge=0)] = 1
    max_chars: Annotated[int, Field(ge=1)] = 200_000


class Redact(Section):
    """Personal data and secrets replaced by stable placeholders such as `[EMAIL_1]`."""

    kinds: tuple[Literal["email", "phone", "card", "iban", "ssn", "ip", "cn_id", "cn_mobile", "secret"], ...] = (
        "email",
        "phone",
        "card",
        "iban",
        "ssn",
        "ip",
        "cn_id",
        "cn_mobile",
        "secret",
    )


class Dedup(Section):
    exact: bool = True
    near: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.85
    """Jaccard similarity of character shingles from which two rows are near duplicates; null turns it off."""


class Decontaminate(Section):
    ngram: Annotated[int, Field(ge=3)] | None = 13
    """Training rows that share so many words in a row with an evaluation prompt or answer are dropped; null: off."""


class Split(Section):
    """Groups, not rows, are dealt to train, valid and test by a hash of the group and the seed."""

    valid: Fraction = 0.1
    test: Fraction = 0.25


class Length(Section):
    policy: Literal["raise", "drop"] = "raise"
    """What happens to a row longer than sft.max_length. Running text is always cut at cpt.max_length, nothing lost."""


class Prepare(Section):
    think_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of thinking examples (supervised turns with reasoning) in training; what is over in one mode is left out,
    drawn by hash and counted. null: as the rows come. Qwen's advice for keeping both modes is about 0.75."""
    repair: Repair = Repair()
    filters: Filters = Filters()
    redact: Redact = Redact()
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()
    split: Split = Split()
    length: Length = Length()
