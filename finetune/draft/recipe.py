"""`finetune init FOLDER`: says what it found, and writes a recipe that passes its own checks."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from finetune.config.data import TOOLKIT
from finetune.config.load import RECIPES
from finetune.draft.folder import FILES, LINE, ROWS, Folder, look
from finetune.draft.sections import of_documents
from finetune.draft.tasks import Drafted, of_table, text_column
from finetune.errors import RecipeError

_TEMPLATE = Path(__file__).with_name("recipe.yaml.jinja")
_UNITS = {
    "heading": "sections", "clause": "clauses", "page": "pages", "paragraph": "paragraphs", "document": "documents",
}  # fmt: skip


def run(root: Path, name: str | None, to: Path) -> int:
    """Write TO/NAME.yaml for the documents below `root`; never over a file that is there."""
    name = _named(name or _slug(root.resolve().name), to)
    folder = look(_apart(root))
    drafted = _with_one_task(draft(folder), root)
    to.mkdir(parents=True, exist_ok=True)
    file = to / f"{name}.yaml"
    with file.open("x", encoding="utf-8") as stream:  # before anything is said: `| head` closes the pipe
        stream.write(write(name, folder, drafted))
    for line in describe(folder, drafted):
        print(line)
    here = f"recipe={name} --config-dir {to} model=smollm2_135m"
    print(f"\nrecipe: {file}")
    print(f"next:   finetune prepare {here}  (then look at the datasheet)\n        finetune train {here}")
    print("        (without model=: the large one of the toolkit, for machines with GPUs; docs/training.md)")
    return 0


def _apart(root: Path) -> Path:
    """The folder, if what a run writes would not lie in it."""
    if Path.cwd().is_relative_to(root.resolve()):
        rule = "is where you type, and what a run writes (work/, mine/) would lie among the documents"
        beside = root.resolve()
        raise RecipeError.one("folder", str(root), rule, f"cd {beside.parent} && finetune init {beside.name}")
    return root


def draft(folder: Folder) -> list[Drafted]:
    return [
        of_table(found, folder.chinese) if found.cut is None else of_documents(found, folder.chinese)
        for found in folder.sources
    ]


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return slug if slug[:1].isalpha() else f"ours_{slug}".strip("_")


def _named(name: str, to: Path) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise RecipeError.one("--name", name, "is small letters, digits and _", f"--name {_slug(name)}")
    if (RECIPES / f"{name}.yaml").exists():
        raise RecipeError.one("--name", name, "is a recipe of the toolkit", f"--name {name}_ours")
    if (to / f"{name}.yaml").exists():
        rule = "is there already, and is not overwritten"
        raise RecipeError.one("--to", str(to / f"{name}.yaml"), rule, f"--name {name}_2, or take it away")
    return name


def _with_one_task(drafted: Sequence[Drafted], folder: Path) -> Sequence[Drafted]:
    if any(one.tasks for one in drafted):
        return drafted
    found = "; ".join(f"{one.source.name}: {one.why}" for one in drafted)
    fix = "add a table with questions and answers or labels (CSV, JSONL), or documents with headings (DOCX, HTML, MD)"
    raise RecipeError.one("folder", str(folder), f"nothing there makes a task of 24 rows or more ({found})", fix)


def describe(folder: Folder, drafted: Sequence[Drafted]) -> Iterator[str]:
    """What was found, a line for each source, and what was left out."""
    for one in drafted:
        found = one.source
        what = f"{len(found.files)} {found.kind.upper()}" if len(found.files) > 1 or found.cut else found.path
        unit = "rows" if found.cut is None else _UNITS[found.cut]
        most = " or more" if len(found.rows) >= ROWS or (found.cut and len(found.files) > FILES) else ""
        made = "preferences" if one.preferences else ["text", "task", "tasks"][min(2, len(one.tasks))]
        yield f"  {found.name}: {what}, {len(found.rows)}{most} {unit} -> {made}: {one.why}"
    for suffix, files in sorted(folder.unknown.items()):
        yield f"  left out: {files} {suffix} (no reader)"
    for problem in folder.problems:
        yield f"  left out: {problem}"


def write(name: str, folder: Folder, drafted: Sequence[Drafted]) -> str:
    """The recipe as YAML, a comment where somebody has to decide."""
    made = Environment(  # noqa: S701 (YAML, no page)
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    made.filters["y"] = _scalar
    return made.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=name.replace("_", " ").capitalize(),
        description=f"Drafted from {sum(len(one.source.files) for one in drafted)} files; what it is for is not said.",
        language="zh" if folder.chinese else "en",
        stages=["sft", "dpo"] if any(one.preferences for one in drafted) else ["sft"],
        root=str(folder.root),
        relative=not folder.root.is_absolute(),
        line=LINE,
        drafted=drafted,
        general={
            file: f"{TOOLKIT}data/general/{file}.jsonl" for file in ("speeches", "countries", "replay_speeches")
        },
        main=next(iter(max((one for one in drafted if one.tasks), key=_weight).tasks)),
        running=[
            one for one in drafted
            if one.preferences is None and not any("messages" in task for task in one.tasks.values())
        ],
        text_column=text_column,
    )


def _weight(one: Drafted) -> tuple[bool, int]:
    """A table's own answers are a better headline than what a builder asks; more rows than fewer."""
    return one.source.cut is None, len(one.source.rows)


def _scalar(value: Any) -> str:
    """A value of YAML: plain where it is a word or a path, else as JSON, which YAML reads alike."""
    word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./ -]*[A-Za-z0-9_]", value)
    return str(value) if word and yaml.safe_load(value) == value else json.dumps(value, ensure_ascii=False)
