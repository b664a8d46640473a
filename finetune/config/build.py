"""Section `build`: sources that a builder makes of another source's rows, for tasks to use like any source."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from finetune.config.data import placeholders
from finetune.config.prepare import Fraction
from finetune.config.section import Section

MARKS = ("_builder", "_span", "_file", "_line", "quote")
"""Columns of every built row: who made it, where its quote stands, and the quote. docs/tasks-from-documents.md."""


class FromSource(Section):
    """What every builder is told."""

    source: str
    """The source whose rows it reads, after they were repaired, filtered, redacted and freed of duplicates."""
    document: str = "{_file}"
    """Template that says which rows belong to one document: references are looked up in it, and the passages that
    distract come from it. A word without a column makes the whole source one document."""
    text: str = "text"
    """Column with the running text."""


class Headed(FromSource):
    """A builder that looks at headings as well."""

    heading: str | None = "heading"
    """Column with the heading; null where the source has none."""
    number: str | None = None
    """Template of a clause's number, such as "Article {article}"; null: what the heading or the text begins with."""


class Asking(Headed):
    """A builder that puts a question beside several passages."""

    passages: Annotated[int, Field(ge=2, le=20)] = 3
    """How many passages a row shows; all are of one side of the split."""
    passage_chars: Annotated[int, Field(ge=100)] = 800
    """A longer passage is cut to the sentences around its answer."""
    absent_share: Fraction = 0.25
    """Share of rows whose passages do not hold the answer."""


class Values(FromSource):
    """Named values in a text: each key is found by labels, by a pattern, or in a table's column of that name."""

    labels: dict[str, tuple[str, ...]] = {}
    """Key -> words before a colon at the start of a line ("Equipment: pump") or at the head of a table's column."""
    patterns: dict[str, str] = {}
    """Key -> regular expression; the value is its group `value`, or the whole match."""


class FieldsBuilder(Values):
    """Field extraction: a text -> JSON with what stands under its labels."""

    builder: Literal["fields"]
    least: Annotated[int, Field(ge=1)] = 1
    """A text with fewer of the values makes no row."""
    missing: str = ""
    """What the answer says for a value that is not there."""

    @property
    def gives(self) -> list[str]:
        return ["answer", "found", "header", *sorted({*self.labels, *self.patterns})]


class HeadingBuilder(Headed):
    """A clause or section -> its heading."""

    builder: Literal["heading"]
    keep_number: bool = False
    """Leave "Article 5." or "4.2" before the heading; it cannot be told from the text."""
    max_chars: Annotated[int, Field(ge=20)] = 1500
    """The text is cut after the last sentence that ends before."""

    @property
    def gives(self) -> list[str]:
        return ["answer", "clause"]


class DefinitionBuilder(FromSource):
    """Definitions that the text itself gives, asked both ways: what a term means, and which term is meant."""

    builder: Literal["definition"]
    pattern: str | None = None
    """Regular expression with groups `term` and `definition`, for glossaries; null: "X" means ..., X，是指 ..."""
    directions: tuple[Literal["define", "name"], ...] = ("define", "name")
    """`define`: term -> definition; `name`: definition -> term, left out where the definition says the term."""
    context_chars: Annotated[int, Field(ge=100)] = 800
    """Length of column `context`, the sentences around the definition."""

    @property
    def gives(self) -> list[str]:
        return ["term", "definition", "direction", "question", "answer", "context"]


class CrossReferenceBuilder(Headed):
    """A reference in a clause -> which clause is meant and what it says."""

    builder: Literal["cross_reference"]
    passage_chars: Annotated[int, Field(ge=100)] = 800
    """Longer clauses are cut after the last sentence that ends before."""

    @property
    def gives(self) -> list[str]:
        return [
            "reference", "sentence", "question", "answer", "target", "target_heading", "target_text", "_reference_span"
        ]  # fmt: skip


