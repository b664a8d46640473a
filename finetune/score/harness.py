"""Tasks of lm-evaluation-harness by name: its rows, prompts and metrics, asked of the base and of the tuned model.

lm-eval (extra `harness`) brings the tasks and no data: Hugging Face's cache or hub does, as HF_DATASETS_CACHE and
HF_HUB_OFFLINE say. Tasks that run what a model writes are refused by lm-eval itself.
"""

import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from finetune.artifacts import canonical_json
from finetune.config.evaluation import Harness
from finetune.provenance import version_of
from finetune.score.answers import Book, Say
from finetune.score.statistics import mean, paired_difference

_ROWS_PER_BATCH = 4
"""lm-eval holds the logits of every position of a batch."""
Rows = list[dict[str, Any]]
"""{task, version, shots, metric, better, row, row_sha256, value, whole} for each row, metric and filter of a task;
whole: lm-eval's figure over all rows."""


@functools.cache
def task_manager() -> Any:
    """lm-eval's index of its 14,000 task files, read once (5 s)."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def find_problems(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """(name, rule, fix) of every task that cannot be asked."""
    from datasets.exceptions import DatasetsError

    manager, found = task_manager(), []
    for name in names:
        if name not in manager.task_index:
            found.append((name, "lm-eval has no task, group or tag of this name", "lm_eval ls tasks lists them"))
            continue
        try:
            manager.load([name])
        # What datasets, huggingface_hub (its errors are OSErrors) and lm-eval's task files raise where data or a
        # package of the task is missing. Anything else is a fault and ends this process with its traceback.
        except (OSError, ImportError, LookupError, ValueError, RuntimeError, DatasetsError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            fix = "load it once where there is a network, or name other tasks"
            found.append((name, f"its data is not at hand: {why}", fix))
    return found


def ask(
    system: str, settings: Harness, loaded: Callable[[], AbstractContextManager[Any]], folder: Path, book: Book,
    say: Say,
) -> Rows:  # fmt: skip
    """Every row's value of every metric. folder: the tokenizer's. Kept in `book`, asked once for the same model."""
    about = canonical_json([settings.model_dump(mode="json"), version_of("lm_eval")])

    def measure() -> Rows:
        say(f"score: {system}: tasks of lm-eval: {', '.join(settings.tasks)}")
        with loaded() as model:
            return _evaluate(settings, model, folder)

    rows: Rows = book.remember(f"harness {about}", measure)
    return rows


def _evaluate(settings: Harness, model: Any, folder: Path) -> Rows:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    wrapped = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=_ROWS_PER_BATCH, enable_thinking=False
    )
    with contextlib.redirect_stdout(sys.stderr):
        made = simple_evaluate(
            wrapped, tasks=list(settings.tasks), num_fewshot=settings.shots, limit=settings.limit, bootstrap_iters=0,
            apply_chat_template=settings.chat_template, log_samples=True, task_manager=task_manager(),
        )  # fmt: skip
    assert made is not None, "this is the only process"
    rows: Rows = []
    for task, samples in sorted(made["samples"].items()):
        for sample in sorted(samples, key=lambda sample: (sample["doc_id"], sample["filter"])):
            for metric in sorted(sample["metrics"]):
                value = sample[metric]
                if not isinstance(value, int | float):
                    value = None  # what a corpus metric collects of a row (BLEU, perplexities) is no score of that row
                rows.append(
                    {
                        "task": task,
                        "version": str(made["versions"][task]),
                        "shots": made["n-shot"][task],
                        "metric": metric if sample["filter"] == "none" else f"{metric}, {sample['filter']}",
                        "better": "higher" if made["higher_is_better"][task][metric] else "lower",
                        "row": sample["doc_id"],
                        "row_sha256": sample["doc_hash"],
                        "value": None if value is None else float(value),
                        "whole": made["results"][task][f"{metric},{sample['filter']}"],
                    }
                )
    return rows


def compare(base: Rows, tuned: Rows) -> list[dict[str, Any]]:
    """A line for each task and metric: {task, version, shots, metric, better, n, base, tuned, difference, ci95}.

    The interval is paired, each row a group of its own; null where the metric is not the mean of its rows' values.
    """
    found = []
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in base):
        first, second = (
            [row for row in rows if (row["task"], row["metric"]) == (task, metric)] for rows in (base, tuned)
        )
        assert [row["row_sha256"] for row in first] == [row["row_sha256"] for row in second], "the same rows were asked"
        line = {key: first[0][key] for key in ("task", "version", "shots", "metric", "better")}
        line |= {"n": len(first), "base": first[0]["whole"], "tuned": second[0]["whole"]}
        line |= {"difference": line["tuned"] - line["base"], "ci95": None, "few_groups": False}
        if all(_is_mean(rows) for rows in (first, second)):
            names = [str(row["row"]) for row in first]
            paired = paired_difference([row["value"] for row in second], [row["value"] for row in first], names)
            line |= {"ci95": list(paired.ci95), "few_groups": paired.few_groups}
        found.append(line)
    return found


def _is_mean(rows: Rows) -> bool:
    values = [row["value"] for row in rows]
    return None not in values and math.isclose(mean(values), rows[0]["whole"], abs_tol=1e-9)


def lines(base: Rows, tuned: Rows) -> list[str]:
    """harness.jsonl: each row's values, base and tuned side by side; what the row says stays in its data set."""
    keys = ("task", "metric", "row", "row_sha256")
    pairs = zip(base, tuned, strict=True)
    return [json.dumps({**{key: a[key] for key in keys}, "base": a["value"], "tuned": b["value"]}) for a, b in pairs]


if __name__ == "__main__":
    print(json.dumps(find_problems(sys.argv[1:])))
