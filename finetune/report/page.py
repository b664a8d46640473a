"""report.html: the facts as one page that needs nothing else: no network, no fonts, no files beside it."""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from finetune.report import heat, plots
from finetune.report.layout import TRAINING, environment
from finetune.report.verdict import CLASSIC, main_task

HERE = Path(__file__).parent
SAMPLE_FIELDS = (
    "task", "id", "prompt", "gold", "base_zero_shot", "base_few_shot", "tuned",
    "score_base_zero_shot", "score_base_few_shot", "score_tuned", "outcome",
)  # fmt: skip
_PACKED_LIMIT = 8_000_000  # bytes of packed answers; with plots and text the page stays under 9 MB, a mail can carry it


def render(facts: Mapping[str, Any]) -> str:
    """The page. The same facts give the same bytes."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    packed, shown = pack_samples(facts["samples"])
    template = environment(facts).get_template("page.html.jinja")
    return template.render(
        main=main_task(facts["tasks"]),
        plots={plot.name: plot for plot in _draw(facts)},
        classic=CLASSIC,
        titles=[(task["name"], task["title"]) for task in facts["tasks"]],
        total=sum(sum(counts.values()) for counts in facts["outcomes"].values()),
        packed=packed,
        shown=shown,
        config=yaml.safe_dump(facts["config"], allow_unicode=True, sort_keys=False),
        css=Markup((HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704 (our own file)
        script=Markup(script),  # noqa: S704 (our own file)
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def pack_samples(shown: Sequence[Mapping[str, Any]], limit: int = _PACKED_LIMIT) -> tuple[str, int]:
    """(rows as base64 of deflated JSON, number of rows in it): as many rows from the front as fit into `limit`.

    10,000 rows of plain JSON are larger than a page may be; deflated they are a fifth. Every browser since 2023
    inflates them itself.
    """
    rows = [[row.get(field) for field in SAMPLE_FIELDS] for row in shown]
    while True:
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
        packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
        if len(packed) <= limit:
            return packed, len(rows)
        rows = rows[: min(len(rows) - 1, int(0.97 * len(rows) * limit / len(packed)))]


def perplexity_limit(facts: Mapping[str, Any]) -> float | None:
    """The limit of the gate on general perplexity, None when it is not asked for."""
    return next((gate["limit"] for gate in facts["gates"] if gate["name"] == "perplexity_rise_max"), None)


def _draw(facts: Mapping[str, Any]) -> list[plots.Plot]:
    drawn = [plots.forest(facts), plots.scores(facts)]
    drawn += [plots.curve(facts, stage) for stage in TRAINING if facts["curves"].get(stage)]
    drawn += heat.maps(facts)
    if facts["general"]["change"]:
        drawn.append(plots.general(facts, perplexity_limit(facts)))
    if facts["ledger"]:
        drawn.append(plots.flow(facts))
    if facts["timings"]:
        drawn.append(plots.timings(facts))
    return drawn
