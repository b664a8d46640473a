"""Chat templates: where they stand in a model directory, and the sandbox in which transformers renders them."""

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune.errors import RecipeError


def read_template(directory: Path, settings: Mapping[str, Any]) -> str:
    """The template of a model directory; `settings` is its tokenizer_config.json. RecipeError where there is none."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # [{"name": "default", "template": ...}, ...]
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    if not isinstance(template, str):
        raise RecipeError.one(
            "model.path",
            str(directory),
            "it has no chat template (neither chat_template.jinja nor in its config)",
            "use an instruction-tuned model, or put its chat_template.jinja beside tokenizer.json",
        )
    return template


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text in some training templates; rendering passes it through."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment of transformers' chat_template_utils: templates are foreign code and stay in the sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: dt.datetime.now().strftime(pattern)  # noqa: DTZ005
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """jinja2's own filter escapes HTML characters, which no server does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
