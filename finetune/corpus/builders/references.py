"""Builder `cross_reference`: a reference in one clause -> the clause of the same document that it means."""

import re
from collections.abc import Sequence

from finetune.config.build import CrossReferenceBuilder
from finetune.corpus.build import Item
from finetune.corpus.builders.clauses import (
    Label,
    Reference,
    body_start,
    heading_extent,
    label_of,
    read_chinese,
    references,
)
from finetune.corpus.builders.drafts import Draft, Found, Place, Span, Unused
from finetune.corpus.builders.sentences import Extent, first_whole, is_chinese, opening, sentences, squeeze


def build(spec: CrossReferenceBuilder, items: Sequence[Item], place: Place) -> Found:
    """A row for each reference that means exactly one other clause of this side; a clause is asked for once an item."""
    numbered: dict[str, list[tuple[Label, Item]]] = {}
    labels = {item.id: label_of(spec, item) for item in items}
    for item in items:
        label = labels[item.id]
        if label is not None:
            numbered.setdefault(label.number, []).append((label, item))
    for item in items:
        text = item.columns[spec.text]
        start = body_start(spec, item)
        found = [reference for reference in references(text) if reference.start >= start]
        if not found:
            yield Unused(item, "refers to no clause by its number")
        asked: set[str] = set()
        for reference in found:
            meant = [other for label, other in numbered.get(reference.label.number, []) if reference.label.meets(label)]
            reason = reference.reason or _unclear(item, labels[item.id], reference, meant)
            if not reason and place.side_of(meant[0]) != place.side_of(item):
                reason = "the clause lies on another side of the split"
            if not reason and meant[0].id in asked:
                reason = "refers to the clause again"
            if reason:
                written = Span(item, spec.text, reference.start, reference.end)
                yield Unused(item, reason, written.text, written)
                continue
            draft = _draft(spec, item, reference, meant[0])
            if isinstance(draft, Draft):
                asked.add(meant[0].id)
            yield draft


def _unclear(item: Item, own: Label | None, reference: Reference, meant: Sequence[Item]) -> str:
    if not meant:
        return "no clause of this document has that number"
    if len(meant) > 1:
        return "several clauses have that number"
    if meant[0] is item or (own is not None and reference.label.meets(own)):
        return "refers to itself"
    return ""


def _draft(spec: CrossReferenceBuilder, item: Item, reference: Reference, target: Item) -> Draft | Unused:
    text, said = item.columns[spec.text], target.columns[spec.text]
    sentence = _sentence(text, (reference.start, reference.end))
    begin = body_start(spec, target)
    place = Span(item, spec.text, reference.start, reference.end)
    written = place.text
    if reference.part:
        start = _part_start(said, reference.part)
        if start is None:
            reason = "the part of the clause that it names is not found for certain"
            return Unused(item, reason, written, place)
        begin = start
    answer = first_whole(said[begin:], spec.passage_chars)
    shown = opening(said[begin:], spec.passage_chars)
    if answer is None or shown is None:
        return Unused(item, "the first sentence of that clause is over passage_chars", written, place)
    span = Span(target, spec.text, begin + answer[0], begin + answer[1])
    if squeeze(span.text) in squeeze(text[slice(*sentence)]) or not squeeze(span.text):
        return Unused(item, "the sentence says it all itself", written, place)
    words = heading_extent(spec, target)
    heading = target.columns[spec.heading][slice(*words)] if words and spec.heading else ""
    question = (
        f"这里的“{written}”规定了什么？" if is_chinese(text) else f"What does {written}, referred to here, say?"
    )
    target_text = said[begin + shown[0] : begin + shown[1]]
    columns = {
        "reference": written, "sentence": text[slice(*sentence)], "question": question, "answer": span.text,
        "target": _name(spec, target), "target_heading": heading, "target_text": target_text,
        "_reference_span": str(place),
    }  # fmt: skip
    return Draft(item, f"reference{reference.start}", (span,), columns)


def _part_start(said: str, part: str) -> int | None:
    """Where `(b)` or 第二款 of a clause begins: the one list item of that name, the paragraph of that number."""
    if part.startswith("("):
        found = re.finditer(rf"(?:^|(?<=[\n;:.—] ))\s*{re.escape(part)}", said, re.MULTILINE)
        starts = [match.start() for match in found]
        return starts[0] if len(starts) == 1 else None
    numbered = re.fullmatch(r"第([一二三四五六七八九十]+)款", part)
    paragraphs = [match.start() for match in re.finditer(r"^(?!\s*[（(])[^\n]+$", said, re.MULTILINE)]
    number = read_chinese(numbered.group(1)) if numbered else 0
    return paragraphs[number - 1] if 0 < number <= len(paragraphs) and len(paragraphs) > 1 else None


def _sentence(text: str, extent: Extent) -> Extent:
    around = [limit for limit in sentences(text) if limit[0] < extent[1] and limit[1] > extent[0]]
    return (around[0][0], around[-1][1]) if around else extent


def _name(spec: CrossReferenceBuilder, target: Item) -> str:
    """The clause as it calls itself: `Article 15`, `4.2`, `第十二条`."""
    label = label_of(spec, target)
    assert label is not None, "only numbered clauses are referred to"
    if label.kind == "条":
        number, _, second = label.number.partition(".")
        return f"第{number}条" + (f"之{second}" if second else "")
    return f"{label.kind.capitalize()} {label.number.upper()}".strip()
