"""Tokenizer and chat template as a server reads them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune.errors import Problem
from finetune.shards import Tensor

TEMPLATE = "chat_template.jinja"
_QUESTION = "What was the order?"


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id from tokenizer.json, added tokens included."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    return ids | {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}


def check_tokenizer(
    directory: Path, config: Mapping[str, Any], ids: Mapping[str, int], settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Iterator[Problem]:
    """Readable by transformers 4 and 5, and no id beyond the embedding."""
    where = str(directory / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        yield Problem(f"{where}: tokenizer_class", "TokenizersBackend", "transformers 4 does not know this class",
                      "write PreTrainedTokenizerFast, or Qwen2Tokenizer for Qwen")  # fmt: skip
    if isinstance(settings.get("extra_special_tokens"), list):
        yield Problem(f"{where}: extra_special_tokens", settings["extra_special_tokens"][:3],
                      "transformers 4 fails on a list", "write it as additional_special_tokens")  # fmt: skip
    if settings.get("auto_map"):
        yield Problem(f"{where}: auto_map", settings["auto_map"], "it asks readers to run code of its author",
                      "remove auto_map")  # fmt: skip
    token = settings.get("eos_token")
    eos = token.get("content") if isinstance(token, dict) else token
    if settings and (eos is None or (ids and eos not in ids)):
        yield Problem(f"{where}: eos_token", eos, "not a token of this tokenizer: readers choose one of their own",
                      "name the token that ends an answer")  # fmt: skip
    embedding = tensors.get("model.embed_tokens.weight")
    rows = embedding.shape[0] if embedding else config.get("vocab_size")
    beyond = [name for name, number in ids.items() if isinstance(rows, int) and number >= rows]
    if beyond:
        yield Problem(str(directory / "tokenizer.json"), beyond[:3], f"{len(beyond)} tokens have ids beyond the "
                      f"{rows} rows of the embedding", "use the tokenizer that belongs to these weights")  # fmt: skip


def check_template(
    directory: Path, settings: Mapping[str, Any], ids: Mapping[str, int], problems: list[Problem]
) -> str | None:
    """Render a conversation; returns the token that closes an assistant's turn, when the template has one."""
    file = directory / TEMPLATE
    inside = settings.get("chat_template")
    if not file.is_file() and not isinstance(inside, str):
        problems.append(Problem(
            str(file), None, "there is no chat template, and servers refuse every chat without one",
            "put the template of the base there (chat_template.json is not read)",
        ))  # fmt: skip
        return None
    try:
        source = file.read_text(encoding="utf-8") if file.is_file() else str(inside)
        template = _environment().from_string(source)
        user = {"role": "user", "content": _QUESTION}
        answer = {"role": "assistant", "content": "It was shipped."}
        given = {"tools": None, **_specials(settings)}
        asked = template.render(messages=[user], add_generation_prompt=True, **given)
        plain = template.render(messages=[user], add_generation_prompt=False, **given)
        closed = template.render(messages=[user, answer], add_generation_prompt=False, **given)
    except (jinja2.TemplateError, UnicodeDecodeError, TypeError, ValueError) as error:
        problems.append(Problem(str(file), None, f"the template does not render ({error})", "restore the base's"))
        return None
    if _QUESTION not in asked:
        problems.append(Problem(str(file), None, "the template drops the user's message", "restore the base's"))
    if asked == plain:
        problems.append(Problem(str(file), None, "add_generation_prompt changes nothing, so the model would continue "
                                "the user's turn", "restore the base's"))  # fmt: skip
    tail = closed.rpartition("It was shipped.")[2].strip()
    return tail if tail in ids else None


def _specials(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = settings.get(name)
        if token:
            found[name] = str(token["content"] if isinstance(token, dict) else token)
    return found


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks what is trained and prints its body."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda _format: "01 Jan 2026"
    return environment
