"""What `finetune score` prints: rich tables, at a fixed width and without colours where nobody looks at a terminal."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_WIDTH = 120


def show(result: Mapping[str, Any]) -> None:
    """A row for each task: the score with its interval, the majority answer beside it, length and time of an answer."""
    table = Table(box=SIMPLE_HEAD, title=f"{result['model']['name']} on {result['recipe']}", title_justify="left")
    table.add_column("task", overflow="fold")
    table.add_column("metric")
    for name in ("n", "score", "95 %", "majority", "nearest row", "tokens", "cut off", "s/answer"):
        table.add_column(name, justify="right")
    for task in result["tasks"]:
        low, high = task["ci95"]
        few = "*" if task["few_groups"] else ""
        table.add_row(
            task["title"], task["metric"], str(task["n"]), f"{task['model']:.3f}", f"{low:.3f}-{high:.3f}{few}",
            _number(task.get("majority")), _number(task.get("nearest_baseline")), f"{task['tokens_mean']:.1f}",
            str(task["details"]["model"]["cut_off"]), f"{task['seconds_mean']:.2f}",
        )  # fmt: skip
    if any(task["few_groups"] for task in result["tasks"]):
        table.caption = "* few groups of rows: the interval may be too narrow"
    console = _console()
    console.print(table)
    asked = result["asked_through"]
    if differ := asked.get("prompt_tokens", {}).get("differ"):
        console.print(
            f"{differ} prompts were not ours token for token (another chat template or tokenizer): scores of models"
            " that read other prompts are not compared row by row", style="bold",
        )  # fmt: skip


def show_latency(measured: Mapping[str, Any]) -> None:
    title = f"{measured['requests']} requests, {measured['concurrency']} at a time, {measured['machine']}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("seconds")
    table.add_column("p50", justify="right")
    table.add_column("p95", justify="right")
    for key, name in (("ttft_s", "first token"), ("token_s", "each further token"), ("answer_s", "whole answer")):
        found = measured[key] or {"p50": None, "p95": None}
        table.add_row(name, _number(found["p50"]), _number(found["p95"]))
    _console().print(table)


def _console() -> Console:
    out = sys.stdout
    return Console(file=out, width=None if out.isatty() else _WIDTH, markup=False, highlight=False, emoji=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
