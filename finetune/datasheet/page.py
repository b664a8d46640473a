"""datasheet.html from datasheet.json: one page that needs nothing else, no network, no script, no file beside it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune.artifacts import Artifact, checked, write_whole
from finetune.config.prepare import Redact
from finetune.corpus.books import gaps
from finetune.corpus.redact import hide_files
from finetune.datasheet import differences, flow
from finetune.report import figures
from finetune.report.strings import words

HERE = Path(__file__).parent
_REPORT = Path(figures.__file__).parent
ABOUT = ("name", "title", "description", "licence", "limits")
Documents = Mapping[str, Mapping[str, str]]
"""Source -> file -> sha256."""


def write(folder: Path, prepared: Artifact, recipe: Any, documents: Documents) -> Path:
    """Write datasheet.html and datasheet.json into `folder`; returns the page's path.

    `recipe` (or HANDOFF's Config) says in which language, and with privacy.samples how much text of rows is shown.
    Raises RecipeError where the artifact's datasheet.json is not what its manifest says.
    """
    checked(prepared, ["datasheet.json"])
    sheet = permitted(json.loads(prepared.file("datasheet.json").read_text(encoding="utf-8")), recipe.privacy.samples)
    sheet |= {
        "about": {name: getattr(recipe, name) for name in ABOUT},
        "documents": hide_files(documents, recipe.prepare.redact, recipe.seed),
        "kept": [kind for kind in Redact.model_fields if getattr(recipe.prepare.redact, kind) == "keep"],
        "digest": prepared.digest,
        "privacy": recipe.privacy.samples,
    }
    write_whole(folder / "datasheet.json", json.dumps(sheet, ensure_ascii=False, indent=1) + "\n")
    write_whole(folder / "datasheet.html", render(sheet, recipe.language))
    return folder / "datasheet.html"


def permitted(sheet: Mapping[str, Any], samples: str) -> dict[str, Any]:
    """The sheet as it may be shown: with `none` it holds no text of any row, only where it stood and why it left."""
    if samples != "none":
        return dict(sheet)
    silent = ("source", "file", "line", "reason", "similarity")
    return {
        **sheet,
        "near_duplicates": [_only(pair, silent) for pair in sheet["near_duplicates"]],
        "samples": {step: [_only(sample, silent) for sample in found] for step, found in sheet["samples"].items()},
    }


def _only(sample: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in sample.items() if key in keys}


def render(sheet: Mapping[str, Any], language: str = "en") -> str:
    """The page. The same sheet gives the same bytes."""
    style = (_REPORT / "style.css").read_text(encoding="utf-8") + (HERE / "sheet.css").read_text(encoding="utf-8")
    t, told = _strings(language), words(language)["data"]
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters.update(count=figures.count, percent=figures.percent)
    made.filters["step"] = lambda name: t["steps"].get(name) or told["name"].get(name, name)
    made.filters["why"] = lambda reason: t["why"].get(reason) or told["why"].get(reason, reason)
    made.filters["word"] = lambda name, table: t[table].get(name, name)
    made.filters["share"] = lambda part, whole: f"{100 * part / whole:.3f}" if whole else "0"
    made.tests["differing"] = lambda sample: "before" in sample and "after" in sample
    lanes = flow.streams(sheet["ledger"])
    return made.get_template("sheet.html.jinja").render(
        f=sheet, t=t, lanes=lanes, broken=gaps(sheet),
        changes=_changes(lanes), differing=_marked, sections=_sections(sheet, lanes),
        read=sum(step.rows_out for step in lanes.get("sources", []) if step.name == "read"),
        languages=_languages(sheet), spoken=_spoken(sheet, t["languages"]), examples=_examples(sheet),
        sources=_sources(sheet), decontaminated=_decontaminated(sheet),
        css=Markup(style),  # noqa: S704 (our own files)
    )  # fmt: skip


def _strings(language: str) -> dict[str, Any]:
    table = yaml.safe_load((HERE / "strings.yaml").read_text(encoding="utf-8"))
    strings: dict[str, Any] = table[language]
    return strings


def _sections(sheet: Mapping[str, Any], lanes: Mapping[str, Sequence[flow.Step]]) -> list[str]:
    """The sections that have something to say, in the order of the page."""
    said = {"languages": bool(_languages(sheet)[1]), "examples": bool(_examples(sheet))}
    order = (
        "flow", "splits", "lengths", "sources", "duplicates", "personal", "decontamination", "languages", "examples",
        "questions", "ledger",
    )  # fmt: skip
    return [name for name in order if said.get(name, True)]


def _languages(sheet: Mapping[str, Any]) -> tuple[str, Mapping[str, Mapping[str, int]]]:
    """(names in the strings, source -> rows) by language, or by writing where the recipe asks for no language."""
    return ("recognised", sheet["recognised"]) if "recognised" in sheet else ("names", sheet["languages"])


def _spoken(sheet: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """What the rows of all sources are in, the most frequent first."""
    kind, counted = _languages(sheet)
    total: Counter[str] = Counter()
    for counts in counted.values():
        total.update(counts)
    return {names[kind].get(name, name): rows for name, rows in total.most_common()}


def _examples(sheet: Mapping[str, Any]) -> dict[str, Any]:
    """Samples by step, but those that have a section of their own."""
    elsewhere = ("near duplicates", "decontaminate")
    return {step: found for step, found in sheet["samples"].items() if found and step not in elsewhere}


def _changes(lanes: Mapping[str, Sequence[flow.Step]]) -> dict[str, flow.Step]:
    """Step -> what it dropped or changed over all streams."""
    found: dict[str, flow.Step] = {}
    for steps in lanes.values():
        for step in steps:
            if step.dropped or step.changed:
                one = found.setdefault(step.name, flow.Step(step.name))
                one.rows_in += step.rows_in
                one.rows_out += step.rows_out
                one.changed = (one.changed or 0) + (step.changed or 0)
                for reason, rows in step.dropped.items():
                    one.dropped[reason] = one.dropped.get(reason, 0) + rows
    return found


def _marked(before: str, after: str) -> tuple[list[differences.Piece], list[differences.Piece]]:
    left, right = differences.differing(before, after)
    return differences.around(left), differences.around(right)


def _sources(sheet: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each source with what was read of it, what is left after its own steps, its licence and its files."""
    found = {}
    for name, facts in sheet["source_facts"].items():
        entries = [one for one in sheet["ledger"] if one["source"] == name and flow.lane_of(one) == "sources"]
        files = sheet.get("documents", {}).get(name) or facts.get("files") or {}
        first, last = (entries[0], entries[-1]) if entries else (None, None)
        found[name] = {
            "name": name, "licence": facts["licence"], "files": files,
            "read": first["rows_in"] if first else 0, "left": last["rows_out"] if last else 0, "used": bool(entries),
        }  # fmt: skip
    return list(found.values())


def _decontaminated(sheet: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each task, text and side lost to the evaluation rows: {source, rows_in, dropped}."""
    return [
        {"source": one["source"], "rows_in": one["rows_in"], "dropped": one["rows_in"] - one["rows_out"]}
        for one in sheet["ledger"]
        if one["step"] == "decontaminate"
    ]
