"""Documents, sources, tasks, running text and folders: what PREPARE will meet, as far as no document is read."""

import codecs
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.config import Recipe
from finetune.config.data import Source, Task, find_files, place, placeholders
from finetune.config.load import suggest
from finetune.errors import Problem
from finetune.metrics import METRICS

_TABLES = ("csv", "tsv", "jsonl", "json", "obo", "parquet")


def check_folders(recipe: Recipe) -> Iterator[Problem]:
    root, work = recipe.documents, Path(recipe.work)
    local = any(source.path is not None for source in recipe.sources.values())
    if not root.is_dir():
        if local:
            rule = "is a file, not a folder" if root.exists() else "is not there"
            yield Problem("data_root", recipe.data_root, rule, "name the folder that holds the documents")
    elif local and not any(root.iterdir()):
        yield Problem("data_root", recipe.data_root, "is empty", "put documents there, or name another folder")
    if work.resolve().is_relative_to(root.resolve()):
        rule = "lies in data_root: what a run writes would be read as documents by the next"
        yield Problem("work", recipe.work, rule, f"work=work/{recipe.name}")
    if work.exists() and not work.is_dir():
        yield Problem("work", recipe.work, "is a file, not a folder", f"work=work/{recipe.name}")


def check_writable(work: Path) -> Iterator[Problem]:
    folder = work
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        rule = f"cannot be written ({error.strerror} in {folder})"
        yield Problem("work", str(work), rule, "name a folder of your own: work=/path/to/folder")


def check_sources(recipe: Recipe) -> Iterator[Problem]:
    root = recipe.documents
    for name, source in recipe.sources.items():
        path = f"sources.{name}"
        if [source.path, source.hub, source.wheel].count(None) != 2:
            rule = "a source is read from a path, a hub or a wheel, one of the three"
            yield Problem(path, source.path, rule, f"keep {path}.path, {path}.hub or {path}.wheel")
        elif source.path is not None and root.is_dir() and not find_files(root, source.path):
            begun, wanted = place(root, source.path)
            rule = f"nothing of this name in {recipe.data_root if begun is root else begun}"
            yield Problem(f"{path}.path", source.path, rule, _nearest_file(begun, wanted))
        if source.wheel is not None and not re.fullmatch(r"[0-9a-f]{64}", source.wheel.sha256):
            rule = "is no sha256 (64 hex digits)"
            yield Problem(f"{path}.wheel.sha256", source.wheel.sha256, rule, "see `pip hash FILE.whl`")
        if source.hub is not None and not re.fullmatch(r"[0-9a-f]{40}", source.hub.revision):
            rule = "is no commit (40 hex digits), and a branch or tag may name other files tomorrow"
            fix = "take the commit from the dataset's page under Files, History"
            yield Problem(f"{path}.hub.revision", source.hub.revision, rule, fix)
        yield from _check_cut(f"{path}.cut", source)
        yield from _check_patterns(f"{path}.where", source.where)
        try:
            codecs.lookup(source.encoding)
        except LookupError:
            fix = suggest(source.encoding, ["utf-8", "utf-16", "latin-1", "cp1252", "gb18030", "shift_jis"])
            yield Problem(f"{path}.encoding", source.encoding, "is no encoding Python knows", fix)


def check_tasks(recipe: Recipe) -> Iterator[Problem]:
    mains = [name for name, task in recipe.tasks.items() if task.main]
    if not recipe.tasks:
        yield Problem("tasks", None, "a recipe has at least one task", "add tasks: {NAME: {title: ..., source: ...}}")
    elif len(mains) != 1:
        first = next(iter(recipe.tasks))
        value = mains or None
        yield Problem(
            "tasks", value, "exactly one task has main: true", f"set tasks.{mains[0] if mains else first}.main"
        )
    if "replay" in recipe.tasks:
        rule = "is the name under which general text is trained on and counted"
        yield Problem("tasks.replay", None, rule, "give the task another name")
    for name, task in recipe.tasks.items():
        path = f"tasks.{name}"
        if task.source not in recipe.build:
            yield from check_source_name(f"{path}.source", task.source, recipe)
        yield from _check_answer(path, task)
        yield from _check_patterns(f"{path}.where", task.where)
        if task.reasoning is not None and "think" not in recipe.model.modes:
            rule = f"trains the thinking mode, which {recipe.model.name} does not have"
            yield Problem(f"{path}.reasoning", task.reasoning, rule, f"drop {path}.reasoning, or model=qwen3_32b")
        if task.reasoning is None and task.messages is None and "plain" not in recipe.model.modes:
            rule = f"is needed by {recipe.model.name}, which always thinks"
            yield Problem(f"{path}.reasoning", None, rule, f"add {path}.reasoning, or model=qwen3_32b")
        if "sft" in recipe.stages and task.max_new_tokens >= recipe.sft.max_length:
            rule = f"leaves no room for a prompt in sft.max_length={recipe.sft.max_length}"
            yield Problem(f"{path}.max_new_tokens", task.max_new_tokens, rule, f"lower {path}.max_new_tokens")


