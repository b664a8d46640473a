"""Readers of files that are rows already: csv, tsv, jsonl and json. Each is a stream: a row or what is wrong with one.

A problem says where, never what stands there: messages end up in logs, and a broken row may hold personal data.
"""

import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from finetune.corpus.streams import LINE_COST, LONGEST, BadInput, Line, bad

Row = dict[str, str]
"""One item of a source: its columns as text, and `_file` and `_line` (1-based line, page or part)."""
Found = Row | BadInput

OURS = ("_file", "_line", "_when", "_builder", "_span")
"""Columns that the toolkit adds and no file may bring. Any other is text of the row: `_id`, `_source.message`."""
_DEEPEST = 16
_SPACE = re.compile(r"[ \t\n\r]*")
_BUFFER = 1 << 16
"""Characters of JSON read ahead."""


class _Records:
    """Lines for csv.reader, and the way back: after an error reading goes on behind the line at which the row began."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []
        self._held = 0

    def __iter__(self) -> "_Records":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append(line)
        self._held += len(line.text) + LINE_COST
        if self._held > LONGEST:
            raise csv.Error("a row that is too long: a quote is not closed")
        return line.text + "\n"

    def begin(self) -> None:
        self._taken, self._held = [], 0

    def back(self) -> None:
        """Give the lines of this row again, all but its first."""
        self._again.extendleft(reversed(self._taken[1:]))

    @property
    def first(self) -> int:
        return self._taken[0].number if self._taken else 0

    @property
    def wrong(self) -> BadInput | None:
        """What is wrong with a line of this row."""
        return next((line.wrong for line in self._taken if line.wrong is not None), None)


def read_csv(name: str, lines: Iterator[Line], delimiter: str = ",") -> Iterator[Found]:
    """Rows under a header line. A row with more or fewer cells than the header is a problem, not a guess."""
    csv.field_size_limit(LONGEST)
    records = _Records(lines)
    reader = csv.reader(records, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        records.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            rule = f"this is not a well-formed table ({error})"
            yield records.wrong or bad(name, records.first, "broken table", rule, "check its quotes")
            records.back()
            if header is None:
                return
            continue
        if (wrong := records.wrong) is not None:
            yield wrong
            if header is None:
                return
        elif header is None and cells:
            header = [cell.strip() for cell in cells]
            if problems := list(_header_problems(name, records.first, header)):
                yield from problems
                return
        elif header is not None and len(cells) == len(header):
            yield {**dict(zip(header, cells, strict=True)), "_file": name, "_line": str(records.first)}
        elif cells and header is not None:
            rule = f"this row has {len(cells)} cells and the header names {len(header)}"
            fix = "put quotes around a cell that holds the delimiter, or give the row its missing cells"
            yield bad(name, records.first, "wrong number of cells", rule, fix)


def read_tsv(name: str, lines: Iterator[Line]) -> Iterator[Found]:
    return read_csv(name, lines, delimiter="\t")


def _header_problems(name: str, line: int, header: list[str]) -> Iterator[BadInput]:
    for column in sorted({column for column in header if header.count(column) > 1}):
        rule = "the header names this column twice" if column else "the header has more than one column without a name"
        yield bad(name, line, "broken header", rule, "give each column a name of its own", column or None)
    for column in sorted(set(header) & set(OURS)):
        yield bad(name, line, "broken header", "this name is taken by the toolkit", "rename the column", column)


def read_jsonl(name: str, lines: Iterator[Line]) -> Iterator[Found]:
    """One JSON object a line; blank lines are no rows."""
    for number, text, wrong in lines:
        if wrong is not None:
            yield wrong
        elif text and not text.isspace():
            yield _row(name, number, text)


def read_json(name: str, chunks: Iterator[Line]) -> Iterator[Found]:
    """A list of objects, item by item; or an object with exactly one list in it, whole. `_line`: the item's number."""
    text = _Text(chunks)
    if text.peek() == "[":
        text.at += 1
        yield from _items(name, text)
        return
    whole = text.value() if text.peek() else []
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        whole = lists[0] if len(lists) == 1 else whole
    if text.wrong is not None:
        yield text.wrong
    elif isinstance(whole, _Refused):
        yield whole.at(name, 0)
    elif text.peek():
        yield _Refused("something follows the JSON value").at(name, 0)
    elif not isinstance(whole, list):
        rule = f"a JSON source is a list of objects, this is {_kind(whole)}"
        fix = "wrap the rows in [ ], or write one object a line and name the file .jsonl"
        yield bad(name, 0, "not a list", rule, fix)
    else:
        for number, item in enumerate(whole, start=1):
            yield _checked(name, number, item)


