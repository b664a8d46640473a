"""Both thinking modes of one model: what each scores, how long its answers are, and which one suits a task."""

from collections.abc import Sequence
from typing import Any

from finetune import metrics
from finetune.corpus.records import Mode
from finetune.score.answers import Answerer, Say
from finetune.score.questions import Questions
from finetune.score.statistics import interval, mean, paired_difference


def measure(
    answerer: Answerer, questions: Questions, modes: Sequence[Mode], *, room: int, say: Say
) -> dict[str, Any]:
    """{task: {mode: {n, score, ci95, tokens_mean, seconds_mean, cut_off, no_answer}}, advised: {task: {mode, ...}}}.

    no_answer: thoughts that never ended, and answers without any thoughts in think mode: a server that is told of the
    mode takes them for thoughts.
    room: tokens for thoughts where a row of plain mode is asked to think. Greedy in both modes, as everything here is.
    Tasks that generate nothing (multiple choice by likelihood) have no modes and are left out.
    """
    found: dict[str, Any] = {}
    advised = {}
    for task, rows in questions.rows.items():
        if metrics.kind(questions.tasks[task]) != "generated":
            continue
        groups = [row.group for row in rows]
        scores: dict[str, list[float]] = {}
        found[task] = {}
        for mode in modes:
            asked = questions.asked(task, mode=mode, room=room)
            say(f"score: {task} in mode {mode}, {len(asked)} prompts")
            made = answerer.answer(asked)
            graded = questions.graded(task, asked, made)
            scores[mode] = graded.scores
            around = interval(graded.scores, [1.0] * len(rows), groups)
            found[task][mode] = {
                "n": len(rows),
                "score": mean(graded.scores),
                "ci95": [around.low, around.high],
                "tokens_mean": mean([answer.tokens for answer in made]),
                "seconds_mean": mean([answer.seconds for answer in made]),
                "cut_off": len(rows) - sum(graded.finished),
                "no_answer": sum(not text for text in graded.answers),
            }
        advised[task] = advise(scores, groups, found[task])
    return {**found, "advised": advised}


def advise(
    scores: dict[str, list[float]], groups: Sequence[str], measured: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Plain, unless the 95 % interval of what thinking gains lies above 0: thoughts cost tokens in every request."""
    if len(scores) < 2:
        return {"mode": next(iter(scores)), "why": "asked in this mode only"}
    gain = paired_difference(scores["think"], scores["plain"], groups)
    low, high = gain.ci95
    more = measured["think"]["tokens_mean"] - measured["plain"]["tokens_mean"]
    told = f"thinking changes the score by {gain.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    told += f" and the length of an answer by {more:+.0f} tokens"
    if low > 0:
        why = f"{told}: the interval lies above 0"
    else:
        why = f"{told}: no gain is shown, so that the mode without thoughts is taken"
    return {
        "mode": "think" if low > 0 else "plain", "why": why, "difference": gain.difference, "ci95": [low, high],
    }  # fmt: skip
