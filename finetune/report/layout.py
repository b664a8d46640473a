"""What the page and REPORT.md share: the template environment, the order of the systems, the honest notes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from finetune.report import figures
from finetune.report.samples import OUTCOMES, numbered
from finetune.report.strings import translated, words
from finetune.report.verdict import CLASSIC, metric_name

TRAINING = ("cpt", "sft", "dpo")

_ORDER = (
    "base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline", "sft", "tuned", "merged",
)  # fmt: skip
_FEW_WINDOWS = 8
"""Below so many windows one odd page moves the perplexity of them all."""
_FIGURES = (
    "score", "signed", "interval", "change", "percent", "count", "seconds", "brief", "money", "small", "perplexity",
    "p", "plain",
)  # fmt: skip
TERMS: Mapping[str, Sequence[str]] = {
    "gates": ("gate", "interval", "perplexity", "kl"),
    "gain": ("row", "base", "tuned", "majority", "linear", "nearest", "interval", "rouge", "f1"),
    "answers": ("row", "base", "tuned"),
    "general": ("perplexity", "token"),
    "curves": ("loss", "stages"),
    "context": ("token",),
    "modes": ("token",),
    "latency": ("token",),
    "parity": ("lora", "merge", "kl", "token"),
    "export": ("quantised", "kl", "interval"),
    "lineage": ("hash",),
}
"""Section -> words of the glossary that it explains on the spot."""
SECTIONS = (
    "gates", "gain", "general", "harness", "answers", "seen", "consistency", "leaks", "context", "modes", "latency",
    "curves", "data", "parity", "export", "time", "lineage", "environment", "again", "words",
)  # fmt: skip
"""In the order of the page. A section that nothing was measured for is left out: its gate says so."""
_ASKED = ("harness", "consistency", "leaks", "context", "modes", "latency", "export")


def environment(facts: Mapping[str, Any]) -> Environment:
    """Templates in which every value is escaped (not in Markdown) and a missing name is an error; with what page and
    REPORT.md both say of `facts`."""
    t = words(facts["language"])
    places = numbered(facts["samples"])
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(enabled_extensions=(), disabled_extensions=("md.jinja",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update({name: getattr(figures, name) for name in _FIGURES})
    made.filters["gate_value"] = lambda value, name: figures.gate(name, value)
    made.filters["parity_value"] = lambda value, name: figures.parity(name, value)
    made.filters["svg"] = Markup
    made.filters["why"] = lambda reason: t["data"]["why"].get(reason, reason)
    made.filters["told"] = lambda sentence: translated(sentence, facts["language"])
    made.filters["stage_name"] = lambda name: t["stage"].get(name, name)
    made.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    made.globals.update(
        worst_change=worst_change, read_text=read_text, best_score=best_score, gate_rule=gate_rule, terms=TERMS,
        code_line=code_line,
        rows_of=rows_of, detail_rows=lambda task: detail_rows(task, t), f=facts, t=t, systems=systems(facts),
        row_name=lambda name: row_name(name, places, facts, t), sections=sections(facts),
        row_id=lambda name: name if facts["privacy"] != "none" else "", codes=made_by(facts),
        notes=honest_notes(facts), mode_rows=mode_rows(facts), found_by=found_by(facts),
        metric=lambda name: metric_name(name, facts["language"]), unusual=spikes(facts),
        outcomes=list(OUTCOMES), titles_of={task["name"]: task["title"] for task in facts["tasks"]},
        stages=[stage for stage in TRAINING if facts["curves"].get(stage)],
    )  # fmt: skip
    return made


def sections(facts: Mapping[str, Any]) -> list[str]:
    """The sections that have something to say, in the order of the page."""
    silent = {name for name in _ASKED if not facts.get(name)}
    if not any(task.get("contamination") for task in facts["tasks"]):
        silent.add("seen")
    return [name for name in SECTIONS if name not in silent]


def systems(facts: Mapping[str, Any]) -> list[str]:
    """Every system that some task was scored with, the tuned model and what was made of it last."""
    found = {name for task in facts["tasks"] for name in (*task["differences"], "tuned")}
    return [*(name for name in _ORDER if name in found), *sorted(found - set(_ORDER))]


def alternatives(facts: Mapping[str, Any]) -> list[str]:
    """The systems that somebody could use instead of the tuned model; what was made of it stands in the tables only."""
    return [name for name in systems(facts) if name in _ORDER[:_ORDER.index("tuned")]]


def made_by(facts: Mapping[str, Any]) -> list[tuple[Mapping[str, Any] | None, list[str]]]:
    """(code: {version, commit, dirty}, stages that it made), one entry for each code that took part."""
    found: dict[str, tuple[Mapping[str, Any] | None, list[str]]] = {}
    for entry in facts["lineage"]:
        code = (entry["made"] or {}).get("code")
        found.setdefault(repr(code), (code, []))[1].append(entry["stage"])
    return list(found.values())


def code_line(code: Mapping[str, Any] | None, t: Mapping[str, Any]) -> str:
    """By which version and commit something was made, as far as that is known."""
    if code is None:
        return str(t["again"]["unknown"])
    spelling = "no_commit" if not code["commit"] else "dirty" if code["dirty"] else "commit"
    return str(t["again"][spelling].format(version=code["version"], commit=code["commit"]))


def row_name(
    name: str, places: Mapping[str, tuple[str, int]], facts: Mapping[str, Any], t: Mapping[str, Any]
) -> str:
    """What a reader calls the row `name` by: the title of its task and, of an evaluation row that report.json holds,
    its place among the rows of that task."""
    titles = {task["name"]: task["title"] for task in facts["tasks"]}
    if name in places:
        task, number = places[name]
        return str(t["answers"]["row"].format(title=titles[task], number=figures.count(number)))
    return str(titles.get(name.partition("/")[0], t["answers"]["other_row"]))


def rows_of(task: Mapping[str, Any], t: Mapping[str, Any]) -> str:
    """How many rows a task was scored on and, where that is known, in how many groups."""
    if task.get("groups") is None:
        return str(t["gain"]["n_rows"].format(n=figures.count(task["n"])))
    return str(t["gain"]["n_groups"].format(n=figures.count(task["n"]), groups=figures.count(task["groups"])))


def found_by(facts: Mapping[str, Any]) -> list[str]:
    """Who was asked about long texts; an older version asked the tuned model alone."""
    rows = (facts.get("context") or {}).get("rows", ())
    return [*(["base"] if any("base" in row for row in rows) else []), "tuned"]


def mode_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(task, mode, what was measured) for every mode that a task was asked in."""
    measured = facts.get("modes") or {}
    return [
        (task["name"], mode, one)
        for task in facts["tasks"]
        for mode, one in (measured.get(task["name"]) or {}).items()
    ]


