"""The comparison for a terminal: rich tables, every text of a document spelt out so that it cannot steer anything."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.compare.differences import asked
from finetune.report import figures
from finetune.show import visible

_DIGEST = re.compile(r"[0-9a-f]{64}")
_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 40
_ROWS = 3
"""Changed answers of each task that are printed; the page and --json have all of them."""
_WIDTH = 120
_KEY = 36
_STATUS = {"pass": "green", "fail": "bold red", "not_measured": "yellow"}
_MOVED = {"gained": "green", "lost": "red", "even": ""}


def show(facts: Mapping[str, Any], out: TextIO) -> None:
    """Print the facts; where `out` is no terminal, without colours and at a fixed width."""
    width = None if out.isatty() or os.environ.get("COLUMNS") else _WIDTH
    console = Console(file=out, width=width, markup=False, highlight=False, emoji=False)
    heads = [run["label"] for run in facts["runs"]]
    for run in facts["runs"]:
        console.print(Text.assemble((run["label"], "bold"), "  ", visible(run["name"]), "  ",
                                    (visible(f"{run['recipe']}, {run['model']}"), "dim")))  # fmt: skip
    for finding in facts["findings"]:
        console.print(f"\n{visible(finding)}", style="bold")
    _config(console, facts["config"], heads)
    _data(console, facts["data"], heads)
    _curves(console, facts["curves"], heads)
    _metrics(console, facts["metrics"], heads)
    _answers(console, facts, heads)
    _gates(console, facts["gates"], heads)
    _cost(console, facts["cost"], heads)


def _config(console: Console, config: Mapping[str, Any], heads: Sequence[str]) -> None:
    table = _table(f"What differs in the recipe ({figures.count(config['same'])} keys are alike)", "key", heads)
    table.columns[0].min_width = min(_KEY, max(map(len, config["differs"]), default=0))
    for key, values in config["differs"].items():
        table.add_row(visible(key), *(visible(spell(value)) for value in values))
    _print(console, table, "No key differs.")
    if config["not_compared"]:
        console.print(f"  not known of every run, so not compared: {', '.join(config['not_compared'])}", style="dim")


def _data(console: Console, data: Mapping[str, Any], heads: Sequence[str]) -> None:
    table = _table("Data", "", heads)
    for name, digests in data["digests"].items():
        table.add_row(name, *(spell(value) for value in digests))
    for name, rows in {**data["splits"], **data["counts"]}.items():
        table.add_row(visible(name.replace("/", ", ")), *(spell(value) for value in rows))
    _print(console, table, "")


def _curves(console: Console, curves: Mapping[str, Any], heads: Sequence[str]) -> None:
    table = Table("stage", "run", "training loss", "first", "last", "held-out", box=SIMPLE_HEAD, title="Loss")
    for stage, runs in curves.items():
        losses = [[row["loss"] for row in rows if "loss" in row] for rows in runs]
        known = [value for values in losses for value in values]
        for head, rows, values in zip(heads, runs, losses, strict=True):
            if not rows:
                continue
            held_out = [row["eval_loss"] for row in rows if "eval_loss" in row]
            ends = [figures.score(value) for value in (values[0], values[-1])] if values else [figures.MISSING] * 2
            line = spark(values, min(known), max(known)) if values else ""
            table.add_row(stage, head, line, *ends, figures.score(held_out[-1] if held_out else None))
    _print(console, table, "")


def spark(values: Sequence[float], low: float, high: float) -> str:
    """At most _POINTS bars for a series, on a scale that it shares with others."""
    step = max(1, -(-len(values) // _POINTS))
    means = [sum(part) / len(part) for part in (values[at : at + step] for at in range(0, len(values), step))]
    span = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] for value in means)


def _metrics(console: Console, metrics: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> None:
    table = _table(f"Scores of the tuned model (base model in brackets), the others minus {heads[0]}", "task", heads)
    for task in metrics:
        known = [*([task["name"]] if task["name"] != task["title"] else []), *(["main"] if task["main"] else [])]
        name = task["title"] + (f" ({', '.join(known)})" if known else "")
        scores = [
            f"{figures.score(tuned)} ({figures.score(base)})"
            for tuned, base in zip(task["tuned"], task["base"], strict=True)
        ]
        table.add_row(visible(name), *scores)
        for pair in task["pairs"]:
            table.add_row(Text(f"  {heads[pair['run']]} − {heads[0]}", "dim"), *[""] * pair["run"], _pair(pair))
    _print(console, table, "")


def _pair(pair: Mapping[str, Any]) -> Text:
    if pair["refused"]:
        return Text(f"not paired: {pair['refused']}", "yellow")
    low, high = pair["ci95"]
    style = "green" if low > 0 else "red" if high < 0 else ""
    rows = f"{figures.count(pair['shared'])} shared rows" + (", few groups" if pair["few_groups"] else "") + asked(pair)
    return Text.assemble(
        (f"{figures.signed(pair['difference'])} {figures.interval(pair['ci95'])}", style), "\n", (rows, "dim")
    )


def _answers(console: Console, facts: Mapping[str, Any], heads: Sequence[str]) -> None:
    for entry in facts["answers"]:
        other = heads[entry["run"]]
        console.print(Text.assemble(
            (f"\nAnswers of {visible(entry['title'])} that {other} gives otherwise than {heads[0]}: ", "bold"),
            f"{entry['changed']} of {entry['shared']} ({entry['gained']} gained, {entry['lost']} lost, "
            f"{entry['even']} score alike)",
        ))  # fmt: skip
        chosen = sorted(entry["rows"], key=lambda row: row["moved"] == "even")[:_ROWS]
        for row in chosen:
            place = f"  row {figures.count(row['number'])}  "
            console.print(Text.assemble(place, (row["moved"], _MOVED[row["moved"]])))
            for head, text in (("gold", row["gold"]), (heads[0], row["first"]), (other, row["other"])):
                line = Text(f"    {head:<5} {visible(' '.join(text.split()))}")
                console.print(line, overflow="ellipsis", no_wrap=True)
    if facts["privacy"] == "none":
        console.print("  privacy.samples is none in one of the runs: no texts", style="dim")


def _gates(console: Console, gates: Mapping[str, Any], heads: Sequence[str]) -> None:
    table = _table("Gates", "gate", heads)
    for name, judged in gates.items():
        table.add_row(name, *(_gate(name, gate) for gate in judged))
    _print(console, table, "")


def _gate(name: str, gate: Mapping[str, Any] | None) -> Text:
    if gate is None:
        return Text(figures.MISSING)
    numbers = f"{figures.gate(name, gate['value'])} (limit {figures.gate(name, gate['limit'])})"
    return Text.assemble((gate["status"].replace("_", " "), _STATUS[gate["status"]]), "  ", numbers)


def _cost(console: Console, cost: Mapping[str, Any], heads: Sequence[str]) -> None:
    table = _table("Cost, in seconds of each stage", "", heads)
    for stage, spent in cost["seconds"].items():
        table.add_row(stage, *(figures.seconds(value) for value in spent))
    table.add_section()
    table.add_row("all stages", *(figures.seconds(value) for value in cost["seconds_total"]))
    for stage, tokens in cost["supervised_tokens"].items():
        table.add_row(f"tokens with a loss, {stage}", *(spell(value) for value in tokens))
    if any(value is not None for value in cost["usd_total"]):
        table.add_row("US$", *(figures.MISSING if v is None else f"{v:.2f}" for v in cost["usd_total"]))
    _print(console, table, "")


def _table(title: str, first: str, heads: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title)
    table.add_column(first, overflow="fold")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _print(console: Console, table: Table, empty: str) -> None:
    if table.row_count:
        title, table.title = table.title, None  # a table would wrap it at its own width
        console.print(f"\n{title}", style="bold")
        console.print(table)
    elif empty:
        console.print(f"\n{empty}")


def spell(value: Any) -> str:
    """A value of a recipe or a count, as it is read: numbers with commas, a digest by its first 12 digits."""
    if value is None:
        return figures.MISSING
    if isinstance(value, str):
        return value[:12] if _DIGEST.fullmatch(value) else value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return json.dumps(value, ensure_ascii=False)
