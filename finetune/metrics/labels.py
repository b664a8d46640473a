"""Metrics of closed answers: labels with their confusion, passages passed or flagged, one option of several."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from finetune.config.section import Section
from finetune.metrics.metric import Ratios, Row, metric

OTHER = "(other)"
"""What a confusion calls every answer that is no label: the model's own words stay in answers.jsonl."""


class Labels(Section):
    labels: tuple[str, ...] = ()
    """The closed set of labels, every gold answer one of them. Given, each label has its own figures and a confusion;
    empty, labels are those of the evaluated rows, which are corpus text, so that only averages are told."""


class Flags(Section):
    clean: Annotated[tuple[str, ...], Field(min_length=1)]
    """Answers that pass a passage."""
    flagged: Annotated[tuple[str, ...], Field(min_length=1)]
    """Answers that flag it; several where there are kinds of findings, which this metric does not tell apart."""


def label_of(text: str) -> str:
    """A label as it is compared: letter case, runs of white space and a final full stop (`.` or `。`) do not count."""
    tidy = " ".join(text.split())
    return (tidy[:-1] if tidy[-1:] in (".", "。") else tidy).rstrip().casefold()


def classify(answers: Sequence[str], rows: Sequence[Row], options: Labels) -> dict[str, Any]:
    """macro and micro F1; of labels that the recipe names also each one's own figures, and the confusion as its
    non-empty cells, most frequent first.

    Micro F1 counts an answer that is no label as a miss only, so it lies above accuracy where there are such answers.
    A label that was never given and never right has F1 0, as in scikit-learn with zero_division=0.
    """
    spelling = {label_of(label): label.strip() for label in options.labels or [row.answer for row in rows]}
    gold = [label_of(row.answer) for row in rows]
    given = [label if (label := label_of(answer)) in spelling else "" for answer in answers]
    cells = Counter(zip(gold, given, strict=True))
    of_gold, of_given = Counter(gold), Counter(given)
    right = {label: cells[label, label] for label in spelling}
    f1 = {label: _f1(right[label], of_given[label], of_gold[label]) for label in spelling}
    found: dict[str, Any] = {
        "macro_f1": sum(f1.values()) / len(f1),
        "micro_f1": _f1(sum(right.values()), sum(of_given[label] for label in spelling), len(rows)),
        "other": of_given[""] / len(rows),
    }
    if not options.labels:
        return found
    found["labels"] = {
        name: {
            "n": of_gold[label],
            "precision": right[label] / of_given[label] if of_given[label] else 0.0,
            "recall": right[label] / of_gold[label] if of_gold[label] else 0.0,
            "f1": f1[label],
        }
        for label, name in spelling.items()
    }
    found["confusion"] = [
        {"gold": spelling[one], "answered": spelling.get(other, OTHER), "n": n}
        for (one, other), n in sorted(cells.items(), key=lambda cell: (-cell[1], cell[0]))
    ]
    return found


def _not_a_label(row: Row, options: Labels) -> str | None:
    if options.labels and label_of(row.answer) not in {label_of(label) for label in options.labels}:
        return "it is none of metric_options.labels"
    return None


@metric("label_accuracy", options=Labels, details=classify, gold=_not_a_label)
def label_accuracy(answer: str, row: Row, options: Labels) -> float:
    """1 if both name the same label: letter case, runs of white space and one final full stop do not count."""
    return float(label_of(answer) == label_of(row.answer))


def count_flags(answer: str, row: Row, options: Flags) -> Ratios:
    """False-positive rate: how often a clean passage is flagged; recall and precision of flagging.

    An answer that neither passes nor flags is `unreadable`: it catches nothing and flags nothing.
    """
    gold, given = _flag(row.answer, options), _flag(answer, options)
    return {
        "false_positive_rate": (float(not gold and given is True), float(not gold)),
        "recall": (float(gold is True and given is True), float(gold is True)),
        "precision": (float(gold is True and given is True), float(given is True)),
        "unreadable": (float(given is None), 1.0),
    }


def _neither(row: Row, options: Flags) -> str | None:
    return "it neither passes nor flags" if _flag(row.answer, options) is None else None


@metric("flag_accuracy", options=Flags, ratios=count_flags, gold=_neither)
def flag_accuracy(answer: str, row: Row, options: Flags) -> float:
    """1 if a clean passage is passed or another one flagged; which kind of finding was named does not count."""
    return float(_flag(answer, options) is _flag(row.answer, options))


def _flag(text: str, options: Flags) -> bool | None:
    label = label_of(text)
    if label in map(label_of, options.clean):
        return False
    return True if label in map(label_of, options.flagged) else None


class Likelihood(Section):
    normalise: bool = True
    """Divide an option's log-probability by its number of characters (lm-evaluation-harness's acc_norm) before the
    likeliest is taken; false: as it is (acc), which favours short options."""


def _no_option(row: Row, options: Likelihood) -> str | None:
    if len(row.choices) < 2 or len(set(row.choices)) < len(row.choices) or not all(row.choices):
        return "its choices are not two or more different texts"
    return None if row.answer in row.choices else "it is none of the choices"


def likeliest(log_probs: Sequence[float], choices: Sequence[str], *, normalise: bool) -> str:
    """The option of the highest log-probability, the first of equals; `normalise` divides by its characters first."""
    worth = [value / len(choice) if normalise else value for value, choice in zip(log_probs, choices, strict=True)]
    return choices[worth.index(max(worth))]


def both_ways(log_probs: Sequence[Sequence[float]], rows: Sequence[Row]) -> dict[str, float]:
    """lm-evaluation-harness's acc and acc_norm over these rows."""
    return {
        name: sum(
            likeliest(own, row.choices, normalise=normalise) == row.answer
            for own, row in zip(log_probs, rows, strict=True)
        )
        / len(rows)
        for name, normalise in (("acc", False), ("acc_norm", True))
    }


@metric("multiple_choice", options=Likelihood, gold=_no_option, needs=("choices",), kind="likelihood")
def multiple_choice(answer: str, row: Row, options: Likelihood) -> float:
    """1 if the option that the model finds likeliest is the gold one, character by character."""
    return float(answer.strip() == row.answer.strip())


def _f1(common: float, given: float, gold: float) -> float:
    return 2 * common / (given + gold) if common else 0.0
