"""Tokenizer and chat template as a server reads them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError
from finetune.findings import Finding, finding
from finetune.shards import Tensor

TEMPLATE = "chat_template.jinja"
_QUESTION, _ANSWER = "What was the order?", "It was shipped."


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id from tokenizer.json, added tokens included."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(vocabulary, list):  # Unigram: [[token, score], ...]
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    return ids | {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}


def check_tokenizer(
    directory: Path, config: Mapping[str, Any], ids: Mapping[str, int], settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Iterator[Finding]:
    """Readable by transformers 4 and 5, and no id beyond the embedding."""
    where = str(directory / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        yield finding("tokenizer-class", f"{where}: tokenizer_class", "TokenizersBackend",
                      "transformers 4 does not know this class",
                      "write PreTrainedTokenizerFast, or Qwen2Tokenizer for Qwen")  # fmt: skip
    if isinstance(settings.get("extra_special_tokens"), list):
        yield finding("extra-special-tokens", f"{where}: extra_special_tokens", settings["extra_special_tokens"][:3],
                      "transformers 4 fails on a list", "write it as additional_special_tokens")  # fmt: skip
    if settings.get("auto_map"):
        yield finding("auto-map", f"{where}: auto_map", settings["auto_map"],
                      "it asks readers to run code of its author", "remove auto_map")  # fmt: skip
    token = settings.get("eos_token")
    eos = token.get("content") if isinstance(token, dict) else token
    if settings and (eos is None or (ids and eos not in ids)):
        yield finding("eos-token", f"{where}: eos_token", eos,
                      "not a token of this tokenizer: readers choose one of their own",
                      "name the token that ends an answer")  # fmt: skip
    embedding = tensors.get("model.embed_tokens.weight")
    rows = embedding.shape[0] if embedding and embedding.shape else config.get("vocab_size")
    beyond = [name for name, number in ids.items() if isinstance(rows, int) and number >= rows]
    if beyond:
        yield finding("ids-beyond-embedding", directory / "tokenizer.json", beyond[:3],
                      f"{len(beyond)} tokens have ids beyond the {rows} rows of the embedding",
                      "use the tokenizer that belongs to these weights")  # fmt: skip


def check_template(
    directory: Path, settings: Mapping[str, Any], ids: Mapping[str, int], findings: list[Finding], notes: list[str]
) -> str | None:
    """Render a conversation; returns the token that closes an assistant's turn, when the template has one."""
    file = directory / TEMPLATE
    if not file.is_file() and not settings.get("chat_template"):
        findings.append(finding(
            "no-template", file, None, "there is no chat template, and servers refuse every chat without one",
            "put the template of the base there (chat_template.json is not read)",
        ))  # fmt: skip
        return None
    try:
        import jinja2

        from finetune.template import environment, read_template
    except ImportError:
        notes.append("not checked: whether the chat template renders (needs the package jinja2)")
        return None
    user, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    given = {"tools": None, **_specials(settings)}
    try:
        template = environment().from_string(read_template(directory, settings))
        asked = template.render(messages=[user], add_generation_prompt=True, **given)
        plain = template.render(messages=[user], add_generation_prompt=False, **given)
        closed = template.render(messages=[user, answer], add_generation_prompt=False, **given)
    except (
        jinja2.TemplateError, RecipeError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        findings.append(finding("template-broken", file, None, f"the template does not render ({error})",
                                "restore the base's"))  # fmt: skip
        return None
    if _QUESTION not in asked:
        findings.append(finding("template-drops", file, None, "the template drops the user's message",
                                "restore the base's"))  # fmt: skip
    if asked == plain:
        findings.append(finding("template-no-prompt", file, None, "add_generation_prompt changes nothing, so the model "
                                "would continue the user's turn", "restore the base's"))  # fmt: skip
    tail = closed.rpartition(_ANSWER)[2].strip()
    return tail if tail in ids else None


def _specials(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = settings.get(name)
        if token:
            found[name] = str(token["content"] if isinstance(token, dict) else token)
    return found