def _items(name: str, text: "_Text") -> Iterator[Found]:
    number = 0
    after = text.peek()
    while after != "]":
        number += 1
        item = text.value()
        after = text.peek()
        if text.wrong is not None:
            yield text.wrong
            return
        if isinstance(item, _Refused) or after not in (",", "]"):
            # Where a value is broken nothing says where the next begins: the rest of the list is not guessed at.
            refused = item if isinstance(item, _Refused) else _Refused("a comma or ] is missing")
            yield refused.at(name, number)
            return
        yield _checked(name, number, item)
        text.at += after == ","
    text.at += 1
    if text.peek():
        yield _Refused("something follows the list").at(name, number + 1)
    if text.wrong is not None:
        yield text.wrong


class _Text:
    """Text that is read on as far as a JSON value needs; what was consumed is let go."""

    def __init__(self, chunks: Iterator[Line]) -> None:
        self._chunks = chunks
        self._held, self.at = "", 0
        self.wrong: BadInput | None = None

    def _more(self, least: int) -> bool:
        """Read on until `least` more characters are held; False where there were none."""
        parts, count = [self._held[self.at :]], 0
        for _, text, wrong in self._chunks:
            self.wrong = self.wrong or wrong
            parts.append(text)
            count += len(text)
            if count > least or self.wrong is not None:
                break
        self._held, self.at = "".join(parts), 0
        return count > 0 and self.wrong is None

    def peek(self) -> str:
        """The next character that is no white space, or nothing at the end."""
        while True:
            found = _SPACE.match(self._held, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._held) or not self._more(_BUFFER):
                return self._held[self.at : self.at + 1]

    def value(self) -> Any:
        """The JSON value that begins here, or a _Refused. Each attempt reads twice as much, so the cost is linear."""
        self.peek()
        while True:
            parsed, end = _parse(self._held, self.at)
            held = len(self._held) - self.at
            if not isinstance(parsed, _Refused) and end < len(self._held):
                self.at = end
                return parsed
            if held > LONGEST or not self._more(max(held, _BUFFER)):
                self.at = end
                return parsed


class _Refused:
    """Text that is no JSON value, and why."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def at(self, name: str, line: int) -> BadInput:
        rule = self.rule if self.rule.startswith("this") else f"this is not valid JSON ({self.rule})"
        return bad(name, line, "broken JSON", rule, "correct this line, or take it out")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return item


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)


def _parse(text: str, at: int = 0) -> tuple[Any, int]:
    """(value, where it ends): the value that begins at `at`, or (_Refused, at)."""
    try:
        value, end = _DECODER.raw_decode(text, at)
        if text.find("\\u", at, end) >= 0:
            # "\ud800" alone is valid JSON and no text: it could be written to no file.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        return _Refused(f"{error.msg}, column {error.colno}"), at
    except UnicodeEncodeError:
        return _Refused("this holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"), at
    except RecursionError:
        return _Refused("this JSON is nested too deeply"), at
    except ValueError as error:
        return _Refused(str(error)), at
    return value, end


def _row(name: str, number: int, text: str) -> Found:
    text = text.strip(" \t")
    value, end = _parse(text)
    if not isinstance(value, _Refused) and end < len(text):
        value = _Refused(f"Extra data, column {end + 1}")
    return value.at(name, number) if isinstance(value, _Refused) else _checked(name, number, value)


def _checked(name: str, number: int, item: Any) -> Found:
    if not isinstance(item, dict):
        fix = 'write it as {"column": "text", ...}'
        return bad(name, number, "not an object", f"a row is a JSON object, this is {_kind(item)}", fix)
    try:
        columns = flatten(item)
    except TwiceError as twice:
        rule = "two values of this row would have this column name" if twice.column not in OURS else "is our own name"
        return bad(name, number, "column twice", rule, "rename one of the keys", twice.column)
    return {**columns, "_file": name, "_line": str(number)}


class TwiceError(ValueError):
    """A column that two values of a row claim, or one that the toolkit adds itself."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def flatten(item: Mapping[str, Any]) -> Row:
    """Text as it is, other values as compact JSON, null as nothing; an inner object's keys also as `outer.inner`.

    Objects deeper than 16 keep to their JSON. Raises TwiceError where `{"a.b": 1, "a": {"b": 2}}` would lose a value.
    """
    columns: Row = {}
    _flatten(item, "", 0, columns)
    if ours := next((column for column in OURS if column in columns), None):
        raise TwiceError(ours)
    return columns


def _flatten(item: Mapping[str, Any], prefix: str, depth: int, columns: Row) -> None:
    for key, value in item.items():
        name = f"{prefix}{key}" if prefix else key
        if name in columns:
            raise TwiceError(name)
        if isinstance(value, str):
            columns[name] = value
            continue
        columns[name] = "" if value is None else str(value) if type(value) is int else _ENCODER.encode(value)
        if isinstance(value, dict) and depth < _DEEPEST:
            _flatten(value, f"{name}.", depth + 1, columns)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
