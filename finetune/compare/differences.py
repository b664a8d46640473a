"""What differs between runs, as plain facts: terminal, page and --json show the same ones (docs/comparing.md)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.compare.reading import GATE, Answer, Run
from finetune.corpus.redact import RECOGNISERS, redact_texts
from finetune.report import figures
from finetune.report.samples import shown_id
from finetune.score.statistics import paired_difference

SCHEMA_VERSION = "1"
_STRICT = ("none", "redacted", "full")
_EVEN = 1e-9


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Facts about two or more runs; lists of values stand in the order of the runs, None: not known.

    Every other run is compared with the first: a difference is theirs minus the first one's.
    """
    assert len(runs) > 1, "one run is no comparison"
    metrics = _metrics(runs)
    privacy = min((str(run.config.get("privacy.samples", "none")) for run in runs), key=_STRICT.index)
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {"label": label, "name": name, "recipe": run.config.get("name"), "model": run.config.get("model.name")}
            for label, name, run in zip(labels(len(runs)), names([run.name for run in runs]), runs, strict=True)
        ],
        "config": _config(runs),
        "data": _data(runs),
        "curves": {
            stage: [run.curves.get(stage, []) for run in runs]
            for stage in dict.fromkeys(stage for run in runs for stage in run.curves)
        },
        "metrics": metrics,
        "findings": _findings(metrics, labels(len(runs))),
        "privacy": privacy,
        "answers": [entry for number in range(1, len(runs)) for entry in _changed(runs, number, privacy)],
        "cost": _cost(runs),
        "gates": _gates(runs),
    }


def names(typed: Sequence[str]) -> list[str]:
    """The last part of each path, with the run's letter where two are alike: a page is passed on, folders are not."""
    parts = [Path(name).resolve().name or "run" for name in typed]
    return [
        part if parts.count(part) == 1 else f"{part} ({label})"
        for label, part in zip(labels(len(parts)), parts, strict=True)
    ]


def labels(count: int) -> list[str]:
    """A, B, ... Z, AA, AB, ...: runs are called by a letter where their names do not fit."""
    letters = [chr(65 + number) for number in range(26)]
    return [*letters, *(first + second for first in letters for second in letters)][:count]


