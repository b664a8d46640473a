"""Builder `fields`: values under labels, in table columns or by pattern, with the place of each."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from finetune.config.build import FieldsBuilder, Values
from finetune.corpus.build import Item
from finetune.corpus.builders.drafts import Draft, Found, Span, Unused
from finetune.corpus.builders.sentences import Extent
from finetune.corpus.patterns import compiled, find_all

_CELLS = re.compile(r"(?:^|(?<=\|))([^|\n]*)(?=\||$)")
_LINE = re.compile(r"[^\n]+")


def build(spec: FieldsBuilder, items: Sequence[Item]) -> Found:
    """A row for each text, and for each line of a table under a head that names one of the labels."""
    keys = [*dict.fromkeys([*spec.labels, *spec.patterns])]
    read: set[str] = set()
    for item, key, header, extent, values in read_values(spec, items):
        read.add(item.id)
        if len(values) < spec.least:
            yield Unused(item, "no label or pattern is found" if not values else "fewer values than `least`")
            continue
        texts = {name: item.columns[spec.text][slice(*values[name])] if name in values else "" for name in keys}
        answer = {name: texts[name] or spec.missing for name in keys}
        columns = {
            **texts, spec.text: item.columns[spec.text][slice(*extent)], "header": header, "found": str(len(values)),
            "answer": json.dumps(answer, ensure_ascii=False, separators=(",", ":")),
        }  # fmt: skip
        yield Draft(item, key, tuple(Span(item, spec.text, *values[name]) for name in keys if name in values), columns)
    yield from (Unused(item, "the head of a table alone") for item in items if item.id not in read)


def read_values(
    spec: Values, items: Sequence[Item]
) -> Iterator[tuple[Item, str, str, Extent, dict[str, Extent]]]:
    """(item, key, head of the table or '', what was read, name -> where its value stands) of one document's items.

    A table is lines of cells between ` | `. Its head stands in the same text or in the item before, and holds good
    until a line that is none of the table's.
    """
    head: list[str] = []
    for item in items:
        text = item.columns[spec.text]
        plain = True
        for number, line in enumerate(_LINE.finditer(text)):
            cells = _cells(line)
            if len(cells) < 2:
                head = []
                continue
            names = [text[slice(*cell)] for cell in cells]
            if sum(_key(spec, name) is not None for name in names) >= min(2, len(spec.labels)) and spec.labels:
                head, plain = names, False
            elif head and len(cells) == len(head):
                plain = False
                named = ((_key(spec, name), cell) for name, cell in zip(head, cells, strict=True))
                values = {key: cell for key, cell in named if key is not None and cell[0] < cell[1]}
                yield item, f"row{number}", " | ".join(head), line.span(), values
            else:
                head = []
        if plain:
            yield item, "text", "", (0, len(text)), _labelled(spec, text)


def _cells(line: re.Match[str]) -> list[Extent]:
    if " | " not in line.group():
        return []
    found = []
    for cell in _CELLS.finditer(line.group()):
        inner = cell.group(1)
        start = line.start() + cell.start(1) + len(inner) - len(inner.lstrip())
        found.append((start, start + len(inner.strip())))
    return found


def _key(spec: Values, name: str) -> str | None:
    return next((key for key, labels in spec.labels.items() if name.casefold() in map(str.casefold, labels)), None)


def _labelled(spec: Values, text: str) -> dict[str, Extent]:
    """The first value of each key; a value found twice with different words is left out, as it is not one value."""
    found: dict[str, Extent] = {}
    for key, pattern in _patterns(spec).items():
        places = [_value(match) for match in find_all(text, compiled(pattern), "build")]
        texts = {text[slice(*place)] for place in places if place[0] < place[1]}
        if len(texts) == 1:
            found[key] = next(place for place in places if place[0] < place[1])
    return found


def _patterns(spec: Values) -> Mapping[str, str]:
    labelled = {
        key: rf"(?im)^[^\S\n]*(?:[-*•][^\S\n]+)?(?:{'|'.join(map(re.escape, labels))})[^\S\n]*[:：=][^\S\n]*"
        r"(?P<value>(?:[^\n]*\S)?)[^\S\n]*$"
        for key, labels in spec.labels.items()
    }
    return {**labelled, **spec.patterns}


def _value(match: re.Match[str]) -> Extent:
    return match.span("value") if "value" in match.re.groupindex else match.span()
