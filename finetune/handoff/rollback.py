"""ROLLBACK.md: what is different from the bundle before, and how to go back to it."""

import json
from collections.abc import Iterator, Mapping
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
        + (": the chat template is the same." if _same(now.template, before.template) else
           "; the chat template is another one, so prompts of both must not share a cache."), "",
        _adapter_advice(now, before), "",
        "## What is different", "",
        *_table("Digests", ("", "before", "now"), _digests(before, now)),
        *_table("Results", ("", "before", "now"), _results(before, now)),
        *_table("Recipe", ("key", "before", "now"), _config(before, now)),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


class _Bundle:
    """What ROLLBACK.md reads of one bundle; an older one may not have recorded everything."""

    def __init__(self, folder: Path) -> None:
        self.lineage: Mapping[str, Any] = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        self.report: Mapping[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self.config: Mapping[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        self.id = bundle_id(folder)
        self.name = str(self.lineage["recipe"])
        self.base = str(self.lineage["base"]["name"])
        self.template = self.lineage.get("template", {}).get("sha256")
        self.adapter = self.lineage["merge"]["adapter_sha256"]

    def stage(self, name: str, key: str) -> str | None:
        """`digest` of a stage, or of one of its inputs (`documents`)."""
        for stage in self.lineage["stages"]:
            if stage["stage"] == name:
                return stage["digest"] if key == "digest" else stage["inputs"].get(key)
        return None


def _adapter_advice(now: _Bundle, before: _Bundle) -> str:
    if now.lineage["base"]["digest"] != before.lineage["base"]["digest"]:
        return "The base is another one: the adapter of one bundle does not fit the base of the other."
    return (
        "Where adapters are served on their base (`--enable-lora`), both have the same base: load the other bundle's\n"
        "`adapter/` under a second name, send the traffic there, and unload this one."
    )


def _digests(before: _Bundle, now: _Bundle) -> Iterator[tuple[str, Any, Any]]:
    yield "base", before.lineage["base"]["digest"], now.lineage["base"]["digest"]
    yield "documents", before.stage("prepare", "documents"), now.stage("prepare", "documents")
    yield "prepared data", before.stage("prepare", "digest"), now.stage("prepare", "digest")
    yield "adapter", before.adapter, now.adapter
    yield "merged model", before.stage("merge", "digest"), now.stage("merge", "digest")
    yield "chat template", before.template, now.template
    yield "code", before.lineage["code"]["commit"], now.lineage["code"]["commit"]


def _results(before: _Bundle, now: _Bundle) -> Iterator[tuple[str, Any, Any]]:
    earlier = {task["name"]: task for task in before.report["tasks"]}
    later = {task["name"]: task for task in now.report["tasks"]}
    for name in dict.fromkeys([*earlier, *later]):
        metric = (later.get(name) or earlier[name])["metric"]
        rows = [task.get(name, {}).get("n") for task in (earlier, later)]
        label = f"{name}, {metric}, on {rows[0]} and {rows[1]} rows"
        yield label, _rounded(earlier.get(name, {}).get("tuned")), _rounded(later.get(name, {}).get("tuned"))
    kinds = [report["general"]["perplexity_tuned"] for report in (before.report, now.report)]
    for kind in dict.fromkeys([*kinds[0], *kinds[1]]):
        yield f"perplexity of {kind}", _rounded(kinds[0].get(kind)), _rounded(kinds[1].get(kind))
    yield "mean KL to the adapter", *(_rounded(side.report["parity"]["kl_mean"]) for side in (before, now))
    yield "verdict", before.report["verdict"]["status"], now.report["verdict"]["status"]


def _config(before: _Bundle, now: _Bundle) -> Iterator[tuple[str, Any, Any]]:
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


def _same(one: Any, other: Any) -> bool:
    return one is not None and one == other
