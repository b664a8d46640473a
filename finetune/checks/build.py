"""Built sources: their source is there, patterns and templates can be used, and nothing leaves the machine unasked."""

import re
from collections.abc import Iterator

from finetune.checks.data import check_source_name, check_template, is_broken
from finetune.config import Recipe
from finetune.config.build import (
    DefinitionBuilder,
    FieldsBuilder,
    GroundedQuestionBuilder,
    Headed,
    TeacherBuilder,
    Values,
)
from finetune.config.data import placeholders
from finetune.config.load import suggest
from finetune.config.prepare import Redact
from finetune.errors import Problem


def check_build(recipe: Recipe) -> Iterator[Problem]:
    for name, spec in recipe.build.items():
        path = f"build.{name}"
        if name in recipe.sources:
            yield Problem(path, name, "is the name of a source already", f"call it {name}_built")
        yield from check_source_name(f"{path}.source", spec.source, recipe)
        yield from check_template(f"{path}.document", spec.document)
        for key, task in recipe.tasks.items():
            if task.source == name and task.prompt is None:
                rule = "is built: its rows are columns and no conversations"
                yield Problem(f"tasks.{key}.source", name, rule, f'give tasks.{key}.prompt, such as "{{question}}"')
        if isinstance(spec, Headed):
            yield from check_template(f"{path}.number", spec.number)
        if isinstance(spec, Values):
            yield from _check_values(path, spec)
        if isinstance(spec, DefinitionBuilder | GroundedQuestionBuilder):
            yield from _check_pattern(f"{path}.pattern", spec.pattern, {"term", "definition"})
        if isinstance(spec, GroundedQuestionBuilder):
            yield from _check_questions(path, spec)
        if isinstance(spec, TeacherBuilder):
            yield from _check_teacher(path, spec, recipe)


def _check_values(path: str, spec: Values) -> Iterator[Problem]:
    asked = isinstance(spec, FieldsBuilder) or (isinstance(spec, GroundedQuestionBuilder) and "field" in spec.ask)
    if asked and not spec.labels and not spec.patterns:
        yield Problem(path, None, "says nowhere what to look for", f"add {path}.labels: {{fault: [Fault code]}}")
    for key, pattern in spec.patterns.items():
        yield from _check_pattern(f"{path}.patterns.{key}", pattern, set())
        if key in spec.labels:
            yield Problem(f"{path}.patterns.{key}", pattern, "is found by labels as well", "keep one of the two")


def _check_pattern(path: str, pattern: str | None, groups: set[str]) -> Iterator[Problem]:
    if pattern is None:
        return
    try:
        missing = groups - set(re.compile(pattern).groupindex)
    except re.error as error:
        yield Problem(path, pattern, f"is no regular expression ({error})", "mend it")
        return
    for group in sorted(missing):
        yield Problem(path, pattern, f"has no group {group}", f"write (?P<{group}>...)")


def _check_questions(path: str, spec: GroundedQuestionBuilder) -> Iterator[Problem]:
    fields = sorted({*spec.labels, *spec.patterns})
    named = {"heading": "heading", "definition": "term"}
    if "field" in spec.ask and not set(fields) & set(spec.questions):
        rule = "asks about fields, and no question names one"
        yield Problem(f"{path}.ask", "field", rule, f"add {path}.questions: {{{next(iter(fields), 'fault')}: ...}}")
    if "heading" in spec.ask and spec.heading is None:
        fix = f"give {path}.heading, or ask: [definition]"
        yield Problem(f"{path}.ask", "heading", "needs the column of headings", fix)
    for key, template in spec.questions.items():
        where = f"{path}.questions.{key}"
        yield from check_template(where, template)
        if is_broken(template):
            continue
        if key not in (*named, *fields):
            yield Problem(where, template, "is about nothing that is asked", suggest(key, [*named, *fields]))
        elif key in named and named[key] not in placeholders(template):
            yield Problem(where, template, f"does not say what it asks about: {{{named[key]}}}", "name it")
        elif key in fields and not set(placeholders(template)) & (set(fields) - {key}):
            rule = "does not say which row is meant by another field"
            yield Problem(where, template, rule, 'name one, as in "What is the fault of {equipment}?"')


def _check_teacher(path: str, spec: TeacherBuilder, recipe: Recipe) -> Iterator[Problem]:
    yield from check_template(f"{path}.prompt", spec.prompt)
    if not spec.send_documents:
        rule = f"the texts of source {spec.source} would be sent to {spec.endpoint}: documents leave this machine"
        yield Problem(f"{path}.send_documents", False, rule, f"{path}.send_documents=true, if their owner lets them go")
    if not is_broken(spec.prompt) and spec.text not in placeholders(spec.prompt):
        yield Problem(f"{path}.prompt", None, f"does not show the text, {{{spec.text}}}", "name the column in it")
    redact = recipe.prepare.redact
    for kind, field in Redact.model_fields.items():
        if field.default == "replace" and getattr(redact, kind) == "keep":
            rule = f"would leave this machine with the texts of {spec.source}"
            yield Problem(f"prepare.redact.{kind}", "keep", rule, f"prepare.redact.{kind}=replace, or take {path} out")
