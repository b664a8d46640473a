"""What every system answered to the rows of a task: means, paired differences, details, lines of answers.jsonl."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune import metrics
from finetune.config.data import Task
from finetune.corpus.records import Chat
from finetune.metrics import labels
from finetune.score.answers import Answer
from finetune.score.contamination import contamination
from finetune.score.statistics import holm, interval, mean, paired_difference

SYSTEMS = (
    "base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline", "sft", "tuned", "merged",
)  # fmt: skip
_WHERE_THEY_EXIST = ("sft", "merged")
"""The others always have a key in a task, null where there was nothing to learn from."""
AGAINST = ("base_zero_shot", "base_few_shot", "majority")
"""The headline difference is taken to the best of these; the classic baselines stand beside it with their own."""


@dataclass(frozen=True)
class Scored:
    """One system's answers to the rows of one task, in the order of test.jsonl."""

    answers: list[str]
    scores: list[float]
    prompts_sha256: list[str]
    finished: list[bool]
    """False where a model was cut off at max_new_tokens before it ended its turn."""
    log_probs: list[list[float]] | None = None
    """Of a task that asks how likely each option is: nats of each, summed over its tokens."""


Table = Mapping[tuple[str, str], Scored]
"""(task, system) -> what it answered."""


def grade(answers: Sequence[str], rows: Sequence[Chat], task: Task) -> list[float]:
    return [metrics.score(answer, row, task) for answer, row in zip(answers, rows, strict=True)]


def summarise(
    name: str, rows: Sequence[Chat], scored: Table, task: Task, train: Sequence[Chat]
) -> dict[str, Any]:
    """A task of scores.json, all but `p_adjusted`, which needs the p of all tasks."""
    present = [system for system in SYSTEMS if (name, system) in scored]
    means = {system: mean(scored[name, system].scores) for system in present}
    groups = [row.group for row in rows]
    differences = {
        system: paired_difference(scored[name, "tuned"].scores, scored[name, system].scores, groups)
        for system in present
        if system != "tuned"
    }
    against = max((system for system in AGAINST if system in means), key=lambda system: means[system])
    return {
        "name": name,
        "title": task.title,
        "metric": task.metric,
        "main": task.main,
        "n": len(rows),
        "groups": len(set(groups)),
        **{system: means.get(system) for system in SYSTEMS if system in means or system not in _WHERE_THEY_EXIST},
        "against": against,
        "difference": differences[against].difference,
        "ci95": list(differences[against].ci95),
        "standard_error": differences[against].standard_error,
        "p": differences[against].p,
        "smallest_effect": differences[against].smallest_effect,
        "few_groups": differences[against].few_groups,
        "differences": {
            system: {"difference": found.difference, "ci95": list(found.ci95), "p": found.p}
            for system, found in differences.items()
        },
        "contamination": contamination(rows, train, task),
        "details": {system: details(rows, scored[name, system], task) for system in present},
    }


def alone(
    name: str, rows: Sequence[Chat], scored: Table, task: Task, made: Sequence[Answer]
) -> dict[str, Any]:
    """A task of what `finetune score` writes of one model, called `model`, beside the baselines."""
    own = scored[name, "model"]
    groups = [row.group for row in rows]
    found = interval(own.scores, [1.0] * len(rows), groups)
    return {
        "name": name,
        "title": task.title,
        "metric": task.metric,
        "main": task.main,
        "n": len(rows),
        "groups": found.groups,
        "model": mean(own.scores),
        "ci95": [found.low, found.high],
        "few_groups": found.few,
        **{system: mean(scored[name, system].scores) for system in SYSTEMS if (name, system) in scored},
        "tokens_mean": mean([answer.tokens for answer in made]),
        "seconds_mean": mean([answer.seconds for answer in made]),
        "details": {"model": details(rows, own, task)},
    }


def with_adjusted(tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks with `p_adjusted`: several were asked, and one in twenty is found by chance alone."""
    adjusted = holm([task["p"] for task in tasks])
    return [{**task, "p_adjusted": value} for task, value in zip(tasks, adjusted, strict=True)]


def details(rows: Sequence[Chat], made: Scored, task: Task) -> dict[str, Any]:
    """What the mean hides; `ci95` has the interval of each figure that is a quotient of sums (micro F1, rates)."""
    found = {"cut_off": len(rows) - sum(made.finished), **metrics.details(made.answers, rows, task)}
    groups = [row.group for row in rows]
    known = {
        name: interval([part[0] for part in parts], [part[1] for part in parts], groups)
        for name, parts in metrics.ratios(made.answers, rows, task).items()
        if any(part[1] for part in parts)
    }
    if known:
        found["ci95"] = {name: [one.low, one.high] for name, one in known.items()}
    if made.log_probs is not None:
        found |= labels.both_ways(made.log_probs, rows)
    return found


def lines(task: str, rows: Sequence[Chat], scored: Table) -> Iterator[str]:
    """answers.jsonl: one for each system and row."""
    for system in dict.fromkeys([*SYSTEMS, *(system for _, system in scored)]):
        if (task, system) not in scored:
            continue
        made = scored[task, system]
        for number, row in enumerate(rows):
            line = {
                "task": task,
                "id": row.id,
                "group": row.group,
                "system": system,
                "prompt_sha256": made.prompts_sha256[number],
                "answer": made.answers[number],
                "score": made.scores[number],
                "gold": row.answer,
                "finished": made.finished[number],
                **({"log_probs": made.log_probs[number]} if made.log_probs is not None else {}),
            }
            yield json.dumps(line, ensure_ascii=False) + "\n"
