"""The steps on texts that a recipe may turn on: glossary, languages, page layout, split by time, cut rows, mixing."""

from collections.abc import Iterator, Mapping
from itertools import chain

from finetune.checks.data import check_source_name
from finetune.config import Recipe
from finetune.config.data import placeholders
from finetune.config.load import suggest
from finetune.corpus.languages import CODES
from finetune.corpus.times import read_time
from finetune.errors import Problem


def check_key(recipe: Recipe, environment: Mapping[str, str]) -> Iterator[Problem]:
    """The key of `prepare.redact`, told before the first row is read: only what prepares, or hands over, has it."""
    if recipe.prepare.redact.key_sha256 is not None:
        from finetune.corpus.redact import missing_key  # the recognisers take a tenth of the second that a plan has

        if problem := missing_key(recipe.prepare.redact, environment):
            yield problem


def check_steps(recipe: Recipe) -> Iterator[Problem]:
    yield from _check_layout(recipe)
    yield from _check_glossary(recipe)
    for code in recipe.prepare.filters.languages or ():
        if code not in CODES:
            yield Problem("prepare.filters.languages", code, "is no language that is known", suggest(code, CODES))
    if recipe.prepare.filters.languages == ():
        yield Problem("prepare.filters.languages", [], "leaves no language", "name some, like [en, zh], or null")
    yield from _check_time(recipe)
    yield from _check_length(recipe)
    yield from _check_mix(recipe)


def _check_layout(recipe: Recipe) -> Iterator[Problem]:
    for name, source in recipe.sources.items():
        suffix = (source.path or "").removesuffix(".gz").removesuffix(".zst").rpartition(".")[2].lower()
        kind = source.format if source.format != "auto" else suffix
        if source.layout.any and "." in (source.path or "") and kind not in ("pdf", "txt", "text", "log", "*"):
            rule = f"a {kind} file has no pages and no line ends of its own"
            yield Problem(f"sources.{name}.layout", None, rule, "drop it: layout is for pdf and txt")


def _check_glossary(recipe: Recipe) -> Iterator[Problem]:
    glossary, path = recipe.prepare.repair.glossary, "prepare.repair.glossary"
    if glossary is None:
        return
    if recipe.documents.is_dir() and not (recipe.documents / glossary.file).is_file():
        yield Problem(f"{path}.file", glossary.file, f"is not in {recipe.data_root}", "name a CSV file below data_root")
    if not recipe.prepare.repair.enabled:
        yield Problem(path, glossary.file, "is part of repair, which is off", "prepare.repair.enabled=true")
    for name, columns in glossary.columns.items():
        yield from check_source_name(f"{path}.columns.{name}", name, recipe)
        tasks = [task for task in recipe.tasks.values() if task.source == name]
        pairs = [pair for pair in recipe.preferences.values() if pair.source == name]
        nested = {*(task.messages for task in tasks), *(task.tools for task in tasks)}
        nested |= {*(pair.messages for pair in pairs), *(pair.tools for pair in pairs)}
        for column in [column for column in columns if column in nested]:
            rule = "holds conversations: codes are written out in columns of text"
            yield Problem(f"{path}.columns.{name}", column, rule, "leave this column out")
    if not glossary.columns:
        yield Problem(f"{path}.columns", None, "names no column", "columns: {SOURCE: [COLUMN]}")


def _check_time(recipe: Recipe) -> Iterator[Problem]:
    time, path = recipe.prepare.split.time, "prepare.split.time"
    if time is None:
        return
    read: list[float] = []
    for key, text in (("valid_from", time.valid_from), ("test_from", time.test_from)):
        try:
            read.append(read_time(text, None))
        except ValueError:
            yield Problem(f"{path}.{key}", text, "is no date in ISO 8601", "write it like 2024-05-31")
    if len(read) == 2 and read[0] >= read[1]:
        rule = f"must come after valid_from={time.valid_from}, or nothing is left to validate on"
        yield Problem(f"{path}.test_from", time.test_from, rule, "name a later date")
    for name in time.columns:
        yield from check_source_name(f"{path}.columns.{name}", name, recipe)
    if not time.columns:
        yield Problem(f"{path}.columns", None, "names no column with a time", "columns: {SOURCE: COLUMN}")


def _check_length(recipe: Recipe) -> Iterator[Problem]:
    for name, task in recipe.tasks.items():
        path, column = f"tasks.{name}.split_column", task.split_column
        if column is None:
            continue
        answers = [task.answer, task.reasoning, *(task.answer_json or {}).values()]
        if task.prompt is None or column not in placeholders(task.prompt):
            yield Problem(path, column, "must be a column of the prompt", f"name one of tasks.{name}.prompt")
        elif column in chain.from_iterable(placeholders(template) for template in answers if template):
            rule = "is part of the answer as well: its parts would answer with the whole"
            yield Problem(path, column, rule, "name another column, or drop split_column")
        elif recipe.prepare.length.policy != "split":
            rule = "is cut only with prepare.length.policy=split"
            yield Problem(path, column, rule, "prepare.length.policy=split, or drop split_column")
    if recipe.prepare.length.policy == "split" and not any(task.split_column for task in recipe.tasks.values()):
        rule = "no task says which column may be cut"
        yield Problem("prepare.length.policy", "split", rule, "tasks.NAME.split_column=COLUMN, or policy=drop")


def _check_mix(recipe: Recipe) -> Iterator[Problem]:
    mix = recipe.prepare.mix
    if mix is None:
        return
    if recipe.prepare.think_share is not None:
        rule = "cannot be had with prepare.think_share: each would undo the other's proportions"
        yield Problem("prepare.mix", sorted(mix.weights), rule, "set one of the two to null")
    trained = [name for name, task in recipe.tasks.items() if task.train_rows]
    for name in mix.weights:
        if name not in trained:
            rule = "is no task with training rows"
            yield Problem(f"prepare.mix.weights.{name}", mix.weights[name], rule, suggest(name, trained))
    for name in trained:
        if name not in mix.weights:
            rule = "must name every trained task"
            yield Problem("prepare.mix.weights", sorted(mix.weights), rule, f"add {name}: 1.0")