class GroundedQuestionBuilder(Asking, Values):
    """A question, passages of which one holds the answer or none does, and the answer as it stands there."""

    builder: Literal["grounded_question"]
    ask: tuple[Literal["heading", "definition", "field"], ...] = ("heading", "definition")
    """What is asked about. `field` needs labels or patterns, and questions."""
    pattern: str | None = None
    """As in `definition`."""
    questions: dict[str, str] = {}
    """Template of a question: `heading` ({heading}), `definition` ({term}), or the key of a field, which names other
    fields to say which row is meant: {fault: "What is the fault code of {equipment}?"}. Default: one per language."""
    not_in_text: str = "Not in the text"
    """The answer where no passage holds one; name the same phrase in the metric `abstention`."""
    answer_chars: Annotated[int, Field(ge=10)] = 400
    """Longer answers make no row."""

    @property
    def gives(self) -> list[str]:
        return ["question", "answer", "asked", *_shown(self)]


class CitationBuilder(Asking):
    """A statement -> the quote that says so and the passage that it stands in, as JSON."""

    builder: Literal["citation"]
    absent_share: Fraction = 0.0
    """Share of rows in which no passage says so; their answer is the empty list."""

    @property
    def gives(self) -> list[str]:
        return ["statement", "answer", *_shown(self)]


class TeacherBuilder(FromSource):
    """Questions and answers that a served model writes about each text, each checked against that text.

    The texts are sent to `endpoint`: documents leave this machine. The key comes from $TEACHER_API_KEY.
    """

    builder: Literal["teacher"]
    endpoint: str
    """Address of an OpenAI-compatible server, http://HOST:PORT#MODEL."""
    send_documents: bool = False
    """Must be true: it says that whoever owns the documents lets them go to that address."""
    prompt: str = (
        "Read the passage. Write one question that the passage answers, the answer, and the words of the passage that "
        'say so. Reply with nothing but JSON: {{"question": "...", "answer": "...", "quote": "..."}}. The quote is '
        "copied character by character.\n\nPassage:\n{text}"
    )
    """The user's message, with columns of the source."""
    checks: tuple[Literal["quote", "numbers", "names"], ...] = ("quote", "numbers", "names")
    """The quote must stand in the text word for word. Beside that, `quote`: it holds the answer (up to 6 words, or 12
    Chinese characters) or half of the words of a longer one; `numbers`, `names`: its own are in the text."""
    max_new_tokens: Annotated[int, Field(ge=16)] = 400
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a byte until a request counts as lost."""
    tries: Annotated[int, Field(ge=1)] = 4
    """Of each request, the first included."""

    @field_validator("endpoint")
    @classmethod
    def _names_a_model(cls, value: str) -> str:
        address, _, model = value.partition("#")
        if not address.startswith(("http://", "https://")) or not model or "@" in address:
            raise ValueError("is written http://HOST:PORT#MODEL, without a password")
        return value

    @property
    def model(self) -> str:
        return self.endpoint.partition("#")[2]

    @property
    def gives(self) -> list[str]:
        return ["question", "answer"]


Built = Annotated[
    FieldsBuilder | HeadingBuilder | DefinitionBuilder | CrossReferenceBuilder | GroundedQuestionBuilder
    | CitationBuilder | TeacherBuilder,
    Field(discriminator="builder"),
]  # fmt: skip
BUILDERS: dict[str, type[FromSource]] = {
    "fields": FieldsBuilder,
    "heading": HeadingBuilder,
    "definition": DefinitionBuilder,
    "cross_reference": CrossReferenceBuilder,
    "grounded_question": GroundedQuestionBuilder,
    "citation": CitationBuilder,
    "teacher": TeacherBuilder,
}


def read_columns(spec: Built) -> list[str]:
    """The columns of its source that a builder reads, sorted."""
    found = {spec.text, *placeholders(spec.document)}
    if isinstance(spec, Headed):
        found |= {spec.heading} if spec.heading else set()
        found |= set(placeholders(spec.number or ""))
    if isinstance(spec, TeacherBuilder):
        found |= set(placeholders(spec.prompt))
    return sorted(found)


def given_columns(spec: Built) -> list[str]:
    """The columns that its rows have beside those of the rows that they were made of."""
    return [*spec.gives, *MARKS]


def _shown(spec: Asking) -> list[str]:
    return ["passages", "position", *(f"passage_{number}" for number in range(1, spec.passages + 1))]
