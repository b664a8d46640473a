"""What no language model is needed for: a constant answer, a linear model, the nearest training row (scikit-learn).

A tuned model that does not beat these has learnt nothing worth serving. All three are deterministic.
"""

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.metrics import score
from finetune.metrics.metric import Row, Task
from finetune.metrics.objects import NotOneObjectError, read_object
from finetune.metrics.texts import words

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

_CANDIDATES, _CANDIDATES_OF_LONG, _LONG = 200, 40, 200
"""Constant answers tried for a graded metric: the most frequent, then in alphabetical order; fewer where answers have
more than so many characters, because each is held against each."""
_CLASSES, _FEATURES = 500, 100_000
"""At most so many answers are classes of the linear model, the most frequent, then in alphabetical order, and so many
words and pairs are looked at: it has a weight for each class and word. Where every row has its own answer, as with
running text, 10,000 rows would be more than 100 GB."""
_BLOCK = 256
"""Questions that are held against all training rows at once."""
_WHOLE = frozenset({"exact_match", "label_accuracy", "json_exact", "multiple_choice"})
"""Metrics on which the best constant answer is simply the most frequent one."""


def majority(rows: Sequence[Row], task: Task) -> str:
    """The one answer that, always given, scores best on the training rows.

    For exact metrics that is the most frequent answer; for graded ones, where answers hardly repeat, the one most like
    the others. Of equals the more frequent, then the alphabetically first.
    """
    counts = Counter(row.answer for row in rows)
    order = sorted(counts, key=lambda answer: (-counts[answer], answer))
    if task.metric in _WHOLE:
        return order[0]
    candidates = order[: _CANDIDATES if sum(map(len, order)) <= _LONG * len(order) else _CANDIDATES_OF_LONG]
    first = {row.answer: row for row in reversed(rows)}
    totals = [sum(counts[gold] * score(answer, first[gold], task) for gold in candidates) for answer in candidates]
    return candidates[totals.index(max(totals))]


def linear(prompts: Sequence[str], answers: Sequence[str], asked: Sequence[str], *, seed: int) -> list[str]:
    """Answers of a linear support vector machine over TF-IDF of words and word pairs, answers being the classes.

    Of very many different answers the most frequent alone can be given. When all training answers are JSON objects with
    the same keys there is one classifier for each field, which puts fields together as no training row may have them.
    """
    table = _same_keys(answers)
    if table is None:
        return _classify(prompts, answers, asked, seed)
    columns = {
        key: _classify(prompts, [json.dumps(row[key], ensure_ascii=False) for row in table], asked, seed)
        for key in table[0]
    }
    return [
        json.dumps(
            {key: json.loads(column[row]) for key, column in columns.items()}, ensure_ascii=False, separators=(",", ":")
        )
        for row in range(len(asked))
    ]


def nearest(prompts: Sequence[str], answers: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The answer of the training row whose prompt is most alike (cosine of TF-IDF); of equals the first."""
    features = _features()
    known = features.fit_transform(prompts).T
    found = features.transform(asked)
    blocks = ((found[at : at + _BLOCK] @ known).toarray() for at in range(0, len(asked), _BLOCK))
    return [answers[int(row)] for alike in blocks for row in alike.argmax(axis=1)]


def _classify(prompts: Sequence[str], labels: Sequence[str], asked: Sequence[str], seed: int) -> list[str]:
    from sklearn.svm import LinearSVC

    counts = Counter(labels)
    if len(counts) == 1:
        return [labels[0]] * len(asked)
    classes = set(sorted(counts, key=lambda label: (-counts[label], label))[:_CLASSES])
    prompts, labels = zip(*((one, label) for one, label in zip(prompts, labels, strict=True) if label in classes),
                          strict=True)  # fmt: skip
    features = _features(_FEATURES)
    # Answers are classes on purpose, also where nearly every row has its own.
    warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
    model = LinearSVC(random_state=seed).fit(features.fit_transform(prompts), list(labels))
    return [str(label) for label in model.predict(features.transform(asked))]


def _features(most: int | None = None) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=_words_and_pairs, sublinear_tf=True, max_features=most)


def _words_and_pairs(text: str) -> list[str]:
    single = words(text)
    return [*single, *(f"{a} {b}" for a, b in itertools.pairwise(single))]


def _same_keys(answers: Sequence[str]) -> list[dict[str, Any]] | None:
    table = []
    for answer in answers:
        try:
            table.append(read_object(answer))
        except NotOneObjectError:
            return None
    return table if all(row.keys() == table[0].keys() for row in table) else None