def spikes(facts: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Training stage -> its steps that stood out."""
    return {stage: [one for row in rows for one in row.get("spikes", ())] for stage, rows in facts["curves"].items()}


_DETAILS: Mapping[str, Callable[[Any], str]] = {
    "cut_off": figures.count,
    **dict.fromkeys(("macro_f1", "micro_f1", "field_f1", "field_micro_f1", "f1", "answered"), figures.score),
    **dict.fromkeys(
        ("valid", "fields", "other", "unreadable", "found", "elsewhere", "invented", "same_sources", "acc", "acc_norm",
         "false_positive_rate", "precision", "recall", "refused", "equal", "other_unit"), figures.percent,
    ),
}  # fmt: skip


def detail_rows(task: Mapping[str, Any], t: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """(label, {system: number as written}) of what a metric tells beside its score; a number of a name that this report
    does not know keeps its name."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for system, told in task["details"].items():
        for name, value in told.items():
            inner = value.items() if name in ("fields", "field_f1") else [("", value)]
            for part, number in inner:
                if isinstance(number, int | float):
                    label = t["gain"]["figures"].get(name, name.replace("_", " ")) + (f": {part}" if part else "")
                    spell = _DETAILS.get(name, figures.small)
                    ends = (told.get("ci95") or {}).get(name)
                    between = f" [{spell(ends[0])},\u00a0{spell(ends[1])}]" if ends and not part else ""
                    found.setdefault((name, label), {})[system] = spell(number) + between
    empty = dict.fromkeys(task["details"], figures.MISSING)
    return [(label, {**empty, **values}) for (_, label), values in found.items()]


def gate_rule(name: str) -> str:
    """Which side of its limit a gate allows, told by its name: `..._max`, `..._min`, else above."""
    return "at_most" if name.endswith("_max") else "at_least" if name.endswith("_min") else "above"


def worst_change(facts: Mapping[str, Any]) -> float:
    """The largest rise of general perplexity over the kinds of text."""
    return max(float(value) for value in facts["general"]["change"].values())


def read_text(facts: Mapping[str, Any], kind: str) -> str:
    """On how much text of a kind perplexity was measured, and whether that is little; "" where it is not known."""
    general, t = facts["general"], words(facts["language"])["general"]
    if kind not in general.get("tokens", {}):
        return ""
    tokens, window = general["tokens"][kind], general["window"]
    told = t["measured"].format(tokens=figures.count(tokens), window=figures.count(min(tokens, window)))
    return str(told + (t["little"] if tokens < _FEW_WINDOWS * window else ""))


def best_score(task: Mapping[str, Any]) -> float:
    """The highest score that any system reached on a task."""
    return max(float(task[system]) for system in (*task["differences"], "tuned") if task.get(system) is not None)


def honest_notes(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each task where a classic baseline beats the tuned model or is not shown to be beaten."""
    t = words(facts["language"])
    notes = []
    for task in facts["tasks"]:
        rivals = [name for name in CLASSIC if task[name] is not None]
        if not rivals:
            continue
        best = max(rivals, key=lambda name: float(task[name]))
        if task["differences"][best]["ci95"][0] > 0:
            continue
        spelling = "honest_win" if task[best] > task["tuned"] else "honest_tie"
        notes.append(
            t["gain"][spelling].format(
                task=task["title"], system=t["system"][best], classic=figures.score(task[best]),
                tuned=figures.score(task["tuned"]),
            )
        )
    return notes
