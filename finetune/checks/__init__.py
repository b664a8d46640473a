"""Every rule that spans sections; returns all problems at once."""

import os
from collections.abc import Mapping
from pathlib import Path

from finetune.checks import build, data, evaluation, export, machine, preferences, steps, training
from finetune.checks.passed import check_passed
from finetune.config import Recipe
from finetune.errors import Problem
from finetune.memory import Here, resolve_machine

__all__ = ["check"]


def check(
    recipe: Recipe,
    *,
    here: Here | None = None,
    launched: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[Problem]:
    """All problems of a recipe as it was loaded, in the order of the file.

    Without `here` a recipe is judged as such, for any machine; with it, this machine must have what the recipe asks
    for, and `launched` is the number of processes that the launcher started. Reads no document and writes nothing,
    but with `here` opens a scratch file in the work folder for an instant.
    """
    if here is not None:
        settled = resolve_machine(recipe.machine, here, launched=launched)
        recipe = recipe.model_copy(update={"machine": settled})
    problems = [
        *training.check_stages(recipe),
        *data.check_sources(recipe),
        *build.check_build(recipe),
        *data.check_tasks(recipe),
        *data.check_mix(recipe),
        *data.check_texts(recipe),
        *data.check_prepare(recipe),
        *steps.check_steps(recipe),
        *training.check_model(recipe),
        *training.check_method(recipe),
        *preferences.check_preferences(recipe),
        *check_passed(recipe),
        *training.check_lengths(recipe),
        *training.check_training(recipe),
        *machine.check_batches(recipe),
        *machine.check_layout(recipe),
        *machine.check_sequence(recipe),
        *machine.check_engine(recipe),
        *machine.check_launcher(recipe, environment),
        *evaluation.check_score(recipe),
        *export.check_export(recipe),
        *training.check_release(recipe, environment),
        *data.check_folders(recipe),
    ]
    if here is not None:
        problems += [*machine.check_presence(recipe, here, launched), *export.check_environment(recipe)]
        problems += evaluation.check_harness(recipe)
        problems += data.check_writable(Path(recipe.work))
    return problems
