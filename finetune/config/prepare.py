"""Section `prepare`: what each step of the corpus preparation does."""

import re
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from finetune.config.section import Section

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Glossary(Section):
    """Codes of a trade written out (`l/h` -> `left hand`); what stood there stays in the column `<name>_original`."""

    file: str
    """CSV below data_root with a header line."""
    code: str = "code"
    """Its column with what is written."""
    words: str = "words"
    """Its column with what that means."""
    columns: dict[str, tuple[str, ...]]
    """Source -> the columns in which codes are written out."""
    match_case: bool = False
    """false: `LH`, `lh` and `Lh` are one code."""


class Repair(Section):
    """Undo mojibake, normalise Unicode to NFC, unify white space and line ends."""

    enabled: bool = True
    glossary: Glossary | None = None


class Filters(Section):
    min_chars: Annotated[int, Field(ge=0)] = 1
    max_chars: Annotated[int, Field(ge=1)] = 200_000
    languages: tuple[str, ...] | None = None
    """ISO 639-1 codes such as [en, zh]: a row that is surely in another language is dropped. null: off."""
    confidence: Annotated[float, Field(ge=0.5, le=1.0)] = 0.9
    """How sure the recogniser must be before a row is dropped for its language."""
    repetition: Annotated[float, Field(gt=0.0)] | None = None
    """Drop rows that say the same again and again: 1.0 takes the limits of Gopher (arXiv 2112.11446, table A1), 2.0
    twice those. They were chosen for web pages; sound legal text is over them more often than not. null: off."""
    boilerplate: Annotated[int, Field(ge=1)] | None = None
    """Take paragraphs out that stand in more than so many groups of a source. null: off."""


Treatment = Literal["replace", "drop_row", "keep"]


class Redact(Section):
    """What becomes of each kind of personal data: a placeholder (`[EMAIL_1]`), the loss of its row, or nothing."""

    email: Treatment = "replace"
    phone: Treatment = "replace"
    card: Treatment = "replace"
    """Payment cards: prefix, length and check digit."""
    iban: Treatment = "replace"
    ssn: Treatment = "replace"
    ip: Treatment = "replace"
    cn_id: Treatment = "replace"
    """Chinese resident ID: birth date and check character."""
    cn_mobile: Treatment = "replace"
    record: Treatment = "replace"
    """Numbers after words such as MRN, account number, passport, policy number, case number, 病历号, 护照, 账号."""
    secret: Treatment = "replace"  # noqa: S105
    """Private keys, keys and tokens with an issuer's mark, values after words such as password and api_key."""
    name: Treatment = "keep"
    """Names after a title or a context word: most others are missed (docs/corpus.md says how many)."""
    address: Treatment = "keep"
    """Street addresses of common English and Chinese forms."""
    scope: Literal["row", "document", "corpus"] = "row"
    """Where equal values share a placeholder. Beyond the row, rows can be linked to one another; it needs a key."""
    key_sha256: str | None = None
    """sha256 of the key that the environment variable FINETUNE_REDACT_KEY holds, for wider scopes, ids and files."""

    @field_validator("key_sha256")
    @classmethod
    def _is_a_fingerprint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(
                f"is no sha256 of a key, 64 digits of 0-9 and a-f ({len(value)} characters were given): "
                "printf %s \"$FINETUNE_REDACT_KEY\" | sha256sum"
            )
        return value

    @model_validator(mode="after")
    def _has_key(self) -> Self:
        if self.scope != "row" and self.key_sha256 is None:
            raise ValueError(
                f"scope {self.scope} names values by a keyed hash: give key_sha256, "
                "the sha256 of a random key that FINETUNE_REDACT_KEY holds (openssl rand -hex 32)"
            )
        return self

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that do not stay as they are."""
        return tuple(kind for kind in Redact.model_fields if getattr(self, kind) in ("replace", "drop_row"))


class Dedup(Section):
    exact: bool = True
    near: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.85
    """Jaccard similarity of character shingles from which two rows are near duplicates; null turns it off."""


class Decontaminate(Section):
    ngram: Annotated[int, Field(ge=3)] | None = 13
    """Training rows that share so many words in a row with an evaluation prompt or answer are dropped; null: off."""
    edited: bool = True
    """So are those that repeat an evaluation prompt, or a passage of twice as many words, with up to a tenth edited."""


class TimeSplit(Section):
    """Train on what came first, test on what came last. A group goes whole where its latest row goes."""

    columns: dict[str, str]
    """Source -> its column with a date or a time. Groups of other sources are dealt by hash."""
    format: str | None = None
    """As in strptime, for example `%Y年%m月%d日`. null: ISO 8601."""
    valid_from: str
    """Date in ISO 8601 from which rows are for validation; without a zone UTC."""
    test_from: str
    """Date in ISO 8601 from which rows are for testing."""


class Split(Section):
    """Groups, not rows, are dealt to train, valid and test by a hash of the group and the seed, or by time."""

    valid: Fraction = 0.1
    test: Fraction = 0.25
    time: TimeSplit | None = None


class Length(Section):
    policy: Literal["raise", "drop", "split"] = "raise"
    """What happens to a row longer than sft.max_length: `split` cuts the column that tasks.x.split_column names into
    paragraphs and makes a row of each part. Running text is always cut at cpt.max_length, nothing lost."""


class Mix(Section):
    """How many training rows of each task there are for one of the others."""

    weights: dict[str, Annotated[float, Field(gt=0.0)]]
    """Task -> weight. All trained tasks must be named."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """How often one row may stand in training at most. 1: tasks with too many rows lose some, none is repeated."""


class Prepare(Section):
    bad_input: Literal["raise", "reject"] = "raise"
    """What happens to rows and files that cannot be read: stop and say all of it, or list them in the rejects."""
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
    mix: Mix | None = None

    @property
    def files(self) -> dict[str, str]:
        """Files below data_root that steps read beside the sources: config path -> file."""
        glossary = self.repair.glossary
        return {} if glossary is None else {"prepare.repair.glossary.file": glossary.file}
