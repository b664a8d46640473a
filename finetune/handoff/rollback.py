"""ROLLBACK.md: what is different from the bundle before, and how to go back to it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.handoff.lineage import bundle_id

_MOST_KEYS = 60


def render(bundle: Path, previous: Path | None) -> str:
    """The text for `bundle`, whose report.json, config.yaml and lineage.json are written; `previous` is the bundle that
    was the newest of this recipe when this one was made, or None."""
    now = _Bundle(bundle)
    if previous is None:
        lines = [
            f"# Rollback: {now.name}", "",
            f"This is bundle `{now.id}`, the first bundle of the recipe `{now.name}` in its work folder: there is none",
            "to go back to. If it has to be withdrawn, serve the base model, or nothing:", "",
            f"- base: `{now.base}`", "- keep this bundle: the next one is compared with it.", "",
        ]  # fmt: skip
        return "\n".join(lines)
    before = _Bundle(previous)
    lines = [
        f"# Rollback: {now.name}", "",
        f"This is bundle `{now.id}`. Before it came `{before.id}` (`{previous.parent.name}` in the work folder).",
        "A bundle is called by the first 12 hex digits of `sha256sum lineage.json`.", "",
        "## Going back", "",
        f"1. Take the folder of bundle `{before.id}` (keep it until this one has proven itself) and check it:",
        "   `finetune verify BUNDLE --deep`, with `--key PUB` where bundles are signed.",
        "2. Start its own `serve/` commands, or `finetune serve BUNDLE`, beside the running server.",
        "3. Ask its `golden.jsonl`: the tokens have to be those that stand there.",
        "4. Send the traffic there, then stop the server of this bundle. Clients change nothing"
        + _template_advice(now.template, before.template), "",
        _adapter_advice(now, before), "",
        "## What is different", "",
        *_table("Digests", ("", "before", "now"), _digests(before, now)),
        *_table("Results", ("", "before", "now"), _results(before, now)),
        *_table("Recipe", ("key", "before", "now"), _config(before, now)),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


class _Bundle:
    """What ROLLBACK.md reads of one bundle; an older or a torn one may lack any of it, which must end no HANDOFF."""

    def __init__(self, folder: Path) -> None:
        self.lineage = _read(folder / "lineage.json", json.loads)
        self.report = _read(folder / "report.json", json.loads)
        self.config = _read(folder / "config.yaml", yaml.safe_load)
        try:
            self.id = bundle_id(folder)
        except OSError:
            self.id = "not recorded"
        self.name = _at(self.lineage, "recipe") or "not recorded"
        self.base = _at(self.lineage, "base", "name") or "not recorded"
        self.base_digest = _at(self.lineage, "base", "digest")
        self.template = _at(self.lineage, "template", "sha256")
        self.adapter = _at(self.lineage, "merge", "adapter_sha256")
        self.tasks = {str(task.get("name")): task for task in _entries(self.report, "tasks")}
        perplexity = _at(self.report, "general", "perplexity_tuned")
        self.perplexity: Mapping[str, Any] = perplexity if isinstance(perplexity, dict) else {}

    def stage(self, name: str, key: str) -> Any:
        """`digest` of a stage, or of one of its inputs (`documents`)."""
        for stage in _entries(self.lineage, "stages"):
            if stage.get("stage") == name:
                return _at(stage, "digest") if key == "digest" else _at(stage, "inputs", key)
        return None


def _read(file: Path, parse: Callable[[str], Any]) -> Any:
    """What stands in `file`, None where that cannot be read."""
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _at(value: Any, *keys: str) -> Any:
    """`value[key][key]...`, None where it was not recorded."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _entries(value: Any, key: str) -> list[dict[str, Any]]:
    found = _at(value, key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _adapter_advice(now: _Bundle, before: _Bundle) -> str:
    if now.base_digest is None or before.base_digest is None:
        return "Whether both have the same base is not recorded: load no adapter of one on the base of the other."
    if now.base_digest != before.base_digest:
        return "The base is another one: the adapter of one bundle does not fit the base of the other."
    return (
        "Where adapters are served on their base (`--enable-lora`), both have the same base: load the other bundle's\n"
        "`adapter/` under a second name, send the traffic there, and unload this one."
    )


def _digests(before: _Bundle, now: _Bundle) -> Iterator[tuple[str, Any, Any]]:
    yield "base", before.base_digest, now.base_digest
    yield "documents", before.stage("prepare", "documents"), now.stage("prepare", "documents")
    yield "prepared data", before.stage("prepare", "digest"), now.stage("prepare", "digest")
    yield "adapter", before.adapter, now.adapter
    yield "merged model", before.stage("merge", "digest"), now.stage("merge", "digest")
    yield "chat template", before.template, now.template
    yield "code", *(_at(side.lineage, "code", "commit") for side in (before, now))


def _results(before: _Bundle, now: _Bundle) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*before.tasks, *now.tasks]):
        sides = [side.tasks.get(name, {}) for side in (before, now)]
        metric = sides[1].get("metric") or sides[0].get("metric")
        label = f"{name}, {metric}, on {sides[0].get('n', '?')} and {sides[1].get('n', '?')} rows"
        yield label, *(_rounded(side.get("tuned")) for side in sides)
    for kind in dict.fromkeys([*before.perplexity, *now.perplexity]):
        yield f"perplexity of {kind}", *(_rounded(side.perplexity.get(kind)) for side in (before, now))
    yield "mean KL to the adapter", *(_rounded(_at(side.report, "parity", "kl_mean")) for side in (before, now))
    yield "verdict", *(_at(side.report, "verdict", "status") for side in (before, now))


def _config(before: _Bundle, now: _Bundle) -> Iterator[tuple[str, Any, Any]]:
    if not isinstance(before.config, dict) or not isinstance(now.config, dict):
        words = ["see config.yaml" if isinstance(side.config, dict) else "not recorded" for side in (before, now)]
        yield "all", words[0], words[1]
        return
    earlier, later = dict(_flat(before.config)), dict(_flat(now.config))
    for key in dict.fromkeys([*earlier, *later]):
        if earlier.get(key) != later.get(key):
            yield key, _said(earlier, key), _said(later, key)


def _said(config: Mapping[str, Any], key: str) -> Any:
    value = config.get(key, "(not there)")
    return "null" if value is None else value


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _table(title: str, head: tuple[str, str, str], rows: Iterator[tuple[str, Any, Any]]) -> Iterator[str]:
    changed = [(name, old, new) for name, old, new in rows if old != new]
    yield f"### {title}"
    yield ""
    if not changed:
        yield "Nothing."
    else:
        yield f"| {' | '.join(head)} |"
        yield "|---|---|---|"
        for name, old, new in changed[:_MOST_KEYS]:
            yield f"| {name} | {_cell(old)} | {_cell(new)} |"
        if len(changed) > _MOST_KEYS:
            yield f"| and {len(changed) - _MOST_KEYS} more | see config.yaml | of both bundles |"
    yield ""


def _cell(value: Any) -> str:
    text = "not recorded" if value is None else str(value)
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`{text[:12]}`" if len(text) in (40, 64) and not set(text) - set("0123456789abcdef") else (
        text if len(text) <= 120 else text[:117] + "..."
    )  # fmt: skip


def _rounded(value: Any) -> Any:
    return round(float(value), 4) if isinstance(value, int | float) else None


def _template_advice(now: Any, before: Any) -> str:
    if now is not None and now == before:
        return ": the chat template is the same."
    found = "whether the chat template is the same is not recorded" if None in (now, before) else (
        "the chat template is another one"
    )  # fmt: skip
    return f"; {found}, so prompts of both must not share a cache."
