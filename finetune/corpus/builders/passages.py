"""Passages beside a question: one that holds the answer, others that do not, on one side of the split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from finetune.config.build import Asking
from finetune.corpus.build import Item
from finetune.corpus.builders.clauses import body_start
from finetune.corpus.builders.drafts import Draft, Found, Place, Span, Unused
from finetune.corpus.builders.sentences import around, content_words, opening, squeeze, touches
from finetune.corpus.split import draw

_NEAR = 200
"""So many neighbours are looked at for passages that distract."""


@dataclass(frozen=True)
class Question:
    """Something to be asked of an item: `span` is what answers it, `subject` what the question is about."""

    span: Span
    key: str
    subject: str
    columns: Mapping[str, str]
    """What the row says beside passages, position, quote and the answer."""
    names: tuple[str, ...] = ()
    """Words that a passage which distracts must not hold, as they say what is meant (a term, a machine's number)."""


@dataclass(frozen=True)
class Text:
    """A text that may distract, cut to its opening; what is compared is worked out once."""

    item: Item
    begin: int
    """Where its words begin, after a number and a heading of its own."""
    shown: str
    """Its opening; '' where the first sentence alone is too long for a passage."""

    @cached_property
    def squeezed(self) -> str:
        return squeeze(self.shown)

    @cached_property
    def words(self) -> frozenset[str]:
        return content_words(self.shown)


def shelve(spec: Asking, items: Sequence[Item]) -> list[Text]:
    """Each item's text as it would be shown as a passage that distracts."""
    found: list[Text] = []
    for item in items:
        begin = body_start(spec, item)
        text = item.columns[spec.text][begin:]
        extent = opening(text, spec.passage_chars)
        found.append(Text(item, begin, text[slice(*extent)] if extent else ""))
    return found


def deal(
    spec: Asking, asked: Sequence[tuple[int, Question | Unused]], shelf: Sequence[Text], place: Place,
    absent: str | None,
) -> Found:  # fmt: skip
    """Rows of a document's questions, each with the index of its item. Positions go round, and `absent_share` of the
    rows have no passage with the answer; `absent` is what `answer` then says."""
    first = next((question.span.item.id for _, question in asked if isinstance(question, Question)), "")
    turn = draw(place.seed, "position", place.name, first)
    lack = draw(place.seed, "absent", place.name, first)
    made = placed = 0
    for index, question in asked:
        if isinstance(question, Unused):
            yield question
            continue
        item = question.span.item
        begin = min(shelf[index].begin, question.span.start)
        text = item.columns[question.span.column][begin:]
        right = around(text, (question.span.start - begin, question.span.end - begin), spec.passage_chars)
        if right is None:
            yield Unused(item, "the answer does not fit into a passage", question.key, question.span)
            continue
        missing = int(lack + (made + 1) * spec.absent_share) > int(lack + made * spec.absent_share)
        wanted = spec.passages - (not missing)
        others = _distractors(index, question, shelf, place, wanted)
        if len(others) < wanted:
            yield Unused(item, "too few passages of its side that do not answer it", question.key, question.span)
            continue
        position = None if missing else int(turn * spec.passages + placed) % spec.passages
        made, placed = made + 1, placed + (not missing)
        shown = [other.shown for other in others]
        if position is not None:
            shown.insert(position, text[slice(*right)])
        columns = {
            **question.columns, **{f"passage_{number}": one for number, one in enumerate(shown, start=1)},
            "passages": "\n\n".join(f"[{number}] {one}" for number, one in enumerate(shown, start=1)),
            "position": "" if position is None else str(position + 1),
        }  # fmt: skip
        if missing and absent is not None:
            columns["answer"] = absent
        yield Draft(item, question.key, (question.span,), columns, quoted=not missing)


def _distractors(
    index: int, question: Question, shelf: Sequence[Text], place: Place, wanted: int
) -> list[Text]:
    """Neighbours on the same side that neither hold the answer nor are about the same subject, drawn by hash."""
    answer = squeeze(question.span.text)
    names = [squeeze(name) for name in question.names]
    subject = content_words(question.subject)
    side = place.side_of(question.span.item)
    usable: list[Text] = []
    for near in _neighbours(index, len(shelf)):
        other = shelf[near]
        if (
            not other.shown
            or other.item.id == question.span.item.id
            or place.side_of(other.item) != side
            or answer in other.squeezed
            or other.squeezed in answer
            or (names and all(name in other.squeezed for name in names))
            or (not names and touches(subject, other.words))
            or any(other.squeezed == taken.squeezed for taken in usable)
        ):
            continue
        usable.append(other)
        if len(usable) == 4 * wanted:
            break
    usable.sort(key=lambda other: draw(place.seed, "distractor", question.span.item.id, question.key, other.item.id))
    return usable[:wanted]


def _neighbours(index: int, count: int) -> Iterator[int]:
    for distance in range(1, _NEAR // 2 + 1):
        for near in (index - distance, index + distance):
            if 0 <= near < count:
                yield near
