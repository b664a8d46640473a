"""Metrics of JSON answers: is it an object at all, which fields are right, which entities were found."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.config.section import Section
from finetune.metrics.metric import Ratios, Row, metric


class NotOneObjectError(ValueError):
    """The text is no single JSON object with distinct keys."""


def read_json(text: str) -> Any:
    """The text as JSON; raises NotOneObjectError for anything else, NaN and repeated keys included."""
    try:
        return json.loads(text.strip(), object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also of an integer with more than 4,300 digits
        raise NotOneObjectError(str(error)) from error


def read_object(text: str) -> dict[str, Any]:
    """The text as one JSON object; raises NotOneObjectError for anything else, NaN and repeated keys included."""
    value = read_json(text)
    if not isinstance(value, dict):
        raise NotOneObjectError(f"a JSON {type(value).__name__} is no object")
    return value


def same(first: Any, second: Any) -> bool:
    """Equal with their types (1, "1", 1.0 and true are four things); the order of keys does not count."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def describe_fields(answers: Sequence[str], rows: Sequence[Row], options: Any) -> dict[str, Any]:
    """Share of answers that are one object; for each gold field the share of rows in which it is right, and its F1.

    A field's F1 counts a value that is wrong as one too many and one too few; a field that no gold object has counts
    in `field_micro_f1` alone, where all fields are taken together.
    """
    golds = [read_object(row.answer) for row in rows]
    given = [_object_or_none(answer) for answer in answers]
    pairs = list(zip(given, golds, strict=True))
    names = list(dict.fromkeys(name for gold in golds for name in gold))
    right = {name: sum(_right(answer, gold, name) for answer, gold in pairs) for name in names}
    answered = {name: sum(answer is not None and name in answer for answer in given) for name in names}
    wanted = {name: sum(name in gold for gold in golds) for name in names}
    items = sum(len(answer) for answer in given if answer is not None)
    return {
        "valid": sum(answer is not None for answer in given) / len(rows),
        "fields": {name: right[name] / wanted[name] for name in names},
        "field_f1": {name: _f1(right[name], answered[name], wanted[name]) for name in names},
        "field_micro_f1": _f1(sum(right.values()), items, sum(wanted.values())),
    }


def _no_object(row: Row, options: Any) -> str | None:
    try:
        read_object(row.answer)
    except NotOneObjectError as error:
        return f"it is no JSON object ({error})"
    return None


@metric("json_exact", details=describe_fields, gold=_no_object, needs=("answer_json",))
def json_exact(answer: str, row: Row, options: Any) -> float:
    """1 if the whole answer is one JSON object that equals the gold object: same keys, same values, any key order.

    Values are compared with their type (1, "1", 1.0 and true are four things). A code fence or a sentence around the
    object is not JSON, and a key given twice leaves open which value is meant: both score 0.
    """
    return float(same(_object_or_none(answer), read_object(row.answer)))


@metric("json_f1", details=describe_fields, gold=_no_object, needs=("answer_json",))
def json_f1(answer: str, row: Row, options: Any) -> float:
    """F1 of the fields of one object: right ones against those given and those wanted; 0 for what is no object."""
    gold, given = read_object(row.answer), _object_or_none(answer)
    if given is None:
        return 0.0
    return _f1(sum(_right(given, gold, name) for name in gold), len(given), len(gold)) if gold or given else 1.0


def read_entities(text: str) -> Counter[tuple[str, str]]:
    """`[{"type": "person", "text": "Ada"}, ...]` -> how often each (type, text) is named; other keys are ignored.

    Runs of white space in a text count as one blank. Raises NotOneObjectError for anything else.
    """
    value = read_json(text)
    if not isinstance(value, list):
        raise NotOneObjectError("it is no JSON list")
    named: Counter[tuple[str, str]] = Counter()
    for one in value:
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("type", "text")):
            raise NotOneObjectError("an entity is an object with the texts type and text")
        named[one["type"], " ".join(one["text"].split())] += 1
    return named


class Types(Section):
    types: tuple[str, ...] = ()
    """The closed set of entity types, those of every gold answer among them. Given, each has its own figures; empty,
    types are what gold says, which is corpus text, so that only averages are told."""


def count_entities(answer: str, row: Row, options: Types) -> Ratios:
    """Micro F1, precision and recall over all entities of all rows, as seqeval counts whole entities."""
    gold, given = read_entities(row.answer), _entities_or_none(answer)
    known = given or Counter()
    common = float((known & gold).total())
    return {
        "micro_f1": (2 * common, float(known.total() + gold.total())),
        "precision": (common, float(known.total())),
        "recall": (common, float(gold.total())),
        "unreadable": (float(given is None), 1.0),
    }


def describe_types(answers: Sequence[str], rows: Sequence[Row], options: Types) -> dict[str, Any]:
    """Mean F1 (macro) of the types that gold or an answer names; the own figures of those that the recipe names."""
    gold: Counter[str] = Counter()
    given: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for answer, row in zip(answers, rows, strict=True):
        mine, theirs = _entities_or_none(answer) or Counter(), read_entities(row.answer)
        for total, named in ((gold, theirs), (given, mine), (right, mine & theirs)):
            for (type_, _), count in named.items():
                total[type_] += count
    f1 = {type_: _f1(right[type_], given[type_], gold[type_]) for type_ in sorted(gold | given)}
    found: dict[str, Any] = {"macro_f1": sum(f1.values()) / len(f1) if f1 else 1.0}
    if not options.types:
        return found
    found["types"] = {
        type_: {
            "n": gold[type_],
            "precision": right[type_] / given[type_] if given[type_] else 0.0,
            "recall": right[type_] / gold[type_] if gold[type_] else 0.0,
            "f1": f1.get(type_, 0.0),
        }
        for type_ in options.types
    }
    return found


def _no_entities(row: Row, options: Types) -> str | None:
    try:
        named = read_entities(row.answer)
    except NotOneObjectError as error:
        return f"it is no list of entities ({error})"
    if options.types and not {type_ for type_, _ in named} <= set(options.types):
        return "a type in it is none of metric_options.types"
    return None


@metric("entity_f1", options=Types, ratios=count_entities, details=describe_types, gold=_no_entities)
def entity_f1(answer: str, row: Row, options: Types) -> float:
    """F1 of the row's entities: type and text must be right. No entity where there is none scores 1.

    An entity that stands several times counts as often as it is named.
    """
    gold, given = read_entities(row.answer), _entities_or_none(answer)
    if given is None:
        return 0.0
    return _f1((given & gold).total(), given.total(), gold.total()) if given or gold else 1.0


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def attempt(text: str) -> Any:
        try:
            return read(text)
        except NotOneObjectError:
            return None

    return attempt


_object_or_none = _or_none(read_object)
_entities_or_none = _or_none(read_entities)


def _right(given: Mapping[str, Any] | None, gold: Mapping[str, Any], name: str) -> bool:
    return given is not None and name in given and name in gold and same(given[name], gold[name])


def _f1(common: float, given: float, gold: float) -> float:
    return 2 * common / (given + gold) if common else 0.0


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise NotOneObjectError("a key is given twice")
    return value


def _no_constant(name: str) -> Any:
    raise NotOneObjectError(f"{name} is no JSON")
