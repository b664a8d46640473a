"""Builders turn the kept rows of a source into rows for tasks, each marked with its builder and source span.

A builder looks at one document at a time and yields rows or what it could not use and why; nothing is left out in
silence. The same rows, recipe and seed give the same rows.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from finetune.config.build import (
    Built,
    CitationBuilder,
    CrossReferenceBuilder,
    DefinitionBuilder,
    FieldsBuilder,
    GroundedQuestionBuilder,
    HeadingBuilder,
    TeacherBuilder,
)
from finetune.corpus import places
from finetune.corpus.build import Item, fill
from finetune.corpus.builders import citations, definitions, fields, headings, questions, references, teacher
from finetune.corpus.builders.drafts import Draft, Found, Place
from finetune.corpus.ledger import Reject
from finetune.corpus.split import Side

__all__ = ["build_rows", "documents"]


def documents(spec: Built, items: Sequence[Item]) -> Iterator[list[Item]]:
    """The items of each document, in the order in which documents and items come."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(fill(spec.document, item.columns), []).append(item)
    yield from found.values()


def build_rows(
    name: str, spec: Built, items: Sequence[Item], *, side_of: Callable[[Item], Side], seed: int,
    rejects: list[Reject], books: Path | None = None,
) -> Iterator[Item]:  # fmt: skip
    """Rows of the built source `name` out of one document's items; what makes none goes to `rejects`, with its reason.

    A row has its item's group and columns, the builder's own, `quote`, `_builder` and `_span` (`file:line
    column[start:end]`, characters of the column after the steps on rows; several are joined by `; `). books: the folder
    in which a teacher's answers are kept.
    """
    for found in _find(name, spec, items, Place(side_of, seed, name), books):
        if isinstance(found, Draft):
            quote = "\n".join(span.text for span in found.spans) if found.quoted else ""
            columns = {
                **found.item.columns, **found.columns, "quote": quote,
                "_span": "; ".join(map(str, found.spans)), "_builder": found.columns.get("_builder", spec.builder),
            }  # fmt: skip
            yield Item(name, f"{found.item.id}/{found.key}", found.item.group, columns)
        else:
            at = found.at
            place = None if at is None else places.Place(at.column, at.start, at.end)
            rejects.append(found.item.reject("build", found.reason, found.detail, place))


def _find(name: str, spec: Built, items: Sequence[Item], place: Place, books: Path | None) -> Found:
    match spec:
        case FieldsBuilder():
            return fields.build(spec, items)
        case HeadingBuilder():
            return headings.build(spec, items)
        case DefinitionBuilder():
            return definitions.build(spec, items)
        case CrossReferenceBuilder():
            return references.build(spec, items, place)
        case GroundedQuestionBuilder():
            return questions.build(spec, items, place)
        case CitationBuilder():
            return citations.build(spec, items, place)
        case TeacherBuilder():
            assert books is not None, "a teacher's replies are kept in a folder"
            return teacher.build(name, spec, items, books)
