"""What the page and REPORT.md share: the template environment, the order of the systems, the honest notes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from finetune.report import figures
from finetune.report.strings import words
from finetune.report.verdict import CLASSIC

OTHERS = ("base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline")
_FIGURES = ("score", "signed", "interval", "change", "count", "seconds", "small", "perplexity")


def environment() -> Environment:
    """Templates in which every value is escaped (not in Markdown) and a missing name is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(enabled_extensions=(), disabled_extensions=("md.jinja",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update({name: getattr(figures, name) for name in _FIGURES})
    made.filters["gate_value"] = lambda value, name: figures.gate(name, value)
    made.filters["parity_value"] = lambda value, name: figures.parity(name, value)
    made.filters["svg"] = Markup
    made.globals.update(worst_change=worst_change, best_score=best_score, gate_rule=gate_rule)
    return made


def gate_rule(name: str) -> str:
    """Which side of its limit a gate allows, told by its name: `..._max`, `..._min`, else above."""
    return "at_most" if name.endswith("_max") else "at_least" if name.endswith("_min") else "above"


def worst_change(facts: Mapping[str, Any]) -> float:
    """The largest rise of general perplexity over the kinds of text."""
    return max(float(value) for value in facts["general"]["change"].values())


def best_score(task: Mapping[str, Any]) -> float:
    """The highest score that any system reached on a task."""
    return max(float(task[system]) for system in (*OTHERS, "tuned") if task[system] is not None)


def honest_notes(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each task where a classic baseline beats the tuned model or is not shown to be beaten."""
    t = words(facts["language"])
    notes = []
    for task in facts["tasks"]:
        rivals = [name for name in CLASSIC if task[name] is not None]
        if not rivals:
            continue
        best = max(rivals, key=lambda name: float(task[name]))
        if task["differences"][best]["ci95"][0] > 0:
            continue
        spelling = "honest_win" if task[best] > task["tuned"] else "honest_tie"
        notes.append(
            t["gain"][spelling].format(
                task=task["title"], system=t["system"][best], classic=figures.score(task[best]),
                tuned=figures.score(task["tuned"]),
            )
        )
    return notes
