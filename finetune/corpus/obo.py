"""Reader of ontologies in OBO format."""

import re
from collections.abc import Iterator
from itertools import chain

from finetune.corpus.streams import Line, bad
from finetune.corpus.tables import OURS, Found, Row

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_SPACES = {"n": "\n", "t": "\t", "W": " "}
"""What an escaped letter means; any other escaped character is itself."""
_ALWAYS = ("id", "name", "def", "synonyms", "parents", "first_parent", "is_obsolete")


def read_obo(name: str, lines: Iterator[Line]) -> Iterator[Found]:
    """The [Term] stanzas of an ontology in OBO format; obsolete ones too, `is_obsolete` says so.

    Columns that are always there: id, name, def (the quoted text alone), synonyms (joined by ` | `), parents (ids of
    all is_a, joined by a space), first_parent, is_obsolete. Every other tag is a column under its own name. A stanza
    with a line that cannot be read is no row.
    """
    row: Row | None = None
    found = False
    for number, text, wrong in chain(lines, [Line(0, "[end]", None)]):
        line = text.strip()
        stanza = line.partition("!")[0].rstrip() if line.startswith("[") else ""
        if wrong is not None:
            yield wrong
            found, row = True, None
        elif stanza:
            if row is not None:
                yield row
            row = None
            if stanza == "[Term]":
                found = True
                row = {**dict.fromkeys(_ALWAYS, ""), "_file": name, "_line": str(number)}
        elif row is not None and line and not line.startswith("!"):
            tag, colon, value = line.partition(":")
            tag = tag.strip()
            if colon and tag not in OURS:
                _add(row, tag, value.strip())
            else:
                yield bad(name, number, "broken stanza", "an OBO line is `tag: value`", "correct this line")
                row = None
    if not found:
        yield bad(name, 0, "no rows", "this file has no [Term] stanza", "check that it is an OBO file")


def _add(row: Row, tag: str, value: str) -> None:
    if tag in ("def", "synonym"):
        quoted = _QUOTED.match(value)
        value = _ESCAPED.sub(lambda match: _SPACES.get(match[1], match[1]), quoted.group(1)) if quoted else value
    if tag == "synonym":
        _join(row, "synonyms", value, " | ")
    elif tag == "is_a":
        parent = value.partition("!")[0].strip()
        row["first_parent"] = row["first_parent"] or parent
        _join(row, "parents", parent, " ")
    else:
        _join(row, tag, value, " | ")


def _join(row: Row, column: str, value: str, glue: str) -> None:
    row[column] = f"{row[column]}{glue}{value}" if row.get(column) else value
