"""Metrics of running text: the same characters, ROUGE-1, -2 and -L, chrF."""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetune.metrics.metric import Row, metric

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_WORD = re.compile(f"[{HAN}]|[^\\W_{HAN}]+")
_LATIN_WORD = re.compile("[a-z0-9]+")
_CHRF_ORDER = 6
_CHRF_BETA = 2.0


@metric("exact_match")
def exact_match(answer: str, row: Row, options: Any) -> float:
    """1 if both are the same characters; white space around them does not count, everything else does."""
    return float(answer.strip() == row.answer.strip())


@metric("rouge_1")
def rouge_1(answer: str, row: Row, options: Any) -> float:
    """F1 of the words that both texts have, each as often as in both (ROUGE-1; words as in `rouge_l`)."""
    return _rouge_n(answer, row.answer, 1)


@metric("rouge_2")
def rouge_2(answer: str, row: Row, options: Any) -> float:
    """F1 of the pairs of neighbouring words that both texts have (ROUGE-2; words as in `rouge_l`)."""
    return _rouge_n(answer, row.answer, 2)


@metric("rouge_l")
def rouge_l(answer: str, row: Row, options: Any) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L, Lin 2004, https://aclanthology.org/W04-1013).

    Words as in Google's rouge-score without stemming, and equal to it: lower case, runs of a-z and 0-9. If either text
    has Han characters, each of them is a word, as is common for Chinese; rouge-score drops them.
    """
    given, gold = split_words(answer, row.answer)
    return _f1(_longest_common_subsequence(given, gold), len(given), len(gold))


@metric("chrf")
def chrf(answer: str, row: Row, options: Any) -> float:
    """chrF2: F-score (recall counts twice) of runs of 1 to 6 characters (Popović 2015, https://aclanthology.org/W15-3049).

    Equal to sacrebleu's sentence chrF divided by 100. White space is left out, letter case counts, and characters are
    Unicode's, so Chinese needs no word segmentation. Lengths of which either text has no run do not count.
    """
    given, gold = "".join(answer.split()), "".join(row.answer.split())
    precisions, recalls = [], []
    for length in range(1, min(_CHRF_ORDER, len(given), len(gold)) + 1):
        mine, theirs = _character_runs(given, length), _character_runs(gold, length)
        common = (mine & theirs).total()
        precisions.append(common / mine.total())
        recalls.append(common / theirs.total())
    if not precisions:
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    factor = _CHRF_BETA**2
    return (1 + factor) * precision * recall / (factor * precision + recall) if precision + recall else 0.0


def words(text: str) -> list[str]:
    """Lower-cased words of any script; each Han character is a word. What baselines count."""
    return _WORD.findall(text.lower())


def split_words(answer: str, gold: str) -> tuple[list[str], list[str]]:
    """Both texts as ROUGE's words; one rule for both, so that a pair is never cut in two ways."""
    if re.search(f"[{HAN}]", answer + gold):
        return words(answer), words(gold)
    return _LATIN_WORD.findall(answer.lower()), _LATIN_WORD.findall(gold.lower())


@functools.lru_cache(maxsize=8192)
def _character_runs(text: str, length: int) -> Counter[str]:
    """Kept, because a constant answer is held against many gold ones, and a gold one against many."""
    return Counter(text[at : at + length] for at in range(len(text) - length + 1))


def _runs(text: Sequence[Any], length: int) -> Counter[Any]:
    return Counter(tuple(text[at : at + length]) for at in range(len(text) - length + 1))


def _rouge_n(answer: str, gold: str, length: int) -> float:
    mine, theirs = (_runs(text, length) for text in split_words(answer, gold))
    return _f1((mine & theirs).total(), mine.total(), theirs.total())


def _f1(common: int, given: int, gold: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / given, common / gold
    return 2 * precision * recall / (precision + recall)


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, a whole row of the usual table at once as the bits of one integer (Hyyrö 2004, "Bit-parallel
    LCS-length computation revisited"): 80 words against 80 took a hundredth of the time of cell by cell."""
    places: dict[str, int] = {}
    for at, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(second)) - 1
    row = full  # a zero where the length grows
    for word in first:
        common = row & places.get(word, 0)
        row = (row + common | row - common) & full
    return len(second) - row.bit_count()
