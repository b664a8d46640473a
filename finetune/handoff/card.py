"""README.md of the bundle: a model card with the front matter that the Hugging Face hub reads."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

if TYPE_CHECKING:
    from finetune.handoff import Config

_HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "llama3", "llama3.1", "gemma")
_SYSTEMS = ("base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline", "tuned")


def render(
    settings: "Config", facts: Mapping[str, Any], lineage: Mapping[str, Any], licences: Mapping[str, Sequence[str]]
) -> str:
    """Front matter and text; every number stands in report.json as well. `licences` is what lies in LICENSES/."""
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    ).get_template("card.md.jinja")  # fmt: skip
    return template.render(
        front=yaml.safe_dump(_front(settings, facts), allow_unicode=True, sort_keys=False),
        s=settings, f=facts, lineage=lineage, licences=licences, systems=_SYSTEMS, number=_number, code=_code,
        quantised=dict(sorted(facts.get("export", {}).items())),
    )  # fmt: skip


def _front(settings: "Config", facts: Mapping[str, Any]) -> dict[str, Any]:
    licence = settings.model.licence.lower()
    named = {"license": licence} if licence in _HUB_LICENCES else {
        "license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", licence).strip("-"),
        "license_link": "LICENSES",
    }  # fmt: skip
    return {
        "base_model": settings.model.name,
        "base_model_relation": "finetune",
        **named,
        "language": [settings.language],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*settings.stages, settings.method.name, "peft"],
        "model-index": [
            {
                "name": settings.name,
                "results": [
                    {
                        "task": {"type": "text-generation", "name": task["title"]},
                        "dataset": {"type": task["name"], "name": f"{settings.name}: held-out rows of {task['name']}"},
                        "metrics": [{"type": task["metric"], "value": round(float(task["tuned"]), 4)}],
                    }
                    for task in facts["tasks"]
                ],
            }
        ],
    }


def _number(value: Any) -> str:
    return "-" if value is None else f"{float(value):.3f}"


def _code(code: Mapping[str, Any]) -> str:
    if not code["commit"]:
        return "from no checkout"
    return f"commit `{code['commit'][:12]}`{' with uncommitted changes' if code['dirty'] else ''}"