def check_mix(recipe: Recipe) -> Iterator[Problem]:
    share = recipe.prepare.think_share
    if share is None:
        return
    path = "prepare.think_share"
    trained = [task for task in recipe.tasks.values() if task.train_rows]
    if set(recipe.model.modes) != {"plain", "think"}:
        rule = f"mixes two modes, {recipe.model.name} has only {' '.join(recipe.model.modes)}"
        yield Problem(path, share, rule, f"{path}=null, or model=qwen3_32b")
    elif not any(task.messages for task in trained) and len({task.reasoning is None for task in trained}) < 2:
        rule = "needs trained tasks of both modes: with `reasoning` and without, or with `messages`"
        yield Problem(path, share, rule, f"{path}=null, or add such a task")


def check_texts(recipe: Recipe) -> Iterator[Problem]:
    uses = {f"text.{index}": use for index, use in enumerate(recipe.text)}
    uses |= {f"general.{kind}": use for kind, use in recipe.general.items()}
    templates = {path: (use.source, use.template) for path, use in uses.items()}
    if recipe.replay is not None:
        templates["replay"] = (recipe.replay.source, recipe.replay.template)
    for path, (source, template) in templates.items():
        yield from check_source_name(f"{path}.source", source, recipe)
        yield from check_template(f"{path}.template", template)
    trained = {task.source for task in recipe.tasks.values()} | {use.source for use in recipe.text}
    trained |= {recipe.replay.source} if recipe.replay else set()
    trained |= {use.source for use in recipe.preferences.values()} | {use.source for use in recipe.build.values()}
    for kind, use in recipe.general.items():
        if use.source in trained:
            rule = "is trained on as well, so forgetting cannot be measured on it"
            yield Problem(f"general.{kind}.source", use.source, rule, "name a source that nothing else uses")
    if not recipe.general and recipe.gates.perplexity_rise_max is not None:
        rule = "the gate on forgetting needs general text"
        yield Problem(
            "general", None, rule, "add general: {speeches: {source: ...}}, or gates.perplexity_rise_max=null"
        )


def check_prepare(recipe: Recipe) -> Iterator[Problem]:
    split, filters = recipe.prepare.split, recipe.prepare.filters
    if split.valid + split.test >= 1:
        rule = f"with test={split.test:g} nothing is left for training"
        yield Problem("prepare.split.valid", split.valid, rule, "keep valid + test below 1, for example 0.1 and 0.25")
    for name, value in (("valid", split.valid), ("test", split.test)):
        if value == 0:
            yield Problem(f"prepare.split.{name}", value, "must be above 0: it is measured on", "0.1")
    if filters.min_chars > filters.max_chars:
        rule = f"is above max_chars={filters.max_chars}: every row would be dropped"
        yield Problem("prepare.filters.min_chars", filters.min_chars, rule, "lower min_chars")


def _check_cut(path: str, source: Source) -> Iterator[Problem]:
    by, pattern = source.cut.by, source.cut.pattern
    name = (source.path or "").lower().removesuffix(".gz").removesuffix(".zst")
    kind = source.format if source.format != "auto" else Path(name).suffix.removeprefix(".")
    if source.form is not None and kind and kind not in _TABLES:
        where = f"{path.removesuffix('.cut')}.form"
        yield Problem(where, source.form, f"is for rows, and a {kind} file is a document", f"drop {where}")
    if by != "document" and kind in _TABLES:
        yield Problem(f"{path}.by", by, f"a {kind} file already is rows: only documents are cut", f"drop {path}")
    if (by == "pattern") != (pattern is not None):
        yield Problem(f"{path}.pattern", pattern, "goes with by: pattern, and only with it", "give both or neither")
    if pattern is not None:
        try:
            names = re.compile(pattern, re.MULTILINE | re.DOTALL).groupindex
        except re.error as error:
            yield Problem(f"{path}.pattern", pattern, f"is no regular expression ({error})", "mend it")
        else:
            if not names:
                rule = "has no named group, so a match has no columns"
                yield Problem(f"{path}.pattern", pattern, rule, "write (?P<title>...)")