def _findings(metrics: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[str]:
    """A sentence for each other run on the main task."""
    main = next((task for task in metrics if task["main"]), None)
    if main is None:
        return []
    said = []
    for pair in main["pairs"]:
        other, name = heads[pair["run"]], f"{heads[0]} on {main['title']}"
        if pair["refused"]:
            said.append(f"{other} cannot be held against {name}: {pair['refused']}.")
            continue
        low, high = pair["ci95"]
        found = "scores higher than" if low > 0 else "scores lower than" if high < 0 else "is not told apart from"
        said.append(
            f"{other} {found} {name}: {figures.signed(pair['difference'])} {figures.interval(pair['ci95'])} on "
            f"{figures.count(pair['shared'])} shared rows{' in few groups' if pair['few_groups'] else ''}{asked(pair)}."
        )
    return said


def title(runs: Sequence[Run], task: str) -> str:
    """What the recipe of the first run that knows it calls a task; its key where none says."""
    return next((str(told) for run in runs if (told := run.config.get(f"tasks.{task}.title"))), task)


def _config(runs: Sequence[Run]) -> dict[str, Any]:
    """Keys that differ. A section that a run does not know (it has no bundle) is not compared, and named."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    sections = [{key.partition(".")[0] for key in run.config} for run in runs]
    shared = set.intersection(*sections)
    compared = [key for key in keys if key.partition(".")[0] in shared]
    values = {key: [run.config.get(key) for run in runs] for key in compared}
    return {
        "differs": {key: found for key, found in values.items() if not _alike(found)},
        "same": sum(_alike(found) for found in values.values()),
        "not_compared": sorted(set.union(*sections) - shared),
    }


def _data(runs: Sequence[Run]) -> dict[str, Any]:
    digests = {
        name: [run.digests.get(name) for run in runs] for name in ("documents", "base", "prepared")
    }
    counts = dict.fromkeys(name for run in runs for name in run.data)
    values = {name: [run.data.get(name) for run in runs] for name in counts}
    return {
        "digests": digests,
        "splits": {name: found for name, found in values.items() if name.startswith("rows/")},
        "counts": {
            name: found for name, found in values.items() if not _alike(found) and not name.startswith("rows/")
        },
    }


def _metrics(runs: Sequence[Run]) -> list[dict[str, Any]]:
    tasks = dict.fromkeys(name for run in runs for name in run.tasks)
    return [
        {
            "name": name,
            "title": title(runs, name),
            "metric": [run.tasks.get(name, {}).get("metric") for run in runs],
            "main": any(run.tasks.get(name, {}).get("main") for run in runs),
            "n": [run.tasks.get(name, {}).get("n") for run in runs],
            "base": [_base(run.tasks.get(name, {})) for run in runs],
            "tuned": [run.tasks.get(name, {}).get("tuned") for run in runs],
            "pairs": [_pair(name, runs, number) for number in range(1, len(runs))],
        }
        for name in tasks
    ]


def _pair(task: str, runs: Sequence[Run], number: int) -> dict[str, Any]:
    """The other run minus the first on the rows that both were asked, with its interval, or why there is none."""
    first, other = runs[0], runs[number]
    mine, theirs = first.answers.get(task, {}), other.answers.get(task, {})
    shared = [row for row in mine if row in theirs]
    alike = [row for row in shared if mine[row].gold_mark == theirs[row].gold_mark]
    prompts = [(mine[row].prompt_mark, theirs[row].prompt_mark) for row in alike]
    found: dict[str, Any] = {
        "run": number,
        "shared": len(alike),
        "only_first": len(mine) - len(shared),
        "only_other": len(theirs) - len(shared),
        "different_gold": len(shared) - len(alike),
        "different_prompt": None if any(None in pair for pair in prompts) else sum(one != two for one, two in prompts),
        **dict.fromkeys(("difference", "ci95", "p", "smallest_effect", "groups", "few_groups")),
        "refused": _refusal(task, first, other, len(alike), len(shared) - len(alike)),
    }
    if found["refused"] is None:
        difference = paired_difference(
            [theirs[row].score for row in alike], [mine[row].score for row in alike],
            [mine[row].group for row in alike],
        )  # fmt: skip
        found |= {
            "difference": difference.difference, "ci95": list(difference.ci95), "p": difference.p,
            "smallest_effect": difference.smallest_effect, "groups": difference.groups,
            "few_groups": difference.few_groups,
        }
    return found


def asked(pair: Mapping[str, Any]) -> str:
    """How many of a pair's shared rows were asked with another prompt (template, text), to be put after them."""
    if pair["different_prompt"] is None:
        return ", their prompts not known of both runs"
    return f", {figures.count(pair['different_prompt'])} asked with another prompt" if pair["different_prompt"] else ""


def _refusal(task: str, first: Run, other: Run, alike: int, different_gold: int) -> str | None:
    if task not in first.tasks or task not in other.tasks:
        return "one of the two runs does not have this task"
    if first.tasks[task].get("metric") != other.tasks[task].get("metric"):
        return "the two runs measured it by different metrics"
    if not first.answers.get(task) or not other.answers.get(task):
        return "one of the two runs keeps no answers to its rows"
    if different_gold:
        return f"{different_gold} rows of the same id have different gold answers"
    if not alike:
        return "the two runs share no row"
    return None


def _changed(runs: Sequence[Run], number: int, privacy: str) -> list[dict[str, Any]]:
    """Shared rows that the other run answers differently, as the stricter `privacy.samples` of all runs shows them."""
    first, other = runs[0], runs[number]
    found = []
    for task in first.answers:
        mine, theirs = first.answers[task], other.answers.get(task, {})
        shared = [row for row in mine if row in theirs and mine[row].gold_mark == theirs[row].gold_mark]
        places = {row: place for place, row in enumerate(mine, 1)}
        rows = [row for row in shared if mine[row].text_mark != theirs[row].text_mark]
        if not shared:
            continue
        moved = dict.fromkeys(("gained", "lost", "even"), 0)
        for row in rows:
            moved[_moved(mine[row].score, theirs[row].score)] += 1
        shown = [] if privacy == "none" else [_row(task, places[row], mine[row], theirs[row], privacy) for row in rows]
        told = {"run": number, "task": task, "title": title(runs, task), "shared": len(shared), "changed": len(rows)}
        found.append({**told, **moved, "rows": shown})
    return found


def _moved(before: float, after: float) -> str:
    return "even" if abs(after - before) <= _EVEN else "gained" if after > before else "lost"


def _row(task: str, place: int, mine: Answer, theirs: Answer, privacy: str) -> dict[str, Any]:
    texts = [mine.gold, mine.text, theirs.text]
    if privacy == "redacted":
        texts, _ = redact_texts(texts, sorted({recogniser.kind for recogniser in RECOGNISERS}))
    return {
        "id": shown_id(mine.id, privacy, [task]), "number": place, "moved": _moved(mine.score, theirs.score),
        "gold": texts[0], "first": texts[1], "other": texts[2], "scores": [mine.score, theirs.score],
    }


def _cost(runs: Sequence[Run]) -> dict[str, Any]:
    """Seconds of each stage and in all, tokens trained on, and money where the machine states a price."""
    stages = dict.fromkeys(stage for run in runs for stage in run.seconds)
    totals = [sum(run.seconds.values()) if run.seconds else None for run in runs]
    prices = [run.config.get("machine.usd_per_gpu_hour") for run in runs]
    processes = [run.config.get("machine.processes", 1) for run in runs]
    return {
        "seconds": {stage: [run.seconds.get(stage) for run in runs] for stage in stages},
        "seconds_total": totals,
        "supervised_tokens": {
            stage: [run.supervised_tokens.get(stage) for run in runs]
            for stage in dict.fromkeys(stage for run in runs for stage in run.supervised_tokens)
        },
        "usd_total": [
            None if price is None or total is None else total / 3600 * price * count
            for price, total, count in zip(prices, totals, processes, strict=True)
        ],
    }


def _gates(runs: Sequence[Run]) -> dict[str, list[dict[str, Any] | None]]:
    names = dict.fromkeys(name for run in runs for name in run.gates)
    return {
        name: [{key: run.gates[name].get(key) for key in GATE} if name in run.gates else None for run in runs]
        for name in names
    }


def _base(task: Mapping[str, Any]) -> float | None:
    """The better of the base model's two scores."""
    known = [float(task[name]) for name in ("base_zero_shot", "base_few_shot") if task.get(name) is not None]
    return max(known, default=None)


def _alike(values: Sequence[Any]) -> bool:
    return len({json.dumps(value, sort_keys=True) for value in values}) == 1
