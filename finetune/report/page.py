"""report.html: the facts as one page that needs nothing else: no network, no fonts, no files beside it."""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune.report import figures, plots
from finetune.report.facts import OUTCOMES
from finetune.report.strings import words
from finetune.report.verdict import CLASSIC, main_task, metric_name

HERE = Path(__file__).parent
STAGES = ("cpt", "sft", "dpo")
SAMPLE_FIELDS = (
    "task", "id", "prompt", "gold", "base_zero_shot", "base_few_shot", "tuned",
    "score_base_zero_shot", "score_base_few_shot", "score_tuned", "outcome",
)  # fmt: skip
_PACKED_LIMIT = 3_600_000  # bytes of packed answers; with plots and text the page stays under 5 MB


def render(facts: Mapping[str, Any]) -> str:
    """The page. The same facts give the same bytes."""
    language = facts["language"]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    packed, shown = pack_samples(facts["samples"])
    template = environment().get_template("page.html.jinja")
    return template.render(
        f=facts,
        t=words(language),
        main=main_task(facts["tasks"]),
        metric=lambda name: metric_name(name, language),
        plots={plot.name: plot for plot in _draw(facts)},
        stages=[stage for stage in STAGES if facts["curves"].get(stage)],
        systems=(*plots.OTHERS, "tuned"),
        classic=CLASSIC,
        outcomes=list(OUTCOMES),
        notes=honest_notes(facts),
        titles=[(task["name"], task["title"]) for task in facts["tasks"]],
        total=sum(sum(counts.values()) for counts in facts["outcomes"].values()),
        packed=packed,
        shown=shown,
        config=yaml.safe_dump(facts["config"], allow_unicode=True, sort_keys=False),
        css=Markup((HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704 (our own file)
        script=Markup(script),  # noqa: S704 (our own file)
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def environment() -> Environment:
    """Templates with every value escaped; a name that is missing is an error, never an empty place."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )
    for name in ("score", "signed", "interval", "percent", "change", "count", "seconds", "small", "perplexity"):
        made.filters[name] = getattr(figures, name)
    made.filters["gate_value"] = lambda value, name: figures.gate(name, value)
    made.filters["svg"] = Markup
    made.globals["worst_change"] = worst_change
    made.globals["best_score"] = best_score
    return made


def pack_samples(samples: Sequence[Mapping[str, Any]], limit: int = _PACKED_LIMIT) -> tuple[str, int]:
    """(rows as base64 of deflated JSON, number of rows in it): as many rows from the front as fit into `limit`.

    10,000 rows of plain JSON are larger than a page may be; deflated they are a fifth. Every browser since 2023
    inflates them itself.
    """
    rows = [[row.get(field) for field in SAMPLE_FIELDS] for row in samples]
    while True:
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
        packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
        if len(packed) <= limit:
            return packed, len(rows)
        rows = rows[: min(len(rows) - 1, int(0.97 * len(rows) * limit / len(packed)))]


def worst_change(facts: Mapping[str, Any]) -> float:
    """The largest rise of general perplexity over the kinds of text."""
    return max(float(value) for value in facts["general"]["change"].values())


def best_score(task: Mapping[str, Any]) -> float:
    """The highest score that any system reached on a task."""
    return max(float(task[system]) for system in (*plots.OTHERS, "tuned") if task.get(system) is not None)


def honest_notes(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each task where a classic baseline beats the tuned model or is not shown to be beaten."""
    t = words(facts["language"])
    notes = []
    for task in facts["tasks"]:
        rivals = [name for name in CLASSIC if task.get(name) is not None]
        if not rivals:
            continue
        best = max(rivals, key=lambda name: float(task[name]))
        if task["differences"][best]["ci95"][0] > 0:
            continue
        spelling = "honest_win" if task[best] > task["tuned"] else "honest_tie"
        notes.append(t["gain"][spelling].format(
            task=task["title"], system=t["system"][best], classic=figures.score(task[best]),
            tuned=figures.score(task["tuned"]),
        ))  # fmt: skip
    return notes


def perplexity_limit(facts: Mapping[str, Any]) -> float | None:
    """The limit of the gate on general perplexity, None when it is not asked for."""
    return next((gate["limit"] for gate in facts["gates"] if gate["name"] == "perplexity_rise_max"), None)


def _draw(facts: Mapping[str, Any]) -> list[plots.Plot]:
    drawn = [plots.forest(facts), plots.scores(facts)]
    drawn += [plots.curve(facts, stage) for stage in STAGES if facts["curves"].get(stage)]
    if facts["general"]["change"]:
        drawn.append(plots.general(facts, perplexity_limit(facts)))
    if facts["ledger"]:
        drawn.append(plots.flow(facts))
    if facts["timings"]:
        drawn.append(plots.timings(facts))
    return drawn
