"""Readers of files that are rows already: csv, tsv, jsonl, json and obo. Each yields rows and collects problems.

A problem says where, never what stands there: messages end up in logs, and a broken row may hold personal data.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from finetune.errors import Problem

Row = dict[str, str]
"""One item of a source: its columns as text, and `_file` and `_line` (1-based line, page or part)."""

_LONGEST_CELL = 1 << 27
_OBO_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def read_csv(name: str, text: str, problems: list[Problem], delimiter: str = ",") -> Iterator[Row]:
    """Rows under a header line. A row with more or fewer cells than the header is a problem, not a guess."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = 1
    header: list[str] = []
    try:
        header = [cell.strip() for cell in next(reader)]
        if not _header_holds(name, header, problems):
            return
        first = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield {**dict(zip(header, cells, strict=True)), "_file": name, "_line": str(first)}
            elif cells:
                problems.append(
                    Problem(
                        f"{name}:{first}",
                        None,
                        f"this row has {len(cells)} cells and the header names {len(header)}",
                        "put quotes around a cell that holds the delimiter, or give the row its missing cells",
                    )
                )
            first = reader.line_num + 1
    except csv.Error as error:
        problems.append(
            Problem(f"{name}:{first}", None, f"this is not a well-formed table ({error})", "check its quotes")
        )


def read_tsv(name: str, text: str, problems: list[Problem]) -> Iterator[Row]:
    return read_csv(name, text, problems, delimiter="\t")


def _header_holds(name: str, header: list[str], problems: list[Problem]) -> bool:
    twice = sorted({column for column in header if header.count(column) > 1})
    for column in twice:
        rule = "the header names this column twice" if column else "the header has more than one column without a name"
        problems.append(Problem(f"{name}:1", column or None, rule, "give each column a name of its own"))
    return not twice


def read_jsonl(name: str, text: str, problems: list[Problem]) -> Iterator[Row]:
    """One JSON object a line; blank lines are no rows."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            item = _parse(f"{name}:{number}", line, problems)
            if isinstance(item, dict):
                yield {**_columns(item), "_file": name, "_line": str(number)}
            elif item is not _BROKEN:
                problems.append(_not_an_object(f"{name}:{number}", item))


def read_json(name: str, text: str, problems: list[Problem]) -> Iterator[Row]:
    """A list of objects, or one object with exactly one list of objects in it; `_line` is the item's number."""
    whole = _parse(name, text, problems)
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        whole = lists[0] if len(lists) == 1 else whole
    if whole is _BROKEN:
        return
    if not isinstance(whole, list):
        problems.append(
            Problem(
                name,
                None,
                f"a JSON source is a list of objects, this is {_kind(whole)}",
                "wrap the rows in [ ], or write one object a line and name the file .jsonl",
            )
        )
        return
    for number, item in enumerate(whole, start=1):
        if isinstance(item, dict):
            yield {**_columns(item), "_file": name, "_line": str(number)}
        else:
            problems.append(_not_an_object(f"{name}:{number}", item))


_BROKEN = object()


def _parse(where: str, text: str, problems: list[Problem]) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            # "\ud800" alone is valid JSON and no text: it could be written to no file.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        line = f"{where}:{error.lineno}" if "\n" in text else where
        rule = f"this is not valid JSON ({error.msg}, column {error.colno})"
    except UnicodeEncodeError:
        line, rule = where, "this holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    except RecursionError:
        line, rule = where, "this JSON is nested too deeply"
    except ValueError as error:
        line, rule = where, f"this is not valid JSON ({error})"
    else:
        return value
    problems.append(Problem(line, None, rule, "correct this line, or take it out"))
    return _BROKEN


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _columns(item: Mapping[str, Any], prefix: str = "") -> Row:
    """Text as it is, other values as compact JSON, null as nothing; an inner object's keys also as `outer.inner`."""
    columns: Row = {}
    for key, value in item.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            columns |= _columns(value, f"{name}.")
        if value is None:
            columns[name] = ""
        else:
            columns[name] = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            )
    return columns


def _not_an_object(where: str, item: Any) -> Problem:
    return Problem(where, None, f"a row is a JSON object, this is {_kind(item)}", 'write it as {"column": "text", ...}')


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def read_obo(name: str, text: str, problems: list[Problem]) -> Iterator[Row]:
    """The [Term] stanzas of an ontology in OBO format; obsolete ones too, `is_obsolete` says so.

    Columns that are always there: id, name, def (the quoted text alone), synonyms (joined by ` | `), parents (ids of
    all is_a, joined by a space), first_parent, is_obsolete. Every other tag is a column under its own name.
    """
    row: Row | None = None
    found = False
    for number, line in enumerate([*text.split("\n"), "[end]"], start=1):
        line = line.strip()
        if line.startswith("["):
            if row is not None:
                yield row
            row = None
            if line == "[Term]":
                found = True
                always = ("id", "name", "def", "synonyms", "parents", "first_parent", "is_obsolete")
                row = {**dict.fromkeys(always, ""), "_file": name, "_line": str(number)}
        elif row is not None and line and not line.startswith("!"):
            tag, colon, value = line.partition(":")
            if colon:
                _add_obo_value(row, tag.strip(), value.strip())
            else:
                problems.append(Problem(f"{name}:{number}", None, "an OBO line is `tag: value`", "correct this line"))
    if not found:
        problems.append(Problem(name, None, "this file has no [Term] stanza", "check that it is an OBO file"))


def _add_obo_value(row: Row, tag: str, value: str) -> None:
    if tag in ("def", "synonym"):
        quoted = _OBO_QUOTED.match(value)
        value = re.sub(r"\\(.)", r"\1", quoted.group(1)) if quoted else value
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


TableReader = Callable[[str, str, list[Problem]], Iterable[Row]]
TABLES: Mapping[str, TableReader] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "json": read_json,
    "obo": read_obo,
}
