"""Builder `heading`: the text of a clause or section -> what it is headed."""

from collections.abc import Sequence

from finetune.config.build import HeadingBuilder
from finetune.corpus.build import Item
from finetune.corpus.builders.clauses import body_start, heading_extent
from finetune.corpus.builders.drafts import Draft, Found, Span, Unused
from finetune.corpus.builders.sentences import opening, squeeze


def build(spec: HeadingBuilder, items: Sequence[Item]) -> Found:
    """A row for each text that is long enough to tell its heading from, cut at `max_chars`."""
    for item in items:
        text = item.columns[spec.text][body_start(spec, item) :]
        extent = heading_extent(spec, item, keep_number=spec.keep_number)
        if extent is None:
            yield Unused(item, "no heading, or its number alone")
            continue
        assert spec.heading is not None
        span = Span(item, spec.heading, *extent)
        shown = opening(text, spec.max_chars)
        if len(squeeze(text)) <= len(squeeze(span.text)):
            yield Unused(item, "hardly any text under the heading")
        elif shown is None:
            yield Unused(item, "first sentence is over max_chars")
        elif squeeze(span.text) in squeeze(text[slice(*shown)])[: 2 * len(squeeze(span.text))]:
            yield Unused(item, "the text begins with its heading")
        else:
            yield Draft(item, "heading", (span,), {"answer": span.text, "clause": text[slice(*shown)]})
