"""Each metric against another implementation, on real rows, Chinese ones included (see tests/real_rows.py)."""

import csv
import json
import math
import random
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from real_rows import ROOT, Answered, articles, chinese, english, laws, nearest, orders, row, task
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import CHRF
from seqeval.metrics import classification_report
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.scheme import IOB2
from sklearn.preprocessing import MultiLabelBinarizer

from finetune.metrics import details, score

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


class Characters(Tokenizer):
    """Han characters one by one, other words whole: what our documentation says of Chinese."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[\u3400-\u9fff]|[a-z0-9]+", text.lower())


@pytest.mark.parametrize("metric", ROUGE)
def test_rouge_equals_googles_library(metric: str) -> None:
    for rows, scorer in (
        (english(), RougeScorer([ROUGE[metric]])),
        (chinese(), RougeScorer([ROUGE[metric]], tokenizer=Characters())),
    ):
        ours = [score(one.answer, row(one.gold), task(metric)) for one in rows]
        theirs = [scorer.score(one.gold, one.answer)[ROUGE[metric]].fmeasure for one in rows]
        assert ours == pytest.approx(theirs, abs=1e-12)
        assert 0.05 < np.mean(ours) < 0.95, "rows that are all right or all wrong prove nothing"


def test_chrf_equals_sacrebleus() -> None:
    short = [Answered("", one.gold[: 1 + at % 9], one.answer[: 1 + at % 5]) for at, one in enumerate(chinese())]
    for rows in (english(), chinese(), short):
        ours = [score(one.answer, row(one.gold), task("chrf")) for one in rows]
        theirs = [CHRF().sentence_score(one.answer, [one.gold]).score / 100 for one in rows]
        assert ours == pytest.approx(theirs, abs=1e-12)


def departments() -> list[Answered]:
    return nearest([law["text"] for law in laws()], [law["department"] for law in laws()])


def places() -> list[Answered]:
    return nearest([order["text"] for order in orders()], [order["location"] for order in orders()])


@pytest.mark.parametrize("rows", [departments, places], ids=["Chinese laws", "work orders"])
def test_accuracy_f1_and_confusion_of_labels_equal_scikit_learns(rows: Any) -> None:
    made = rows()
    # Every seventh answer is the model's own talk, which is no label.
    given = ["I cannot say." if at % 7 == 0 else one.answer for at, one in enumerate(made)]
    gold = [one.gold for one in made]
    known = list(dict.fromkeys(gold))
    found = details(given, [row(one.gold) for one in made], task("label_accuracy", labels=known))
    scores = [score(answer, row(right), task("label_accuracy")) for answer, right in zip(given, gold, strict=True)]
    assert np.mean(scores) == pytest.approx(sklearn.metrics.accuracy_score(gold, given))
    for average in ("macro", "micro"):
        expected = sklearn.metrics.f1_score(gold, given, labels=known, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    each = sklearn.metrics.precision_recall_fscore_support(gold, given, labels=known, zero_division=0)
    for at, name in enumerate(known):
        own = found["labels"][name]
        assert (own["precision"], own["recall"], own["f1"], own["n"]) == pytest.approx([part[at] for part in each])
    every = [*known, "(other)"]
    theirs = sklearn.metrics.confusion_matrix(
        gold, [answer if answer in known else "(other)" for answer in given], labels=every
    )
    ours = np.zeros_like(theirs)
    for cell in found["confusion"]:
        ours[every.index(cell["gold"]), every.index(cell["answered"])] = cell["n"]
    assert (ours == theirs).all()


FIELDS = ("action", "failure_mode", "location")


def objects(rows: Iterable[dict[str, str]], keys: tuple[str, ...]) -> list[Answered]:
    """Answers that lack a field, have one too many, or are none at all, beside those that are right or wrong."""
    made = nearest([one["text"] for one in rows], [json.dumps({key: one[key] for key in keys}) for one in rows])
    answers = []
    for at, one in enumerate(made):
        value = json.loads(one.answer)
        if at % 5 == 0:
            value.pop(keys[at % len(keys)])
        if at % 6 == 0:
            value["more"] = "none"
        answers.append(one.answer[:-1] if at % 11 == 0 else json.dumps(value, ensure_ascii=False))
    return [Answered(one.question, one.gold, answer) for one, answer in zip(made, answers, strict=True)]


@pytest.mark.parametrize(
    ("rows", "keys"), [(orders, FIELDS), (laws, ("law", "department"))], ids=["work orders", "Chinese laws"]
)
def test_validity_and_f1_of_json_fields_equal_scikit_learns_over_field_value_pairs(rows: Any, keys: Any) -> None:
    made = objects(rows(), keys)

    def pairs(text: str) -> set[tuple[str, str]]:
        try:
            return set(json.loads(text).items())
        except json.JSONDecodeError:
            return set()

    binary = MultiLabelBinarizer().fit([pairs(one.gold) | pairs(one.answer) for one in made])
    gold, given = (binary.transform([pairs(getattr(one, side)) for one in made]) for side in ("gold", "answer"))
    found = details([one.answer for one in made], [row(one.gold) for one in made], task("json_f1"))
    assert found["field_micro_f1"] == pytest.approx(sklearn.metrics.f1_score(gold, given, average="micro"))
    for key in keys:
        own = [at for at, (name, _) in enumerate(binary.classes_) if name == key]
        expected = sklearn.metrics.f1_score(gold[:, own], given[:, own], average="micro")
        assert found["field_f1"][key] == pytest.approx(expected)
    ours = [score(one.answer, row(one.gold), task("json_f1")) for one in made]
    assert np.mean(ours) == pytest.approx(sklearn.metrics.f1_score(gold, given, average="samples", zero_division=0))
    exact = [score(one.answer, row(one.gold), task("json_exact")) for one in made]
    assert np.mean(exact) == pytest.approx(sklearn.metrics.accuracy_score(gold, given))
    assert found["valid"] == 1 - len(range(0, len(made), 11)) / len(made)


Spans = list[tuple[int, int, str]]
"""(start, end, type) of entities in the tokens of one row."""


def chinese_spans(text: str, *, all_of_them: bool) -> Spans:
    """Laws named in 《》 and articles; a second rule sees neither the long names nor articles of two digits."""
    law, article = (
        (r"《[^》]+》", r"第[一二三四五六七八九十百零]+条")
        if all_of_them
        else (r"《[^》]{1,12}》", r"第[一二三四五六七八九十]条")
    )
    return [(found.start(), found.end(), kind) for kind, rule in (("law", law), ("article", article))
            for found in re.finditer(rule, text)]  # fmt: skip


def tagged_orders() -> list[tuple[list[str], Spans, Spans]]:
    """Words of work orders with the kinds that people gave them; a second tagger knows fewer words, and less well."""
    with (ROOT / "data/maintenance/tags.csv").open(encoding="utf-8", newline="") as file:
        kinds = {tag["token"]: tag["kind"] for tag in csv.DictReader(file)}
    chance = random.Random(0)
    guess = {word: chance.choice([kind, kind, "item", ""]) for word, kind in kinds.items()}
    rows = []
    for order in orders():
        tokens = re.findall(r"[a-z0-9/]+", order["text"].lower())
        gold = [(at, at + 1, kinds[word]) for at, word in enumerate(tokens) if word in kinds]
        given = [(at, at + 1, guess[word]) for at, word in enumerate(tokens) if guess.get(word)]
        rows.append((tokens, gold, given))
    return rows


def tagged_laws() -> list[tuple[list[str], Spans, Spans]]:
    return [
        (list(text), chinese_spans(text, all_of_them=True), chinese_spans(text, all_of_them=False))
        for text in (law["text"] for law in laws())
    ]


@pytest.mark.parametrize("rows", [tagged_orders, tagged_laws], ids=["work orders", "Chinese laws"])
def test_entity_f1_equals_seqevals(rows: Any) -> None:
    made = rows()

    def tags(tokens: list[str], spans: Spans) -> list[str]:
        found = ["O"] * len(tokens)
        for start, end, kind in spans:
            found[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
        return found

    def entities(tokens: list[str], spans: Spans) -> str:
        return json.dumps([{"type": kind, "text": "".join(tokens[start:end])} for start, end, kind in spans])

    gold = [entities(tokens, right) for tokens, right, _ in made]
    given = [entities(tokens, answered) for tokens, _, answered in made]
    true = [tags(tokens, right) for tokens, right, _ in made]
    predicted = [tags(tokens, answered) for tokens, _, answered in made]
    kinds = sorted({kind for _, right, _ in made for _, _, kind in right})
    found = details(given, [row(one) for one in gold], task("entity_f1", types=kinds))
    assert sorted(found["types"]) == kinds
    report = classification_report(true, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    assert found["micro_f1"] == pytest.approx(report["micro avg"]["f1-score"])
    assert found["precision"] == pytest.approx(report["micro avg"]["precision"])
    assert found["recall"] == pytest.approx(report["micro avg"]["recall"])
    assert found["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    for kind, own in found["types"].items():
        assert own["f1"] == pytest.approx(report[kind]["f1-score"])
        assert own["n"] == report[kind]["support"]
    for number in [at for at, (_, right, answered) in enumerate(made) if right and answered][:60]:
        own = score(given[number], row(gold[number]), task("entity_f1"))
        assert own == pytest.approx(seqeval_f1([true[number]], [predicted[number]], mode="strict", scheme=IOB2))
    assert 0.2 < found["micro_f1"] < 0.98


def cited() -> list[tuple[str, dict[str, str], str]]:
    """(a quote, the passages of the row, the passage it is said to stand in) of real articles, three of four invented
    in some way: another article's name, two sentences sewn together, a word changed."""
    texts = [(law["law"] + law["article"], law["text"]) for law in laws()]
    texts += [(f"Article {one['number']}", one["text"]) for one in articles()]
    rows = []
    for at, (name, text) in enumerate(texts):
        other, elsewhere = texts[at - 1]
        passages = {name: text, other: elsewhere}
        sentence = re.split(r"(?<=[。；.;])", text)[0]
        quotes = [sentence, sentence.replace(" ", "\n  "), f"{sentence[:20]}{elsewhere[-20:]}",
                  sentence[:-9] + "不得" + sentence[-9:]]  # fmt: skip
        rows += [(quote, passages, (name, other)[at % 5 == 0]) for quote in quotes]
    return rows


