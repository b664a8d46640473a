"""The comparison as one page that needs nothing else, in the report's style; it holds no script."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune.compare import pictures
from finetune.compare.differences import asked
from finetune.compare.terminal import spell
from finetune.report import figures

_HERE, _REPORT = Path(__file__).parent, Path(figures.__file__).parent
_ROWS = 200
"""Changed answers of one task that stand on the page; --json has all."""


def render(facts: Mapping[str, Any]) -> str:
    """The page. The same facts give the same bytes."""
    folders = [_HERE / "templates", _REPORT / "templates"]
    made = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters.update({name: getattr(figures, name) for name in ("score", "signed", "interval", "count", "seconds")})
    made.filters["gate_value"] = lambda value, name: figures.gate(name, value)
    made.filters.update(svg=Markup, spell=spell, asked=asked)
    heads = [run["label"] for run in facts["runs"]]
    style = (_REPORT / "style.css").read_text(encoding="utf-8")
    return made.get_template("compare.html.jinja").render(
        f=facts,
        heads=heads,
        rows=_ROWS,
        curves={stage: pictures.curves(stage, runs, heads) for stage, runs in facts["curves"].items()},
        differences=pictures.differences(facts["metrics"], heads),
        css=Markup(style + (_HERE / "compare.css").read_text(encoding="utf-8")),  # noqa: S704 (our own files)
    )
