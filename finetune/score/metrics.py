"""How an answer is scored: one function for each metric, (answer, gold, task) -> a number from 0 to 1.

Answers are taken as the model gave them, only white space around them is removed (`label_accuracy` says what more).
Nothing is searched for inside an answer: a rule that digs the right word out of a chatty answer would favour one
system over another, and whoever uses the served model would have to have the same rule.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from finetune.config.data import Metric

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_WORD = re.compile(f"[{_HAN}]|[^\\W_{_HAN}]+")
_LATIN_WORD = re.compile("[a-z0-9]+")


class Task(Protocol):
    """What a metric may ask of a task: `config.data.Task` has it."""

    @property
    def metric(self) -> Metric: ...


class NotOneObjectError(ValueError):
    """The text is no single JSON object with distinct keys."""


def score(answer: str, gold: str, task: Task) -> float:
    """The task's metric."""
    return METRICS[task.metric](answer, gold, task)


def exact_match(answer: str, gold: str, task: Task) -> float:
    """1 if both are the same characters; white space around them does not count, everything else does."""
    return float(answer.strip() == gold.strip())


def label_accuracy(answer: str, gold: str, task: Task) -> float:
    """1 if both name the same label: letter case, runs of white space and one final full stop do not count."""
    return float(_label(answer) == _label(gold))


def json_exact(answer: str, gold: str, task: Task) -> float:
    """1 if the whole answer is one JSON object that equals the gold object: same keys, same values, any key order.

    Values are compared with their type (1, "1", 1.0 and true are four things). A code fence or a sentence around the
    object is not JSON, and a key given twice leaves open which value is meant: both score 0.
    """
    expected = read_object(gold)
    try:
        return float(_same(read_object(answer), expected))
    except NotOneObjectError:
        return 0.0


def rouge_l(answer: str, gold: str, task: Task) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L, Lin 2004, https://aclanthology.org/W04-1013).

    Words as in Google's rouge-score without stemming, and equal to it: lower case, runs of a-z and 0-9. If either text
    has Han characters, each of them is a word, as is common for Chinese; rouge-score drops them.
    """
    return rouge_l_of_words(*split_words(answer, gold))


METRICS: Mapping[Metric, Callable[[str, str, Task], float]] = {
    "exact_match": exact_match,
    "label_accuracy": label_accuracy,
    "json_exact": json_exact,
    "rouge_l": rouge_l,
}


class JsonDetails(NamedTuple):
    """What `json_exact` hides: is it an object at all, and which fields are right."""

    valid: float
    fields: dict[str, float]


def json_details(answer: str, gold: str) -> JsonDetails:
    """Whether the answer is one JSON object, and for each gold field whether its value is right (0 if not valid)."""
    expected = read_object(gold)
    try:
        given = read_object(answer)
    except NotOneObjectError:
        return JsonDetails(0.0, dict.fromkeys(expected, 0.0))
    return JsonDetails(
        1.0, {name: float(name in given and _same(given[name], value)) for name, value in expected.items()}
    )


def read_object(text: str) -> dict[str, Any]:
    """The text as one JSON object; raises NotOneObjectError for anything else, NaN and repeated keys included."""
    try:
        value = json.loads(text.strip(), object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise NotOneObjectError(str(error)) from error
    if not isinstance(value, dict):
        raise NotOneObjectError(f"a JSON {type(value).__name__} is no object")
    return value


def words(text: str) -> list[str]:
    """Lower-cased words of any script; each Han character is a word. What baselines count."""
    return _WORD.findall(text.lower())


def split_words(answer: str, gold: str) -> tuple[list[str], list[str]]:
    """Both texts as ROUGE's words; one rule for both, so that a pair is never cut in two ways."""
    if re.search(f"[{_HAN}]", answer + gold):
        return words(answer), words(gold)
    return _LATIN_WORD.findall(answer.lower()), _LATIN_WORD.findall(gold.lower())


def rouge_l_of_words(answer: Sequence[str], gold: Sequence[str]) -> float:
    if not answer or not gold:
        return 0.0
    common = _longest_common_subsequence(answer, gold)
    precision, recall = common / len(answer), common / len(gold)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, 1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _label(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


def _same(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise NotOneObjectError("a key is given twice")
    return value


def _no_constant(name: str) -> Any:
    raise NotOneObjectError(f"{name} is no JSON")