def test_a_citation_is_found_exactly_where_a_regular_expression_finds_it() -> None:
    found = []
    for quote, passages, source in cited():
        answer = json.dumps({"source": source, "quote": quote}, ensure_ascii=False)
        ours = score(answer, row(answer, passages), task("citation"))
        letters = [letter for letter in quote if not letter.isspace()]
        expected = len(letters) >= 8 and re.search(r"\s*".join(map(re.escape, letters)), passages[source]) is not None
        assert ours == float(expected)
        found.append(ours)
    assert 0.1 < np.mean(found) < 0.6
    assert len(found) > 2000


@pytest.mark.parametrize("relative", [0.0, 0.5])
def test_numbers_are_near_as_numpy_says(relative: float) -> None:
    made = nearest([order["text"] for order in orders()], [order["cost"] for order in orders()])
    made = [one for one in made if one.gold]
    options = task("numeric", relative=relative, absolute=60, thousands=",", units=("USD", "元"))
    ours, theirs = [], []
    for at, one in enumerate(made):
        gold, given = float(one.gold), float(one.answer or 0)
        unit = ("USD", "元", "")[at % 3]
        answer = f"{unit} {given:,.2f}" if at % 2 else f"{given:.2f}{unit}"
        ours.append(score(answer, row(f"{one.gold} {unit}"), options))
        theirs.append(float(np.isclose(given, gold, rtol=0, atol=max(60, relative * gold))))
    assert ours == theirs
    assert 0.1 < np.mean(ours) < 0.9


