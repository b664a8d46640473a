"""Builder `grounded_question`: questions out of headings, definitions and fields; answers stand in one passage."""

from collections import Counter
from collections.abc import Iterator, Sequence

from finetune.config.build import GroundedQuestionBuilder
from finetune.corpus.build import Item, fill, names_in
from finetune.corpus.builders.clauses import body_start, heading_extent
from finetune.corpus.builders.definitions import ask_definition, definitions
from finetune.corpus.builders.drafts import Found, Place, Span, Unused
from finetune.corpus.builders.fields import read_values
from finetune.corpus.builders.passages import Question, deal, shelve
from finetune.corpus.builders.sentences import content_words, first_whole, is_chinese, squeeze

_ASK, _ASK_ZH = 'What does the text say about "{heading}"?', "关于“{heading}”，文中是怎么规定的？"
Asked = Iterator[tuple[int, Question | Unused]]


def build(spec: GroundedQuestionBuilder, items: Sequence[Item], place: Place) -> Found:
    """A row for each heading, definition and field that a question can be put about without doubt."""
    asked: list[tuple[int, Question | Unused]] = []
    if "heading" in spec.ask:
        asked += _headings(spec, items)
    if "definition" in spec.ask:
        asked += _definitions(spec, items)
    if "field" in spec.ask:
        asked += _fields(spec, items)
    asked.sort(key=lambda one: one[0])
    yield from deal(spec, asked, shelve(spec, items), place, spec.not_in_text)


def _headings(spec: GroundedQuestionBuilder, items: Sequence[Item]) -> Asked:
    """What the text under a heading says first; headings that stand twice in a document ask nothing certain."""
    extents = [heading_extent(spec, item) for item in items]
    words = [
        squeeze(item.columns[spec.heading][slice(*extent)]) if extent and spec.heading else ""
        for item, extent in zip(items, extents, strict=True)
    ]
    standing = Counter(words)
    for index, (item, extent) in enumerate(zip(items, extents, strict=True)):
        if extent is None or spec.heading is None:
            yield index, Unused(item, "no heading, or its number alone")
            continue
        heading, text = item.columns[spec.heading][slice(*extent)], item.columns[spec.text]
        begin = body_start(spec, item)
        answer = first_whole(text[begin:], spec.answer_chars)
        if standing[words[index]] > 1:
            yield index, Unused(item, "the heading stands twice in the document")
        elif not content_words(heading):
            yield index, Unused(item, "the heading has no word to ask about")
        elif answer is None:
            yield index, Unused(item, "the first sentence under the heading is over answer_chars")
        elif text[begin + answer[1] - 1] not in ".!?。！？”\"）)":
            yield index, Unused(item, "what stands under the heading is no sentence")
        elif squeeze(text[begin + answer[0] : begin + answer[1]]) in words[index]:
            yield index, Unused(item, "the heading says it all")
        else:
            template = spec.questions.get("heading", _ASK_ZH if is_chinese(heading) else _ASK)
            question = fill(template, {**item.columns, "heading": heading})
            span = Span(item, spec.text, begin + answer[0], begin + answer[1])
            columns = {"question": question, "answer": span.text, "asked": "heading"}
            yield index, Question(span, "heading", heading, columns)


def _definitions(spec: GroundedQuestionBuilder, items: Sequence[Item]) -> Asked:
    for index, item in enumerate(items):
        text = item.columns[spec.text]
        found = list(definitions(text, spec.pattern))
        if not found:
            yield index, Unused(item, "defines nothing")
        for one in found:
            term, span = text[slice(*one.term)], Span(item, spec.text, *one.definition)
            if one.reason:
                yield index, Unused(item, one.reason, term, Span(item, spec.text, *one.term))
            elif len(span.text) > spec.answer_chars:
                yield index, Unused(item, "the definition is over answer_chars", term, span)
            else:
                asked = spec.questions.get("definition")
                question = ask_definition(term) if asked is None else fill(asked, {**item.columns, "term": term})
                columns = {"question": question, "answer": span.text, "asked": "definition"}
                yield index, Question(span, f"definition{one.term[0]}", term, columns, names=(term,))


def _fields(spec: GroundedQuestionBuilder, items: Sequence[Item]) -> Asked:
    """Each question of `questions` that names a field, asked of every text or table line that has it."""
    index_of = {item.id: index for index, item in enumerate(items)}
    known = {*spec.labels, *spec.patterns}
    read = list(read_values(spec, items))
    for key in sorted(known & set(spec.questions)):
        named = [name for name in names_in([spec.questions[key]]) if name in known]
        rows = [
            (item, at, {name: item.columns[spec.text][slice(*extent)] for name, extent in values.items()}, values)
            for item, at, _, _, values in read
        ]
        meant = [tuple(squeeze(texts.get(name, "")) for name in named) for _, _, texts, _ in rows]
        fitting = Counter(meant)
        for (item, at, texts, values), who in zip(rows, meant, strict=True):
            if key not in values or not all(who):
                yield index_of[item.id], Unused(item, "the text lacks a field of the question", key)
            elif fitting[who] > 1:
                yield index_of[item.id], Unused(item, "the question fits several rows of the document", key)
            else:
                question = fill(spec.questions[key], {**item.columns, **texts})
                columns = {"question": question, "answer": texts[key], "asked": key}
                span = Span(item, spec.text, *values[key])
                names = tuple(texts[name] for name in named)
                yield index_of[item.id], Question(span, f"{key}.{at}", question, columns, names=names)