def _check_patterns(path: str, where: Mapping[str, str]) -> Iterator[Problem]:
    for column, pattern in where.items():
        try:
            re.compile(pattern)
        except re.error as error:
            yield Problem(f"{path}.{column}", pattern, f"is no regular expression ({error})", "mend it")


def _check_answer(path: str, task: Task) -> Iterator[Problem]:
    if (task.prompt is None) == (task.messages is None):
        rule = "a task has a prompt or messages, one of the two"
        fix = f"keep {path}.prompt or {path}.messages" if task.prompt else (
            f"add {path}.prompt or {path}.messages, or sources.{task.source}.form=auto for rows in a known form"
        )
        yield Problem(path, None, rule, fix)
    if task.messages is not None:
        for key in ("answer", "answer_json", "reasoning"):
            if getattr(task, key) is not None:
                rule = f"comes from the conversations of {path}.messages"
                yield Problem(f"{path}.{key}", getattr(task, key), rule, f"drop {path}.{key}, or {path}.messages")
    elif (task.answer is None) == (not task.answer_json):
        rule = "a task has an answer or an answer_json, one of the two"
        yield Problem(path, None, rule, f"keep {path}.answer or {path}.answer_json")
    if task.tools is not None and task.messages is None:
        yield Problem(f"{path}.tools", task.tools, "goes with messages, and only with them", f"drop {path}.tools")
    yield from _check_metric(path, task)
    templates = {"prompt": task.prompt, "system": task.system, "answer": task.answer, "reasoning": task.reasoning}
    templates |= {f"answer_json.{key}": text for key, text in (task.answer_json or {}).items()}
    templates |= {f"choices.{number}": text for number, text in enumerate(task.choices)}
    templates |= {f"passages.{name}": part for name, text in task.passages.items() for part in (name, text)}
    for key, template in templates.items():
        yield from check_template(f"{path}.{key}", template)
    if task.prompt is not None and not is_broken(task.prompt) and not placeholders(task.prompt):
        rule = "names no column, so every row would ask the same"
        yield Problem(f"{path}.prompt", task.prompt, rule, "name columns, like {text}")


def _check_metric(path: str, task: Task) -> Iterator[Problem]:
    metric = METRICS[task.metric]
    for key in metric.needs:
        if not getattr(task, key):
            rule = f"looks at {key}, which this task does not give"
            yield Problem(f"{path}.metric", task.metric, rule, f"give {path}.{key}, or choose another metric")
    for key in ("choices", "passages"):
        if getattr(task, key) and key not in metric.needs:
            rule = f"is not looked at by {task.metric}"
            fix = f"drop {path}.{key}, or metric: {next(name for name in METRICS if key in METRICS[name].needs)}"
            yield Problem(f"{path}.{key}", getattr(task, key), rule, fix)
    if metric.kind == "likelihood" and task.reasoning is not None:
        rule = f"is thought before the answer, and {task.metric} asks how likely each option is at once"
        yield Problem(f"{path}.reasoning", task.reasoning, rule, f"drop {path}.reasoning, or metric: label_accuracy")


def check_template(path: str, template: str | None) -> Iterator[Problem]:
    if template is not None and is_broken(template):
        yield Problem(path, template, "has a single brace", "double a brace to mean itself: {{ and }}")


def is_broken(template: str) -> bool:
    try:
        placeholders(template)
    except ValueError:
        return True
    return False


def check_source_name(path: str, source: str, recipe: Recipe) -> Iterator[Problem]:
    if source not in recipe.sources:
        names = sorted({*recipe.sources, *recipe.build} if path.startswith("tasks.") else recipe.sources)
        yield Problem(path, source, "is not one of the sources", suggest(source, names))


def _nearest_file(root: Path, pattern: str) -> str:
    folder = (root / pattern).parent
    found = sorted(path.name for path in folder.iterdir())[:200] if folder.is_dir() else []
    return suggest(Path(pattern).name, found) if found else f"put it into {root}, or change the path"
