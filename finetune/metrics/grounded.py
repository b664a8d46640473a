"""Metrics of grounded answers: do quotes stand where they are said to, and is "not in the text" said when it is so."""

from typing import Annotated

from pydantic import Field, field_validator

from finetune.config.section import Section
from finetune.metrics.labels import label_of
from finetune.metrics.metric import METRICS, Ratios, Row, metric
from finetune.metrics.objects import NotOneObjectError, read_json


class Citations(Section):
    min_chars: Annotated[int, Field(ge=1)] = 8
    """A quote with fewer characters, white space not counted, shows nothing and counts as not found."""


def read_citations(text: str) -> list[tuple[str, str]]:
    """`{"source": "Article 5", "quote": "..."}`, or a list of such objects, -> (source, quote) pairs.

    Other keys (the answer itself, say) are allowed and not looked at. Raises NotOneObjectError for anything else.
    """
    value = read_json(text)
    found = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("source", "quote")):
            raise NotOneObjectError("a citation is an object with the texts source and quote")
        found.append((one["source"].strip(), one["quote"]))
    return found


def count_citations(answer: str, row: Row, options: Citations) -> Ratios:
    """Of all quotes: how many stand where they are said to, how many in another passage of the row, how many nowhere.

    `same_sources`: rows in which the named sources are gold's, whatever was quoted from them.
    """
    cited = _citations_or_none(answer)
    places = [_place(source, quote, row, options) for source, quote in cited or []]
    total = float(len(places))
    gold = {source for source, _ in read_citations(row.answer)}
    return {
        "found": (float(places.count("found")), total),
        "elsewhere": (float(places.count("elsewhere")), total),
        "invented": (float(places.count("invented")), total),
        "same_sources": (float(cited is not None and {source for source, _ in cited} == gold), 1.0),
        "unreadable": (float(cited is None), 1.0),
    }


def _bad_citation(row: Row, options: Citations) -> str | None:
    try:
        cited = read_citations(row.answer)
    except NotOneObjectError as error:
        return f"it is no citation ({error})"
    for source, quote in cited:
        if _place(source, quote, row, options) != "found":
            return f"a quote of it stands not in the passage that it names, or has under {options.min_chars} characters"
    return None


@metric("citation", options=Citations, ratios=count_citations, gold=_bad_citation, needs=("passages",))
def citation(answer: str, row: Row, options: Citations) -> float:
    """Share of the answer's quotes that stand, word for word, in the passage of the row that they name.

    White space does not count (line ends, indents), everything else does. Whether the quote is to the point is not
    judged. An answer without a quote scores 0, unless gold has none either.
    """
    cited = _citations_or_none(answer)
    if not cited:
        return float(cited is not None and not read_citations(row.answer))
    return sum(_place(source, quote, row, options) == "found" for source, quote in cited) / len(cited)


def _place(source: str, quote: str, row: Row, options: Citations) -> str:
    wanted = _squeeze(quote)
    if len(wanted) < options.min_chars:
        return "invented"
    if wanted in _squeeze(row.passages.get(source, "")):
        return "found"
    return "elsewhere" if any(wanted in _squeeze(text) for text in row.passages.values()) else "invented"


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _citations_or_none(answer: str) -> list[tuple[str, str]] | None:
    try:
        return read_citations(answer)
    except NotOneObjectError:
        return None


class Abstention(Section):
    phrases: Annotated[tuple[str, ...], Field(min_length=1)]
    """What counts as saying that the text does not tell, in each language of the data: ["Not in the text", "未提及"].
    The whole answer must be one of them; letter case, runs of white space and one final full stop do not count."""
    otherwise: str = "label_accuracy"
    """The metric of rows that have an answer: one without options of its own that must be given."""

    @field_validator("otherwise")
    @classmethod
    def _scores_alone(cls, name: str) -> str:
        alone = [other.name for other in METRICS.values() if _stands_alone(other.name)]
        if name not in alone:
            raise ValueError(f"scores the rows that have an answer: one of {', '.join(sorted(alone))}")
        return name


def _stands_alone(name: str) -> bool:
    found = METRICS[name]
    needed = any(field.is_required() for field in found.options.model_fields.values())
    return not found.needs and not needed


def count_abstentions(answer: str, row: Row, options: Abstention) -> Ratios:
    """Precision and recall of abstaining, and the score where both gold and the answer say something (`answered`)."""
    gold, given = _abstains(row.answer, options), _abstains(answer, options)
    both = float(gold and given)
    told = float(not gold and not given)
    return {
        "precision": (both, float(given)),
        "recall": (both, float(gold)),
        "f1": (2 * both, float(gold) + float(given)),
        "answered": (_otherwise(answer, row, options) if told else 0.0, told),
        "refused": (float(given and not gold), float(not gold)),
    }


def _unscorable(row: Row, options: Abstention) -> str | None:
    other = METRICS[options.otherwise]
    return other.gold(row, other.options()) if other.gold and not _abstains(row.answer, options) else None


@metric("abstention", options=Abstention, ratios=count_abstentions, gold=_unscorable)
def abstention(answer: str, row: Row, options: Abstention) -> float:
    """1 for rightly saying that the text does not tell; where gold answers, `otherwise`'s score, 0 for abstaining."""
    gold, given = _abstains(row.answer, options), _abstains(answer, options)
    if gold or given:
        return float(gold and given)
    return _otherwise(answer, row, options)


def _otherwise(answer: str, row: Row, options: Abstention) -> float:
    other = METRICS[options.otherwise]
    return other.score(answer, row, other.options())


def _abstains(text: str, options: Abstention) -> bool:
    return label_of(text) in map(label_of, options.phrases)