def test_abstaining_and_flagging_are_counted_as_scikit_learn_counts() -> None:
    phrases = ("Not in the text", "文中未提及")
    rows = [*english(), *chinese()]
    # Rows whose nearest is poor have no answer; answers abstain by their own rule.
    gold = [phrases[at % 2] if at % 3 == 0 else one.gold for at, one in enumerate(rows)]
    given = [f"{phrases[at % 2]}。" if len(one.answer) % 3 == 0 else one.answer for at, one in enumerate(rows)]
    found = details(given, [row(one) for one in gold], task("abstention", phrases=phrases, otherwise="rouge_l"))
    is_gold = [at % 3 == 0 for at in range(len(rows))]
    is_given = [len(one.answer) % 3 == 0 for one in rows]
    expected = sklearn.metrics.precision_recall_fscore_support(is_gold, is_given, average="binary")
    assert [found["precision"], found["recall"], found["f1"]] == pytest.approx(expected[:3])

    flags = task("flag_accuracy", clean=("无问题", "no issue"), flagged=("有问题", "issue"))
    gold = [("有问题", "no issue")[at % 3 == 0] for at in range(len(rows))]
    given = [("issue", "无问题")[len(one.answer) % 3 == 0] for one in rows]
    found = details(given, [row(one) for one in gold], flags)
    matrix = sklearn.metrics.confusion_matrix([one == "有问题" for one in gold], [one == "issue" for one in given])
    (passed, false_alarms), (missed, caught) = matrix
    assert found["false_positive_rate"] == pytest.approx(false_alarms / (false_alarms + passed))
    assert found["recall"] == pytest.approx(caught / (caught + missed))
    assert found["precision"] == pytest.approx(caught / (caught + false_alarms))
    scores = [score(answer, row(right), flags) for answer, right in zip(given, gold, strict=True)]
    assert math.fsum(scores) == passed + caught
